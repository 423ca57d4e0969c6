"""Records: what the audit says of a decision and of a result, and results as the audit has them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from aegis.audit import AuditRecord, Operation, Outcome, ResultStatus
from aegis.auth.keys import Key
from aegis.codec import dumps, dumps_foreign, written
from aegis.execution.executors import NO_OP_DATA, NO_OP_DATA_JSON, Result
from aegis.policy.decision_point import Snapshot
from aegis.redaction import Redaction
from aegis.timestamps import now_us
from aegis_core import Action, Decision

__all__ = ["Recorder", "RequestContext", "blocked_result", "result_of_record"]

_STARTED = ResultStatus.STARTED  # a member of an enumeration is looked up each time it is named


@dataclass(slots=True)
class RequestContext:
    """What the actions of one request have in common.

    Attributes:
        snapshot: The policy that decides about them.
        caller: Whose key asks; None if no key is needed.
        operation: What is asked for.
        request_id: The `X-Request-Id` that the client sent; None if it sent none.
    """

    snapshot: Snapshot
    caller: Key | None
    operation: Operation = Operation.EXECUTE
    request_id: str | None = None


class Recorder:
    """Makes the entries of the audit about actions.

    Args:
        session_id: Of actions that name none.
        worker: This process, as the audit numbers it.
        redaction: Which values are not stored.
    """

    def __init__(self, *, session_id: str, worker: int, redaction: Redaction) -> None:
        self._session_id = session_id
        self._worker = worker
        self._redaction = redaction

    def record(
        self,
        action: Action,
        decision: Decision,
        result: Result,
        context: RequestContext,
        human_decision: str | None = None,
    ) -> AuditRecord:
        """An action's first entry: all of it if its result is final, else the intent to do it."""
        status, caller = result.status, context.caller
        return AuditRecord(
            now_us(),
            action.session_id or self._session_id,
            action.type,
            action.target,
            self._params_json(action) if action.params else "{}",
            action.description or None,
            decision.risk_level,
            decision.approval,
            decision.matched_rule,
            human_decision,
            status,
            NO_OP_DATA_JSON if result.data is NO_OP_DATA else self._data_json(result),
            result.error,
            action.agent_id or None,
            action.parent_agent_id or None,
            action.chain_id or None,
            action.chain_depth,
            context.snapshot.version,
            None if caller is None else caller.name,
            context.operation,
            self._worker if status is _STARTED else None,
            None,
            context.request_id,
        )

    def outcome(self, record: int, result: Result) -> Outcome:
        """An action's second entry: how it ended.

        Args:
            record: The number of its first entry.
            result: How it ended.
        """
        return Outcome(now_us(), record, result.status, self._data_json(result), result.error)

    def _params_json(self, action: Action) -> str:
        return self._redaction.json(dumps_foreign(dict(action.params))).decode()

    def _data_json(self, result: Result) -> str | None:
        if result.data is None:
            return None
        return self._redaction.json(dumps(result.data)).decode()


def blocked_result(action: Action, decision: Decision) -> Result:
    """The result of an action that the policy blocks."""
    message = f"Blocked by policy rule: {decision.matched_rule}"
    return Result(action, ResultStatus.BLOCKED, error=message)


def result_of_record(record: dict[str, Any]) -> Result:
    """A result as the audit has it."""
    data = record["result_data"]
    return Result(
        Action(record["action_type"], record["action_target"]),
        ResultStatus(record["result_status"]),
        None if data is None else written(data),
        record["result_error"],
    )
