"""Takes over the audit of agent-aegis."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from aegis.audit.chain import ChainEnd
from aegis.audit.records import AuditRecord, Operation, ResultStatus
from aegis.codec import redacted_json_text
from aegis.errors import StoreError, shown
from aegis.store import Store, foreign_rows
from aegis_core import Approval, RiskLevel

__all__ = ["import_agent_aegis"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LINKS_AT_ONCE = 1_000
_MEMBERS = (
    "session_id", "timestamp", "action_type", "action_target", "action_params", "action_desc",
    "risk_level", "approval", "matched_rule", "human_decision", "result_status", "result_data",
    "result_error", "agent_id", "parent_agent_id", "chain_id", "chain_depth",
)  # fmt: skip


def import_agent_aegis(
    store: Store, path: str, tick: Callable[[int], None] = lambda _: None
) -> int:
    """Append the records of a database of agent-aegis to the trail, all of them or none.

    Secrets in params and result data are redacted as everywhere; a record whose end agent-aegis
    did not know is `interrupted`.

    Args:
        store: Where the trail is; nobody else can write to it meanwhile.
        path: The database of agent-aegis.
        tick: Told how many were read.

    Returns:
        How many records there were.

    Raises:
        StoreError: It cannot be read or written, is no such database, has a record that makes no
            sense, or was imported before.
    """
    rows = foreign_rows(path, "audit_log", _MEMBERS)
    records = [_record(place, row) for place, row in enumerate(rows, 1)]
    chain = ChainEnd(store)
    with store.transaction() as connection:
        if (
            records
            and connection.execute(
                "SELECT EXISTS (SELECT 1 FROM record JOIN word ON word.id = session"
                " WHERE operation = 3 AND timestamp_us = ? AND text = ? AND action_target = ?)",
                (records[0].timestamp_us, records[0].session_id, records[0].action_target),
            ).get
        ):
            raise StoreError(f"{shown(path)} was imported before: its first record is there")
        for start in range(0, len(records), _LINKS_AT_ONCE):
            part = records[start : start + _LINKS_AT_ONCE]
            chain.committed(chain.append(connection, part))
            tick(start + len(part))
    return len(records)


def _record(place: int, row: dict[str, Any]) -> AuditRecord:
    try:
        moment = datetime.fromisoformat(row["timestamp"])
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        status = row["result_status"]
        return AuditRecord(
            timestamp_us=(moment - _EPOCH) // timedelta(microseconds=1),
            session_id=row["session_id"],
            action_type=row["action_type"],
            action_target=row["action_target"],
            action_params=redacted_json_text(row["action_params"] or "{}"),
            action_desc=row["action_desc"] or None,
            risk_level=RiskLevel[row["risk_level"].upper()],
            approval=Approval(row["approval"]),
            matched_rule=row["matched_rule"] or "<default>",
            human_decision=row["human_decision"],
            result_status=ResultStatus(status) if status else ResultStatus.INTERRUPTED,
            result_data=row["result_data"] and redacted_json_text(row["result_data"]),
            result_error=row["result_error"],
            agent_id=row["agent_id"] or None,
            parent_agent_id=row["parent_agent_id"] or None,
            chain_id=row["chain_id"] or None,
            chain_depth=row["chain_depth"] or 0,
            policy_version=0,
            operation=Operation.IMPORT,
        )
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise StoreError(f"record {place} makes no sense: {error}") from None
