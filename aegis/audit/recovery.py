"""What a new writer finds and mends before it begins: actions of the dead, records without a chain."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from aegis.audit.chain import ChainHead
from aegis.audit.entries import POLICY, AuditRecord, Entry, Outcome, PayloadEntry
from aegis.audit.index import sealed_to
from aegis.audit.members import (
    APPROVALS,
    IS_RECORD,
    OUTCOME,
    STATUS_CODES,
    STATUSES,
    ResultStatus,
)
from aegis.audit.tables import archive_entry
from aegis.store.database import Store
from aegis.store.schema import UNCHAINED, VERSION_COLUMNS
from aegis.store.sql import Connection, has_table, transacted
from aegis.timestamps import now_us
from aegis_core import RiskLevel

__all__ = ["chain_older_rows", "interrupt_lost", "unfinished_actions"]

_log = logging.getLogger("aegis.audit")

_UNKNOWN = "the server ended while it ran; whether it took effect is unknown"


def interrupt_lost(store: Store, chain: ChainHead) -> int:
    """Append `interrupted` to each action that was started by a writer which is gone now.

    Returns:
        How many there were.

    Raises:
        StoreError: The database cannot be written.
    """
    with store.turn() as connection:
        lost = [
            number
            for number, worker in unfinished_actions(connection)
            if not store.is_held(worker or 0)
        ]
        if not lost:
            return 0
        now = now_us()
        outcomes = [
            Outcome(now, number, ResultStatus.INTERRUPTED, None, _UNKNOWN) for number in lost
        ]
        with transacted(connection):
            appended = chain.append(connection, outcomes)
        chain.committed(appended)
    _log.warning("%d actions were interrupted by the end of the server that ran them", len(lost))
    return len(lost)


def unfinished_actions(connection: Connection) -> list[tuple[int, int | None]]:
    """The actions without an outcome, and whose they are."""
    rows: list[Any] = connection.execute(
        f"SELECT r.id, r.worker FROM record AS r WHERE r.id >= ? AND {IS_RECORD}"
        f" AND r.result_status = ? AND NOT EXISTS (SELECT 1 FROM record AS o WHERE {OUTCOME})",
        (sealed_to(connection), STATUS_CODES[ResultStatus.STARTED]),
    ).fetchall()
    return rows


def chain_older_rows(connection: Connection, chain: ChainHead) -> None:
    """Give entries to what an older release stored without: records first, then policy versions.

    Args:
        connection: In a turn, outside of a transaction.
        chain: The end of the chain.

    Cost: nothing once it is done.
    """
    older = [table for table in UNCHAINED if has_table(connection, table)]
    if not older:
        return
    # Nobody else is in the turn: what is remembered too early here ends with the process.
    with transacted(connection):
        for table in older:
            for entries in _OLDER[table](connection):
                chain.committed(chain.append(connection, entries))
            connection.execute(f"DROP TABLE {table}")


def _old_records(connection: Connection) -> Iterator[list[AuditRecord]]:
    last = -1
    while rows := _old_rows(connection, last):
        last = rows[-1][0]
        yield [_old_record(row) for row in rows]


def _old_versions(connection: Connection) -> Iterator[list[PayloadEntry]]:
    now = now_us()
    columns = ", ".join(VERSION_COLUMNS)
    rows: list[Any] = connection.execute(
        f"SELECT {columns} FROM policy_version"
        " WHERE version IN (SELECT version FROM unchained_version) ORDER BY version"
    ).fetchall()
    yield [PayloadEntry(now, POLICY, dict(zip(VERSION_COLUMNS, row, strict=True))) for row in rows]


def _old_archives(connection: Connection) -> Iterator[list[PayloadEntry]]:
    yield [archive_entry(connection, now_us())]


_OLDER: dict[str, Callable[[Connection], Iterator[Sequence[Entry]]]] = {
    "unchained_record": _old_records,
    "unchained_version": _old_versions,
    "unchained_archive": _old_archives,
}


_MAX_AT_ONCE = 1_000

_OLD = """
SELECT r.id, r.timestamp_us, session.text, type.text, r.action_target, r.action_params,
    r.action_desc, r.risk_level, r.approval, rule.text, human.text, r.result_status, r.result_data,
    r.result_error, agent.text, parent.text, chain.text, r.chain_depth, r.policy_version,
    key_name.text
FROM unchained_record AS r
    JOIN word AS session ON session.id = r.session
    JOIN word AS type ON type.id = r.action_type
    JOIN word AS rule ON rule.id = r.matched_rule
    LEFT JOIN word AS human ON human.id = r.human_decision
    LEFT JOIN word AS agent ON agent.id = r.agent
    LEFT JOIN word AS parent ON parent.id = r.parent_agent
    LEFT JOIN word AS chain ON chain.id = r.chain
    LEFT JOIN word AS key_name ON key_name.id = r.key_name
"""


def _old_rows(connection: Connection, last: int) -> list[Any]:
    return connection.execute(
        f"{_OLD} WHERE r.id > ? ORDER BY r.id LIMIT ?", (last, _MAX_AT_ONCE)
    ).fetchall()


def _old_record(row: tuple[Any, ...]) -> AuditRecord:
    _, *members = row
    members[6] = RiskLevel(members[6])
    members[7] = APPROVALS[members[7]]
    members[10] = STATUSES[members[10]]
    return AuditRecord(*members)
