"""Entries of the chain: records, outcomes and what else has an entry; their hashes and their rows.

What their members are is said in `members`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from aegis.audit.members import (
    APPROVALS,
    OPERATION_CODES,
    STATUS_CODES,
    Operation,
    ResultStatus,
)
from aegis.codec import dumps
from aegis_core import Approval, RiskLevel

__all__ = [
    "GENESIS",
    "POLICY",
    "AuditRecord",
    "Entry",
    "Outcome",
    "PayloadEntry",
    "Row",
    "Words",
]

GENESIS = bytes(32)
"""What is in the place of the hash before the first entry."""

POLICY = "policy"
"""The kind of an entry that says that a policy version was stored: by `VERSION_COLUMNS`."""

ARCHIVE = "archive"
"""The kind of an entry that says that a part of the chain was moved to a file of its own."""

KINDS = frozenset({"record", "outcome", POLICY, ARCHIVE})
"""The kinds that this release knows; a newer one may have written others."""

Words = dict[str | None, int | None]
"""Texts that repeat, and their numbers in the database."""

Row = tuple[str | int | bytes | None, ...]

_RISK_NAMES = {level: level.name for level in RiskLevel}
_APPROVAL_CODES = {approval: code for code, approval in APPROVALS.items()}


@dataclass(slots=True)
class AuditRecord:
    """An action's first entry: all of it where its outcome is known, else the intent to do it.

    Texts that repeat are stored once, as words.

    Attributes:
        timestamp_us: Microseconds since the epoch.
        action_params: JSON, redacted.
        result_data: JSON, redacted; None where there is none.
        key_name: Whose key asked for it; None where there are no keys.
        operation: What was asked for.
        worker: Which process does it, while its outcome is unknown; None otherwise.
        call_id: What the agent's framework calls the call.
        request_id: The request's `X-Request-Id`.
        trace_id: The request's trace.
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
    call_id: str | None = None
    request_id: str | None = None
    trace_id: str | None = None

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

    def hash_and_row(self, number: int, previous: bytes, words: Words) -> tuple[bytes, Row]:
        """Its hash and its row as entry `number`, in the order of `COLUMNS`.

        Args:
            number: Its place in the chain.
            previous: The hash of the entry before it.
            words: Has all of its words.

        Raises:
            TypeError: It holds text that is no Unicode.
        """
        hashed = sha256(previous + self._canonical(number)).digest()
        return hashed, (
            number,
            hashed,
            self.timestamp_us,
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
            STATUS_CODES[self.result_status],
            self.result_data,
            self.result_error,
            words[self.agent_id],
            words[self.parent_agent_id],
            words[self.chain_id],
            self.chain_depth,
            self.policy_version,
            words[self.key_name],
            self.worker,
            self.call_id,
            self.request_id,
            self.trace_id,
            None,
            None,
            None,
        )

    def _canonical(self, number: int) -> bytes:
        members: tuple[Any, ...] = (
            "record",
            number,
            self.timestamp_us,
            self.operation,
            self.session_id,
            self.action_type,
            self.action_target,
            self.action_params,
            self.action_desc,
            _RISK_NAMES[self.risk_level],
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
        if not (self.call_id is None and self.request_id is None and self.trace_id is None):
            members += (self.call_id, self.request_id, self.trace_id)
        return dumps(members)


@dataclass(slots=True)
class Outcome:
    """An action's second entry: how it ended.

    Attributes:
        timestamp_us: When that became known, in microseconds since the epoch.
        record: The number of its first entry.
        result_data: JSON, redacted; None where there is none.
    """

    timestamp_us: int
    record: int
    result_status: ResultStatus
    result_data: str | None
    result_error: str | None

    def words(self) -> tuple[str | None, ...]:
        """None: its first entry has them."""
        return ()

    def hash_and_row(self, number: int, previous: bytes, _words: Words) -> tuple[bytes, Row]:
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
            self.timestamp_us,
            *_NO_ACTION,
            STATUS_CODES[self.result_status],
            self.result_data,
            self.result_error,
            *_NO_REST,
            self.record,
            None,
            None,
        )


_NO_ACTION = (None,) * 10
_NO_REST = (None,) * 10


@dataclass(slots=True)
class PayloadEntry:
    """An entry that is neither a record nor an outcome, but says what else has happened.

    Attributes:
        timestamp_us: When, in microseconds since the epoch.
        kind: What has happened, in lower-case letters and `_`.
        payload: All about it, as JSON has it.
    """

    timestamp_us: int
    kind: str
    payload: Mapping[str, Any]

    def words(self) -> tuple[str | None, ...]:
        """None: what it says is stored as it is."""
        return ()

    def hash_and_row(self, number: int, previous: bytes, _words: Words) -> tuple[bytes, Row]:
        """Its hash and its row, as those of a record."""
        payload = dumps(self.payload)
        canonical = b'["%b",%d,%d,%b]' % (self.kind.encode(), number, self.timestamp_us, payload)
        hashed = sha256(previous + canonical).digest()
        return hashed, (
            number,
            hashed,
            self.timestamp_us,
            *_NO_MEMBERS,
            None,
            self.kind,
            payload.decode(),
        )


_NO_MEMBERS = (None,) * 23

Entry = AuditRecord | Outcome | PayloadEntry
