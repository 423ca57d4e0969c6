"""Requests that may be made once: the rows behind `Idempotency-Key`.

They are no part of the trail and are kept for a day; what a request did is read from the trail.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from aegis.audit.entries import AuditRecord, Entry
from aegis.store.sql import Connection, insert_many
from aegis.timestamps import now_us

__all__ = [
    "KEPT_S",
    "Claim",
    "Claimed",
    "claim",
    "enlist",
    "finish",
    "oldest_repeatable",
    "withdraw",
]

KEPT_S = 24 * 60 * 60
_MAX_FORGOTTEN = 100


@dataclass(frozen=True, slots=True)
class Claim:
    """A request by the key that its client made up for it.

    Attributes:
        caller: Whose key it came with; two callers may make up the same one.
        idempotency_key: What the client calls it.
        body_sha256: Of all that was asked.
    """

    caller: str
    idempotency_key: str
    body_sha256: bytes


@dataclass(frozen=True, slots=True)
class Claimed:
    """An earlier request of the same key.

    Attributes:
        request: Its number.
        body_sha256: Of all that was asked then.
        worker: Which process made it.
        is_done: Whether it has ended.
    """

    request: int
    body_sha256: bytes
    worker: int
    is_done: bool


def claim(connection: Connection, wanted: Claim, worker: int) -> int | Claimed:
    """Claim a request, in a transaction.

    Returns:
        Its number; or the earlier one, where it has been made within a day.
    """
    now = now_us()
    _forget(connection, now - KEPT_S * 1_000_000)
    rows: list[Any] = connection.execute(
        "SELECT id, body_sha256, worker, is_done FROM request"
        " WHERE caller = ? AND idempotency_key = ? AND created_us > ?",
        (wanted.caller, wanted.idempotency_key, now - KEPT_S * 1_000_000),
    ).fetchall()
    if rows:
        number, body_sha256, by, is_done = rows[0]
        return Claimed(number, body_sha256, by, bool(is_done))
    connection.execute(
        "DELETE FROM request_record WHERE request IN (SELECT id FROM request WHERE caller = ?1"
        " AND idempotency_key = ?2); DELETE FROM request WHERE caller = ?1 AND idempotency_key = ?2",
        (wanted.caller, wanted.idempotency_key) * 2,
    )
    connection.execute(
        "INSERT INTO request (caller, idempotency_key, body_sha256, created_us, worker)"
        " VALUES (?, ?, ?, ?, ?)",
        (wanted.caller, wanted.idempotency_key, wanted.body_sha256, now, worker),
    )
    return connection.last_insert_rowid()


def enlist(connection: Connection, request: int, entries: Sequence[Entry], first: int) -> None:
    """Note which records a request has led to; more may follow.

    Args:
        connection: In a transaction.
        request: Its number.
        entries: As they were appended; outcomes belong to records that were noted before.
        first: The number of the first one.
    """
    noted = connection.execute(
        "SELECT count(*) FROM request_record WHERE request = ?", (request,)
    ).get
    records = [
        number for number, entry in enumerate(entries, first) if isinstance(entry, AuditRecord)
    ]
    if records:
        insert_many(
            connection,
            "request_record (request, position, record)",
            [(request, noted + place, number) for place, number in enumerate(records)],
        )


def finish(connection: Connection, request: int) -> None:
    """Note that a request has ended."""
    connection.execute("UPDATE request SET is_done = 1 WHERE id = ?", (request,))


def withdraw(connection: Connection, request: int) -> None:
    """Let a request be made again, since nothing was done for it."""
    connection.execute("DELETE FROM request_record WHERE request = ?", (request,))
    connection.execute("DELETE FROM request WHERE id = ?", (request,))


def oldest_repeatable(connection: Connection) -> int | None:
    """The first record that a request of the last day has led to; None: there is none."""
    found = connection.execute(
        "SELECT min(record) FROM request JOIN request_record ON request = id WHERE created_us > ?",
        (now_us() - KEPT_S * 1_000_000,),
    ).get
    return None if found is None else int(found)


def _forget(connection: Connection, before_us: int) -> None:
    """Forget some of the requests that are too old to be repeated."""
    old: list[Any] = connection.execute(
        "SELECT id FROM request WHERE created_us <= ? ORDER BY created_us LIMIT ?",
        (before_us, _MAX_FORGOTTEN),
    ).fetchall()
    for (number,) in old:
        withdraw(connection, number)
