"""The enforcer: decide, approve, execute, audit."""

from __future__ import annotations

import asyncio
import inspect
from abc import ABC, abstractmethod
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

from aegis.audit import AuditLog, AuditRecord, ResultStatus, now_us
from aegis.codec import dumps, dumps_foreign, redacted_json
from aegis.decisions import Snapshot
from aegis.errors import named, shown
from aegis_core import Action, Approval, Decision

__all__ = ["Enforcer", "Executor", "NoOpExecutor", "Result"]

_LAST_RECORDS_S = 2.0
"""For the records of what was interrupted when the server stops."""

AUTO_APPROVED = "auto-approved"
"""What `human_decision` says where the auto-approval mode let an action through."""


@dataclass(slots=True)
class Result:
    """What became of an action.

    Args:
        action: The action.
        status: How it ended.
        data: What it gave, as JSON has it.
        error: What went wrong; None where nothing did.
    """

    action: Action
    status: ResultStatus
    data: Any = None
    error: str | None = None

    @property
    def ok(self) -> bool:
        """Whether the action was done."""
        return self.status == ResultStatus.SUCCESS


class Executor(ABC):
    """Does what was decided. `execute` is required; an exception becomes a `failed` result."""

    @abstractmethod
    async def execute(self, action: Action) -> Result:
        """Do one action."""

    async def setup(self) -> None:  # noqa: B027 - optional: doing nothing is right for most
        """Get ready; called once, before the server takes requests."""

    async def teardown(self) -> None:  # noqa: B027 - as `setup`
        """Let go of everything; called once, after the last action."""

    async def verify(self, action: Action, result: Result) -> bool:
        """Whether an action that succeeded has had its effect; False makes it `failed`."""
        return result.ok


class NoOpExecutor(Executor):
    """Does nothing and says so: the default, for those who only want decisions and the audit."""

    async def execute(self, action: Action) -> Result:
        """Answer `{"executed": true}`."""
        return Result(action, ResultStatus.SUCCESS, {"executed": True})


@dataclass(frozen=True, slots=True)
class _Asked:
    """What the records of one request have in common."""

    policy_version: int
    key_name: str | None


class Enforcer:
    """Runs actions and records each of them.

    Invariant: whatever an executor does, its action gets a result and a record; an action that is
    blocked is never given to it.

    Args:
        audit: Where the records go.
        executor: Does the actions.
        session_id: Of actions that name none.
        timeout_s: How long one action may take.
    """

    def __init__(
        self, audit: AuditLog, executor: Executor, *, session_id: str, timeout_s: float
    ) -> None:
        self._audit = audit
        self._executor = executor
        self._session_id = session_id
        self._timeout_s = timeout_s
        self._has_effects = type(executor) is not NoOpExecutor
        self._requests: set[asyncio.Task[list[Result]]] = set()
        self._running: set[asyncio.Task[Result]] = set()
        self._is_stopping = False
        self._stop: asyncio.Future[None] | None = None

    async def setup(self) -> None:
        """Get the executor ready; called once, on the loop that serves."""
        self._stop = asyncio.get_running_loop().create_future()
        await _called(self._executor, "setup")

    async def run(
        self, actions: list[Action], snapshot: Snapshot, key_name: str | None = None
    ) -> list[Result]:
        """Decide, approve, execute and record actions, one after the other.

        Args:
            actions: What is to be done.
            snapshot: The policy to decide by.
            key_name: Whose key asked for it; None where there are no keys.

        Returns:
            Their results, in order. All records are committed.

        Raises:
            AuditUnavailable: Before anything was executed, or where a record was not committed
                in time.
        """
        decisions = snapshot.engine.evaluate_many(
            [(action.type, action.target, action.agent_id, action.params) for action in actions]
        )
        self._audit.refuse_when_unavailable()
        asked = _Asked(snapshot.version, key_name)
        if not self._has_effects:
            return await self._answer_all(actions, decisions, asked)
        # A task of its own: once begun it runs to its record, also when the client has gone.
        task = asyncio.create_task(self._run_all(actions, decisions, asked))
        self._requests.add(task)
        task.add_done_callback(self._requests.discard)
        return await asyncio.shield(task)

    async def drain(self, timeout_s: float) -> None:
        """Let what runs come to its end; what still runs after the timeout is interrupted."""
        if self._requests:
            await asyncio.wait(self._requests, timeout=timeout_s)
        self._is_stopping = True
        if self._stop is not None:
            self._stop.set_result(None)
        if self._requests:
            await asyncio.wait(self._requests, timeout=_LAST_RECORDS_S)

    async def teardown(self) -> None:
        """Let the executor go."""
        await _called(self._executor, "teardown")

    async def _answer_all(
        self, actions: list[Action], decisions: list[Decision], asked: _Asked
    ) -> list[Result]:
        # Nothing happens outside, so all records may share one commit.
        results = []
        for action, decision in zip(actions, decisions, strict=True):
            if decision.is_allowed:
                results.append(await self._executor.execute(action))
            else:
                results.append(_blocked(action, decision))
        await self._audit.append(
            [
                self._record(action, decision, result, asked)
                for action, decision, result in zip(actions, decisions, results, strict=True)
            ]
        )
        return results

    async def _run_all(
        self, actions: list[Action], decisions: list[Decision], asked: _Asked
    ) -> list[Result]:
        results = []
        for action, decision in zip(actions, decisions, strict=True):
            params = None
            if not decision.is_allowed:
                result = _blocked(action, decision)
            elif self._is_stopping:
                result = Result(action, ResultStatus.SKIPPED, error="the server is stopping")
            else:
                # As it was asked: an executor may change what it is given.
                params = _params_json(action)
                result = await self._execute(action)
            results.append(result)
            await self._audit.append([self._record(action, decision, result, asked, params)])
        return results

    async def _execute(self, action: Action) -> Result:
        task = asyncio.create_task(self._guarded(action))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        ends: list[asyncio.Future[Any]] = [task] if self._stop is None else [task, self._stop]
        await asyncio.wait(ends, timeout=self._timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if task.done() and not task.cancelled():
            return task.result()
        said = "was interrupted"
        if not (self._is_stopping or task.cancelled()):
            said = f"did not end within {self._timeout_s:g} s"
        # It is told to end, but not waited for: it may not listen.
        task.cancel()
        said = f"{said}; whether it took effect is unknown"
        return Result(action, ResultStatus.INTERRUPTED, error=said)

    async def _guarded(self, action: Action) -> Result:
        try:
            result = _checked(action, await _awaited(self._executor.execute(action)))
            verify = getattr(self._executor, "verify", None)
            if result.ok and verify is not None and not await _awaited(verify(action, result)):
                said = "the executor could not verify its effect"
                return Result(action, ResultStatus.FAILED, result.data, said)
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001 - foreign code
            # Whatever it raises must end in a record, and must not end the server.
            return Result(action, ResultStatus.FAILED, error=_said(error))
        return result

    def _record(
        self,
        action: Action,
        decision: Decision,
        result: Result,
        asked: _Asked,
        params: str | None = None,
    ) -> AuditRecord:
        is_approved = decision.approval is Approval.APPROVE
        data = None
        if result.data is not None:
            data = redacted_json(dumps_foreign(result.data) or b"null").decode()
        return AuditRecord(
            now_us(),
            action.session_id or self._session_id,
            action.type,
            action.target,
            _params_json(action) if params is None else params,
            action.description or None,
            decision.risk_level,
            decision.approval,
            decision.matched_rule,
            AUTO_APPROVED if is_approved else None,
            result.status,
            data,
            result.error,
            action.agent_id or None,
            action.parent_agent_id or None,
            action.chain_id or None,
            action.chain_depth,
            asked.policy_version,
            asked.key_name,
        )


def result_json(result: Result) -> bytes:
    """A result as the API answers it."""
    return b'{"action_type":%b,"target":%b,"status":%b,"data":%b,"error":%b}' % (
        dumps(result.action.type),
        dumps(result.action.target),
        dumps(result.status.value),
        dumps_foreign(result.data) or b"null",
        dumps(result.error),
    )


def _params_json(action: Action) -> str:
    """An action's parameters as they are recorded."""
    return redacted_json(dumps_foreign(dict(action.params)) or b'"[UNWRITABLE]"').decode()


def _blocked(action: Action, decision: Decision) -> Result:
    said = f"Blocked by policy rule: {decision.matched_rule}"
    return Result(action, ResultStatus.BLOCKED, error=said)


def _checked(action: Action, outcome: object) -> Result:
    """What an executor returned, as a result of the very action that it was given."""
    if not isinstance(outcome, Result):
        said = f"the executor returned {named(outcome)}, not a Result; what it did is unknown"
        return Result(action, ResultStatus.FAILED, error=said)
    try:
        status = ResultStatus(outcome.status)
    except ValueError:
        said = f"the executor returned the unknown status {shown(outcome.status)}"
        return Result(action, ResultStatus.FAILED, error=said)
    error = None if outcome.error is None else _clean(str(outcome.error))
    if outcome.data is not None and dumps_foreign(outcome.data) is None:
        said = "its data cannot be written as JSON and was left out"
        return Result(action, status, None, f"{error}; {said}" if error else said)
    return Result(action, status, outcome.data, error)


def _said(error: BaseException) -> str:
    kind = type(error).__name__
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - foreign code
        text = ""
    return _clean(f"{kind}: {text}" if text else kind)


def _clean(text: str) -> str:
    """Text that can be stored: no halves of surrogate pairs."""
    return text.encode("utf-8", "replace").decode()


async def _awaited(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


async def _called(executor: Executor, name: str) -> None:
    method = getattr(executor, name, None)
    if method is not None:
        outcome: Coroutine[Any, Any, None] | None = method()
        await _awaited(outcome)
