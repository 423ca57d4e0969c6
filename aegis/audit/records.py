"""Audit records: what a link of the chain says, its row in the table, its canonical form.

The chain's format is documented in docs/audit-format.md and is for ever: whoever changes a canonical
form makes every trail that exists unverifiable.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from hashlib import sha256
from typing import Any

from aegis.codec import dumps
from aegis_core import Approval, RiskLevel

__all__ = [
    "APPROVALS",
    "CANONICAL",
    "COLUMNS",
    "GENESIS",
    "MEMBERS",
    "OPERATION_CODES",
    "OUTCOME",
    "SELECT",
    "STATUSES",
    "STATUS_CODES",
    "AuditRecord",
    "Operation",
    "Outcome",
    "ResultStatus",
    "Words",
    "as_members",
    "now_us",
    "timestamp_text",
]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

GENESIS = bytes(32)
"""What stands in the place of the hash before the first link."""


class ResultStatus(StrEnum):
    """What became of an action."""

    SUCCESS = "success"
    FAILED = "failed"
    BLOCKED = "blocked"
    DENIED = "denied"
    SKIPPED = "skipped"
    STARTED = "started"
    INTERRUPTED = "interrupted"


class Operation(StrEnum):
    """What was asked for: to do an action, or only a decision; or where else a record is from."""

    EXECUTE = "execute"
    EVALUATE = "evaluate"
    IMPORT = "import"


# INVARIANT: these numbers are in every file; new ones are only added at the end.
STATUS_CODES = {status: code for code, status in enumerate(ResultStatus, 1)}
STATUSES = {code: status for status, code in STATUS_CODES.items()}
_APPROVAL_CODES = {Approval.AUTO: 1, Approval.APPROVE: 2, Approval.BLOCK: 3}
APPROVALS = {code: approval for approval, code in _APPROVAL_CODES.items()}
OPERATION_CODES = {operation: code for code, operation in enumerate(Operation, 1)}
_OPERATIONS = {code: operation.value for operation, code in OPERATION_CODES.items()}
_RISKS = {level: level.name for level in RiskLevel}

Words = dict[str | None, int | None]
"""Texts that repeat, and their numbers in the database."""

Row = tuple[str | int | bytes | None, ...]


@dataclass(slots=True)
class AuditRecord:
    """An action's first link: all of it where its outcome is known, else the intent to do it.

    Texts that repeat are stored once, as words.

    Attributes:
        timestamp_us: Microseconds since the epoch.
        action_params: JSON, redacted.
        result_data: JSON, redacted; None where there is none.
        key_name: Whose key asked for it; None where there are no keys.
        operation: What was asked for.
        worker: Which process does it, while its outcome is unknown; None otherwise.
    """

    timestamp_us: int
    session_id: str
    action_type: str
    action_target: str
    action_params: str
    action_desc: str | None
    risk_level: RiskLevel
    approval: Approval
    matched_rule: str
    human_decision: str | None
    result_status: ResultStatus
    result_data: str | None
    result_error: str | None
    agent_id: str | None
    parent_agent_id: str | None
    chain_id: str | None
    chain_depth: int
    policy_version: int
    key_name: str | None = None
    operation: Operation = Operation.EXECUTE
    worker: int | None = None

    def words(self) -> tuple[str | None, ...]:
        """The texts that are stored as words."""
        return (
            self.session_id,
            self.action_type,
            self.matched_rule,
            self.human_decision,
            self.agent_id,
            self.parent_agent_id,
            self.chain_id,
            self.key_name,
        )

    def linked(self, number: int, previous: bytes, words: Words) -> tuple[bytes, Row]:
        """Its hash and its row as link `number`, in the order of `COLUMNS`.

        Args:
            number: Its place in the chain.
            previous: The hash of the link before it.
            words: Has all of its words.

        Raises:
            TypeError: It holds text that is no Unicode.
        """
        canonical = dumps(
            (
                "record",
                number,
                self.timestamp_us,
                self.operation,
                self.session_id,
                self.action_type,
                self.action_target,
                self.action_params,
                self.action_desc,
                _RISKS[self.risk_level],
                self.approval,
                self.matched_rule,
                self.human_decision,
                self.result_status,
                self.result_data,
                self.result_error,
                self.agent_id,
                self.parent_agent_id,
                self.chain_id,
                self.chain_depth,
                self.policy_version,
                self.key_name,
                self.worker,
            )
        )
        hashed = sha256(previous + canonical).digest()
        return hashed, (
            number,
            hashed,
            None,
            self.timestamp_us,
            STATUS_CODES[self.result_status],
            self.result_data,
            self.result_error,
            OPERATION_CODES[self.operation],
            words[self.session_id],
            words[self.action_type],
            self.action_target,
            self.action_params,
            self.action_desc,
            int(self.risk_level),
            _APPROVAL_CODES[self.approval],
            words[self.matched_rule],
            words[self.human_decision],
            words[self.agent_id],
            words[self.parent_agent_id],
            words[self.chain_id],
            self.chain_depth,
            self.policy_version,
            words[self.key_name],
            self.worker,
        )


@dataclass(slots=True)
class Outcome:
    """An action's second link: how it ended.

    Attributes:
        timestamp_us: When that became known, in microseconds since the epoch.
        record: The number of its first link.
        result_data: JSON, redacted; None where there is none.
    """

    timestamp_us: int
    record: int
    result_status: ResultStatus
    result_data: str | None
    result_error: str | None

    def words(self) -> tuple[str | None, ...]:
        """None: its first link has them."""
        return ()

    def linked(self, number: int, previous: bytes, _words: Words) -> tuple[bytes, Row]:
        """Its hash and its row, as those of a record."""
        canonical = dumps(
            (
                "outcome",
                number,
                self.timestamp_us,
                self.record,
                self.result_status,
                self.result_data,
                self.result_error,
            )
        )
        hashed = sha256(previous + canonical).digest()
        return hashed, (
            number,
            hashed,
            self.record,
            self.timestamp_us,
            STATUS_CODES[self.result_status],
            self.result_data,
            self.result_error,
            *_NO_ACTION,
        )


_NO_ACTION = (None,) * 17

COLUMNS = (
    "record (id, hash, intent, timestamp_us, result_status, result_data, result_error, operation,"
    " session, action_type, action_target, action_params, action_desc, risk_level, approval,"
    " matched_rule, human_decision, agent, parent_agent, chain, chain_depth, policy_version,"
    " key_name, worker)"
)

_WORDS = """
    LEFT JOIN word AS session ON session.id = r.session
    LEFT JOIN word AS type ON type.id = r.action_type
    LEFT JOIN word AS rule ON rule.id = r.matched_rule
    LEFT JOIN word AS human ON human.id = r.human_decision
    LEFT JOIN word AS agent ON agent.id = r.agent
    LEFT JOIN word AS parent ON parent.id = r.parent_agent
    LEFT JOIN word AS chain ON chain.id = r.chain
    LEFT JOIN word AS key_name ON key_name.id = r.key_name
"""

OUTCOME = "o.intent = r.id AND o.id > r.id"
"""How a record `r` is joined with its outcome `o`, which stands after it."""

SELECT = f"""
SELECT r.id, session.text, r.timestamp_us, type.text, r.action_target, r.action_params,
    r.action_desc, r.risk_level, r.approval, rule.text, human.text,
    ifnull(o.result_status, r.result_status), iif(o.id, o.result_data, r.result_data),
    iif(o.id, o.result_error, r.result_error), agent.text, parent.text, chain.text, r.chain_depth,
    r.policy_version, key_name.text, r.operation, r.worker, o.timestamp_us, ifnull(o.id, r.id),
    ifnull(o.hash, r.hash)
FROM record AS r
    LEFT JOIN record AS o ON {OUTCOME}
    {_WORDS}
"""
"""A record as it stands now; `r` is its first link, `o` its outcome."""

MEMBERS = (
    "id", "session_id", "timestamp", "action_type", "action_target", "action_params", "action_desc",
    "risk_level", "approval", "matched_rule", "human_decision", "result_status", "result_data",
    "result_error", "agent_id", "parent_agent_id", "chain_id", "chain_depth", "policy_version",
    "key_name", "operation", "worker", "ended", "seq", "hash",
)  # fmt: skip


def _cases(column: str, names: Mapping[Any, str]) -> str:
    cases = " ".join(f"WHEN {int(code)} THEN '{name}'" for code, name in names.items())
    return f"CASE {column} {cases} END"


# SQLite writes these arrays just as `dumps` does: no blanks, nothing escaped that need not be.
CANONICAL = f"""
SELECT r.id, r.hash, CAST(CASE WHEN r.intent IS NULL THEN json_array('record', r.id,
    r.timestamp_us, {_cases("r.operation", _OPERATIONS)}, session.text, type.text, r.action_target,
    r.action_params, r.action_desc, {_cases("r.risk_level", _RISKS)},
    {_cases("r.approval", APPROVALS)}, rule.text, human.text,
    {_cases("r.result_status", STATUSES)}, r.result_data, r.result_error, agent.text, parent.text,
    chain.text, r.chain_depth, r.policy_version, key_name.text, r.worker)
ELSE json_array('outcome', r.id, r.timestamp_us, r.intent, {_cases("r.result_status", STATUSES)},
    r.result_data, r.result_error) END AS BLOB)
FROM record AS r {_WORDS}
"""
"""Each link's number, hash and canonical form."""


def as_members(row: tuple[Any, ...]) -> dict[str, Any]:
    """A row of `SELECT`, as the API shows it."""
    members = dict(zip(MEMBERS, row, strict=True))
    members["timestamp"] = timestamp_text(members["timestamp"])
    members["risk_level"] = RiskLevel(members["risk_level"]).name
    members["approval"] = APPROVALS[members["approval"]].value
    members["result_status"] = STATUSES[members["result_status"]].value
    members["operation"] = _OPERATIONS[members["operation"]]
    if members["ended"] is not None:
        members["ended"] = timestamp_text(members["ended"])
    members["hash"] = members["hash"].hex()
    return members


def timestamp_text(timestamp_us: int) -> str:
    """A time as records show it: RFC 3339 in UTC, with microseconds."""
    return (_EPOCH + timedelta(microseconds=timestamp_us)).isoformat(timespec="microseconds")


def now_us() -> int:
    """The time, in microseconds since the epoch."""
    return time.time_ns() // 1000
