"""Takes over the audit of agent-aegis.

Its file is another program's: SQLite keeps any value in any column, so that each is checked, and
converted where it says the same, before it becomes a part of the chain.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from aegis.audit.chain import ChainHead
from aegis.audit.entries import AuditRecord
from aegis.audit.members import Operation, ResultStatus
from aegis.errors import StoreError
from aegis.messages import quote, suggest
from aegis.redaction import Redaction
from aegis.store.database import Store
from aegis.store.foreign import UndecodableText, foreign_rows
from aegis.timestamps import microseconds
from aegis_core import Approval, RiskLevel

__all__ = ["Imported", "import_agent_aegis"]

_ENTRIES_AT_ONCE = 1_000
_MAX_PROBLEMS = 100
_REDACTION = Redaction()
_MEMBERS = (
    "session_id", "timestamp", "action_type", "action_target", "action_params", "action_desc",
    "risk_level", "approval", "matched_rule", "human_decision", "result_status", "result_data",
    "result_error", "agent_id", "parent_agent_id", "chain_id", "chain_depth",
)  # fmt: skip
_INT64 = range(-(2**63), 2**63)


@dataclass(frozen=True, slots=True)
class Imported:
    """What was taken over.

    Attributes:
        count: How many records.
        left_out: How many rows could not be records.
        problems: What is wrong with the first of these, each with its row's place.
    """

    count: int
    left_out: int
    problems: tuple[str, ...]


def import_agent_aegis(
    store: Store, path: str, tick: Callable[[int, int], None] = lambda *_: None
) -> Imported:
    """Append the records of a database of agent-aegis to the trail, by one transaction.

    Secrets in params and result data are redacted as everywhere; a record whose end agent-aegis
    did not know is `interrupted`. A row that cannot be a record is left out.

    Args:
        store: Where the trail is; nobody else can write to it meanwhile.
        path: The database of agent-aegis.
        tick: Given how many records are appended and how many there are.

    Raises:
        StoreError: It cannot be read or written, is no such database, or was imported before.
    """
    records: list[AuditRecord] = []
    problems: list[str] = []
    left_out = 0
    for place, row in enumerate(foreign_rows(path, "audit_log", _MEMBERS), 1):
        try:
            records.append(_record(row))
        except ValueError as error:
            left_out += 1
            if left_out <= _MAX_PROBLEMS:
                problems.append(f"row {place}: {error}")
    chain = ChainHead(store)
    with store.transaction() as connection:
        if (
            records
            and connection.execute(
                "SELECT EXISTS (SELECT 1 FROM record JOIN word ON word.id = session"
                " WHERE operation = 3 AND timestamp_us = ? AND text = ? AND action_target = ?)",
                (records[0].timestamp_us, records[0].session_id, records[0].action_target),
            ).get
        ):
            raise StoreError(f"{quote(path)} was imported before: its first record is there")
        for start in range(0, len(records), _ENTRIES_AT_ONCE):
            part = records[start : start + _ENTRIES_AT_ONCE]
            chain.committed(chain.append(connection, part))
            tick(start + len(part), len(records))
    return Imported(len(records), left_out, tuple(problems))


def _record(row: dict[str, Any]) -> AuditRecord:
    """The record that a row is.

    Raises:
        ValueError: It is none, and why.
    """
    is_known = bool(_text(row, "result_status"))
    return AuditRecord(
        timestamp_us=_moment_us(row),
        session_id=_needed(row, "session_id"),
        action_type=_needed(row, "action_type"),
        action_target=_text(row, "action_target") or "",
        action_params=_json(row, "action_params") or "{}",
        action_desc=_text(row, "action_desc") or None,
        risk_level=RiskLevel[_one_of(row, "risk_level", RiskLevel.__members__)],
        approval=Approval(_one_of(row, "approval", list(Approval))),
        matched_rule=_text(row, "matched_rule") or "<default>",
        human_decision=_text(row, "human_decision"),
        result_status=ResultStatus(_one_of(row, "result_status", list(ResultStatus)))
        if is_known
        else ResultStatus.INTERRUPTED,
        result_data=_json(row, "result_data"),
        result_error=_text(row, "result_error"),
        agent_id=_text(row, "agent_id") or None,
        parent_agent_id=_text(row, "parent_agent_id") or None,
        chain_id=_text(row, "chain_id") or None,
        chain_depth=_depth(row),
        policy_version=0,
        operation=Operation.IMPORT,
    )


def _text(row: dict[str, Any], member: str) -> str | None:
    """A text, or a number as SQLite would write it into a column of texts."""
    match row[member]:
        case None | str() as value:
            return value
        case int() | float() as number:
            return str(number)
        case UndecodableText():
            raise ValueError(f"`{member}` is not Unicode")
        case _:
            raise ValueError(f"`{member}` must be text, not bytes")


def _needed(row: dict[str, Any], member: str) -> str:
    text = _text(row, member)
    if not text:
        raise ValueError(f"`{member}` is missing")
    return text


def _one_of(row: dict[str, Any], member: str, known: Iterable[str]) -> str:
    """One of a few words, in any case."""
    text = _needed(row, member)
    for word in known:
        if text.lower() == word.lower():
            return word
    raise ValueError(f"`{member}` {quote(text)} does not exist{suggest(text, known)}")


def _json(row: dict[str, Any], member: str) -> str | None:
    text = _text(row, member)
    try:
        return text and _REDACTION.json_text(text)
    except RecursionError:  # what its secrets are called cannot be seen
        raise ValueError(f"`{member}` is nested too deeply") from None


def _moment_us(row: dict[str, Any]) -> int:
    text = _needed(row, "timestamp")
    try:
        moment = datetime.fromisoformat(text)
        return microseconds(moment if moment.tzinfo else moment.replace(tzinfo=UTC))
    except ValueError:
        raise ValueError(
            f"`timestamp` must be a time as in `2026-01-31T18:00:00+00:00`, not {quote(text)}"
        ) from None


def _depth(row: dict[str, Any]) -> int:
    text = _text(row, "chain_depth") or "0"
    try:
        depth = int(text.removesuffix(".0"))
    except ValueError:
        depth = _INT64.stop
    if depth not in _INT64:
        raise ValueError(f"`chain_depth` must be an integer of 64 bits, not {quote(text)}")
    return depth
