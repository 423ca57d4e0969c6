"""Moves the old part of a trail into a file of its own.

Nothing else ever removes a record: the database itself refuses it for all that no archive has.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aegis.audit.chain import ChainHead, anchor
from aegis.audit.entries import ARCHIVE
from aegis.audit.idempotency import oldest_repeatable
from aegis.audit.index import SEGMENT_BITS
from aegis.audit.members import COLUMNS
from aegis.audit.recovery import unfinished_actions
from aegis.audit.tables import archive_entry, archived_versions
from aegis.audit.verify import Pin, verify
from aegis.errors import StoreError
from aegis.host.files import replacing
from aegis.messages import quote
from aegis.store.database import Store
from aegis.store.schema import VERSION_COLUMNS
from aegis.store.sql import Connection, insert_many, transacted
from aegis.timestamps import now_us, timestamp_text

__all__ = ["Archived", "archive"]

_ENTRIES_AT_ONCE = 5_000


@dataclass(frozen=True, slots=True)
class Archived:
    """What was moved.

    Attributes:
        first: The number of the first entry; above `last` where there was nothing to move.
        last: The number of the last one.
        hash: Its hash, which the rest goes on from.
        kept_by: Why older entries than asked for stay behind it; None: none do.
    """

    first: int
    last: int
    hash: bytes
    kept_by: str | None


def archive(
    store: Store,
    before_us: int,
    path: str | Path,
    tick: Callable[[int, int], None] = lambda *_: None,
) -> Archived:
    """Move the entries from before a time into a file that is made for them.

    The file is verified and on the disk before anything is removed; what an interrupted run has
    left behind is removed by the next one.

    Args:
        store: Where the trail is; servers may go on writing to it.
        before_us: Entries from before this time are moved, as far as all that they began has ended and
            no request can be repeated that led to them.
        path: The file to make.
        tick: Given how many steps are done and how many there are: each entry is copied, verified and
            removed.

    Raises:
        StoreError: It cannot be read or written.
        InvalidTrail: What was to be moved is not as it was written.
    """
    _remove(store)
    with store.reading() as connection:
        archived, previous = anchor(connection)
        last, kept_by = _end(connection, archived, before_us)
        hashed = connection.execute("SELECT hash FROM record WHERE id = ?", (last,)).get
        holds_more = connection.execute(  # than entries of earlier archives
            "SELECT EXISTS (SELECT 1 FROM record WHERE id > ? AND id <= ? AND kind IS NOT ?)",
            (archived, last, ARCHIVE),
        ).get
    if hashed is None or last <= max(archived, 0) or not holds_more:
        return Archived(archived + 1, archived, previous, kept_by)
    count = last - archived
    _copy(store, archived, previous, last, path, lambda done: tick(done, 3 * count))
    chain = ChainHead(store)
    now = now_us()
    with store.turn() as connection:
        with transacted(connection):
            connection.execute(
                "INSERT INTO archive (last, hash, records, file, archived_us)"
                " VALUES (?, ?, ?, ?, ?)",
                (last, hashed, count, Path(path).name, now),
            )
            appended = chain.append(connection, [archive_entry(connection, now)])
        chain.committed(appended)
    _remove(store, lambda done: tick(2 * count + done, 3 * count))
    return Archived(archived + 1, last, bytes(hashed), kept_by)


def _end(connection: Connection, archived: int, before_us: int) -> tuple[int, str | None]:
    """The last entry to move, and why it is not the last one from before that time.

    No entry after it belongs to one up to it, and all up to it have ended.
    """
    last = connection.execute(
        "SELECT id FROM record WHERE id > ? AND timestamp_us < ? ORDER BY id DESC LIMIT 1",
        (archived, before_us),
    ).get
    if last is None:
        return archived, None
    kept_by = None
    for first, because in (
        _later(connection, archived, last, before_us),
        (
            min((number for number, _ in unfinished_actions(connection)), default=None),
            "has not ended",
        ),
        (
            oldest_repeatable(connection),
            "may be asked for again, for a day, by its Idempotency-Key",
        ),
    ):
        if first is not None and first <= last:
            last, kept_by = first - 1, f"entry {first} {because}"
    while True:
        parted = connection.execute(
            "SELECT min(intent) FROM record WHERE intent IS NOT NULL AND id > ? AND intent > ?"
            " AND intent <= ?",
            (last, archived, last),
        ).get
        if parted is None:
            return max(last, archived), kept_by
        last, kept_by = parted - 1, f"entry {parted} had not ended then"


def _later(connection: Connection, after: int, last: int, before_us: int) -> tuple[int | None, str]:
    """The first entry among these that is not from before a time; a clock ran ahead, or was set back.

    One whose time is still to come says nothing of when it was, and goes with those around it.
    """
    rows: list[Any] = connection.execute(
        "SELECT id, timestamp_us FROM record WHERE id > ? AND id < ? AND timestamp_us >= ?"
        " AND timestamp_us <= ? ORDER BY id LIMIT 1",
        (after, last, before_us, now_us()),
    ).fetchall()
    if not rows:
        return None, ""
    number, moment_us = rows[0]
    return (
        number,
        f"is of {timestamp_text(moment_us)}, by a clock that ran ahead or was set back since",
    )


def _copy(
    store: Store,
    after: int,
    previous: bytes,
    last: int,
    path: str | Path,
    tick: Callable[[int], None],
) -> None:
    """Make the archive's file, and see that it is as the trail was."""
    if os.path.lexists(path):
        raise StoreError(f"{quote(str(path))} exists; give the name of a file to be made")
    try:
        with replacing(path, like=store.path) as name, closing(Store(name)) as archived:
            with archived.transaction() as target:
                target.execute(
                    "INSERT INTO archive (last, hash, records, file, archived_us)"
                    " VALUES (?, ?, 0, '', ?)",
                    (after, previous, now_us()),
                )
            copied = after
            while copied < last:
                with store.reading() as source, archived.transaction() as target:
                    copied = _copy_some(
                        source, target, copied, min(copied + _ENTRIES_AT_ONCE, last)
                    )
                tick(copied - after)
            with store.reading() as source:
                hashed = source.execute("SELECT hash FROM record WHERE id = ?", (last,)).get
            count = last - after
            verify(archived, pin=Pin(bytes(hashed), last), tick=lambda done: tick(count + done))
            archived.end_log()
    except OSError as error:
        raise StoreError(f"cannot write {quote(str(path))}: {error.strerror}") from error


def _copy_some(source: Connection, target: Connection, after: int, last: int) -> int:
    """Copy the entries up to `last`, the words that they are made of, and the policies they tell of."""
    words: list[Any] = source.execute(
        "WITH part AS (SELECT * FROM record WHERE id > ?1 AND id <= ?2) SELECT id, text FROM word"
        " WHERE id IN (SELECT session FROM part UNION SELECT action_type FROM part"
        " UNION SELECT matched_rule FROM part UNION SELECT human_decision FROM part"
        " UNION SELECT agent FROM part UNION SELECT parent_agent FROM part"
        " UNION SELECT chain FROM part UNION SELECT key_name FROM part)",
        (after, last),
    ).fetchall()
    if words:
        insert_many(target, "word (id, text)", words, conflict="IGNORE")
    names = COLUMNS.partition("(")[2].rstrip(")")
    rows: list[Any] = source.execute(
        f"SELECT {names} FROM record WHERE id > ? AND id <= ? ORDER BY id", (after, last)
    ).fetchall()
    insert_many(target, COLUMNS, rows)
    for row in archived_versions(source, after, last):
        target.execute(
            f"INSERT INTO policy_version ({', '.join(VERSION_COLUMNS)}, source)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            row,
        )
    return last


def _remove(store: Store, tick: Callable[[int], None] = lambda _: None) -> None:
    """Remove what archives have."""
    with store.reading() as connection:
        last, _ = anchor(connection)
    removed = 0
    while True:
        with store.transaction() as connection:
            connection.execute(
                "DELETE FROM record WHERE id IN"
                " (SELECT id FROM record WHERE id <= ? ORDER BY id LIMIT ?)",
                (last, _ENTRIES_AT_ONCE),
            )
            count = connection.changes()
            if not count:
                whole = (last + 1) >> SEGMENT_BITS  # segments of which nothing is left
                connection.execute("DELETE FROM posting WHERE segment < ?", (whole,))
                connection.execute("DELETE FROM segment WHERE id < ?", (whole - 1,))
                return
        removed += count
        tick(removed)
