"""The enforcer: decide, approve, write the intent, execute, write the outcome.

Nothing is begun that the audit does not already tell of, and nothing is answered that it does not.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import traceback
from abc import ABC, abstractmethod
from collections.abc import Coroutine
from dataclasses import dataclass, replace
from typing import Any

from aegis.audit import (
    AuditLog,
    AuditReader,
    AuditRecord,
    Claim,
    Claimed,
    Committed,
    Operation,
    Outcome,
    ResultStatus,
)
from aegis.codec import dumps, dumps_foreign, encodable, loads_own, written
from aegis.errors import AuditUnavailable, Conflict, OutcomeUnknown, named, shown
from aegis.policy.decision_point import Decider, Snapshot, in_pieces
from aegis.redaction import Redaction
from aegis.timestamps import now_us
from aegis_core import Action, Approval, Decision

__all__ = ["Enforcer", "Executor", "NoOpExecutor", "Result"]

_log = logging.getLogger("aegis.executor")

LONGEST_ERROR = 16 * 1024
"""Of a result, in characters; longer ones are cut."""
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


_NOTHING_DONE = {"executed": True}
_NOTHING_DONE_JSON = '{"executed":true}'
_NOTHING_DONE_MEMBERS = b'"status":"success","data":{"executed":true},"error":null}'


class NoOpExecutor(Executor):
    """Does nothing and says so: the default, for those who only want decisions and the audit."""

    async def execute(self, action: Action) -> Result:
        """Answer `{"executed": true}`."""
        return Result(action, ResultStatus.SUCCESS, _NOTHING_DONE)


@dataclass(slots=True)
class _Asked:
    """What the records of one request have in common."""

    policy_version: int
    key_name: str | None
    operation: Operation = Operation.EXECUTE


class _Repeated(Exception):
    """The request was made before."""

    def __init__(self, earlier: Claimed) -> None:
        super().__init__()
        self.earlier = earlier


_RETRY_LATER = (("retry-after", "1"),)


class Enforcer:
    """Runs actions and records each of them.

    Invariant: an action is given to an executor after its intent was committed, and whatever the
    executor does, the outcome is committed before the answer; an action that is blocked is never
    given to it.

    Args:
        audit: Where the records go.
        reader: Tells what became of earlier requests.
        executor: Does the actions.
        decider: Decides about them.
        session_id: Of actions that name none.
        timeout_s: How long one action may take.
        largest_data_bytes: How much data a result may have, as JSON.
        redaction: Which values are not stored.
    """

    def __init__(
        self,
        audit: AuditLog,
        reader: AuditReader,
        executor: Executor,
        *,
        decider: Decider,
        session_id: str,
        timeout_s: float,
        largest_data_bytes: int,
        redaction: Redaction,
    ) -> None:
        self._audit = audit
        self._reader = reader
        self._executor = executor
        self._decider = decider
        self._session_id = session_id
        self._timeout_s = timeout_s
        self._largest_data_bytes = largest_data_bytes
        self._redaction = redaction
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
        self,
        actions: list[Action],
        snapshot: Snapshot,
        key_name: str | None = None,
        claim: Claim | None = None,
    ) -> list[Result]:
        """Decide, approve, execute and record actions, one after the other.

        Args:
            actions: What is to be done.
            snapshot: The policy to decide by.
            key_name: Whose key asked for it; None where there are no keys.
            claim: The request, where it may be made only once.

        Returns:
            Their results, in order. All records are committed. Of a request that was made before,
            the results of that time, as the audit has them.

        Raises:
            AuditUnavailable: A record was not committed in time; nothing was executed.
            OutcomeUnknown: As before, but something was.
            Conflict: The claim was made for something else, or what it was made for still runs.
        """
        asked = _Asked(snapshot.version, key_name)
        decisions = await self._decider.decide(snapshot.engine, actions)
        try:
            if not self._has_effects:
                # Nothing happens outside, so all records may share one commit.
                results, records = await self._recorded(actions, decisions, asked)
                await self._append(records, claim=claim, is_last=True)
                return results
            # A task of its own: once begun it runs to its record, also when the client has gone.
            task = asyncio.create_task(self._run_all(actions, decisions, asked, claim))
            self._requests.add(task)
            task.add_done_callback(self._requests.discard)
            return await asyncio.shield(task)
        except _Repeated as repeated:
            return await self._repeat(actions, claim, repeated.earlier)

    async def note(
        self, actions: list[Action], decisions: list[Decision], version: int, key_name: str | None
    ) -> None:
        """Record decisions about actions that are not executed.

        Raises:
            AuditUnavailable: They were not committed in time.
        """
        asked = _Asked(version, key_name, Operation.EVALUATE)
        records = []
        async for piece in in_pieces(list(zip(actions, decisions, strict=True))):
            for action, decision in piece:
                if decision.is_allowed:
                    result = Result(action, ResultStatus.DECIDED)
                else:
                    result = _blocked(action, decision)
                records.append(self._record(action, decision, result, asked))
        await self._append(records)

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

    async def _recorded(
        self, actions: list[Action], decisions: list[Decision], asked: _Asked
    ) -> tuple[list[Result], list[AuditRecord]]:
        """What becomes of actions that nothing is done for, and what is recorded of them."""
        results: list[Result] = []
        records: list[AuditRecord] = []
        async for piece in in_pieces(list(zip(actions, decisions, strict=True))):
            for action, decision in piece:
                if decision.is_allowed:
                    result = Result(action, _SUCCESS, _NOTHING_DONE)
                else:
                    result = _blocked(action, decision)
                results.append(result)
                records.append(self._record(action, decision, result, asked))
        return results, records

    async def _append(self, links: list[AuditRecord], **how: Any) -> Committed:
        """Append to the audit what may be withdrawn.

        Raises:
            _Repeated: The claim was made before.
        """
        done = await self._audit.append(links, **how)
        if isinstance(done, Claimed):
            raise _Repeated(done)
        return done

    async def _run_all(
        self,
        actions: list[Action],
        decisions: list[Decision],
        asked: _Asked,
        claim: Claim | None,
    ) -> list[Result]:
        results: list[Result] = []
        request: int | None = None
        executed = 0
        try:
            for action, decision in zip(actions, decisions, strict=True):
                is_last = len(results) + 1 == len(actions)
                if not decision.is_allowed:
                    result = _blocked(action, decision)
                elif self._is_stopping:
                    result = Result(action, ResultStatus.SKIPPED, error="the server is stopping")
                else:
                    result = Result(action, ResultStatus.STARTED)
                is_begun = result.status is ResultStatus.STARTED
                record = self._record(action, decision, result, asked)
                done = await self._append(
                    [record], claim=claim, request=request, is_last=is_last and not is_begun
                )
                request, claim = request or done.request, None
                if is_begun:
                    executed += 1
                    result = await self._execute(action)
                    outcome = Outcome(
                        now_us(), done.first, result.status, self._data_json(result), result.error
                    )
                    await self._audit.append(
                        [outcome], request=request, is_last=is_last, must_stay=True
                    )
                results.append(result)
        except BaseException as error:
            if request is not None:
                self._audit.finish(request)
            if executed and isinstance(error, AuditUnavailable):
                said = f"{executed} of {len(actions)} actions were executed, but {error}"
                raise OutcomeUnknown(
                    f"{said}; look into the audit before you repeat any"
                ) from error
            raise
        return results

    async def _repeat(
        self, actions: list[Action], claim: Claim | None, earlier: Claimed
    ) -> list[Result]:
        """The results of a request that was made before."""
        if claim is None or claim.body_sha256 != earlier.body_sha256:
            raise Conflict(
                "this `Idempotency-Key` was used for another request; make up a new one for each",
                "idempotency_key_reused",
            )
        records = await self._reader.results(earlier.request)
        if records is None:
            raise Conflict(
                "the first request with this `Idempotency-Key` was made, and its records have been"
                " archived since; see there what became of it",
                "request_archived",
            )
        is_running = not earlier.is_done and self._audit.is_alive(earlier.worker)
        # Its outcome may still be on its way to the audit; an executor may also call one `started`.
        if is_running or any(
            record["result_status"] == ResultStatus.STARTED and record["ended"] is None
            for record in records
        ):
            raise Conflict(
                "the first request with this `Idempotency-Key` still runs; ask again later",
                headers=_RETRY_LATER,
            )
        results = [_from_record(record) for record in records]
        results += [
            Result(action, ResultStatus.SKIPPED, error="never begun: the server ended before it")
            for action in actions[len(results) :]
        ]
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
            _log.warning("%s %s; it is told to end", shown(action.type), said)
        # It is told to end, but not waited for: it may not listen.
        task.cancel()
        said = f"{said}; whether it took effect is unknown"
        return Result(action, ResultStatus.INTERRUPTED, error=said)

    async def _guarded(self, action: Action) -> Result:
        # A copy: an executor may change what it is given, but not what the answer is about.
        given = replace(action, params=dict(action.params))
        try:
            result = self._checked(action, await _awaited(self._executor.execute(given)))
            verify = getattr(self._executor, "verify", None)
            if result.ok and verify is not None:
                seen = replace(result, action=given, data=loads_own(dumps(result.data)))
                if not await _awaited(verify(given, seen)):
                    said = "the executor could not verify its effect"
                    _log.warning("%s: %s", shown(action.type), said)
                    return Result(action, ResultStatus.FAILED, result.data, said)
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001 - foreign code
            # Whatever it raises must end in a record, and must not end the server.
            self._tell(action, error)
            return Result(action, ResultStatus.FAILED, error=self._error(action, _said(error)))
        return result

    def _checked(self, action: Action, outcome: object) -> Result:
        """What an executor returned, as a result of the very action that it was given.

        Its data are those of this moment, as JSON has them: what is answered is what is recorded,
        whatever becomes of the objects that they were made of.
        """
        if not isinstance(outcome, Result):
            said = f"the executor returned {named(outcome)}, not a Result; what it did is unknown"
            _log.error("%s: %s", shown(action.type), said)
            return Result(action, ResultStatus.FAILED, error=said)
        try:
            status = ResultStatus(outcome.status)
        except ValueError:
            said = f"the executor returned the unknown status {shown(outcome.status)}"
            _log.error("%s: %s", shown(action.type), said)
            return Result(action, ResultStatus.FAILED, error=said)
        error = None if outcome.error is None else self._error(action, str(outcome.error))
        data = dumps_foreign(outcome.data)
        if len(data) > self._largest_data_bytes:
            largest = self._largest_data_bytes
            data = dumps({"omitted": "too large", "bytes": len(data), "max_bytes": largest})
        return Result(action, status, None if data == b"null" else written(data), error)

    def _tell(self, action: Action, error: BaseException) -> None:
        """Write to the log what an executor raised, and where."""
        try:
            text = "".join(traceback.format_exception(error))
        except BaseException:  # noqa: BLE001 - foreign code
            text = _said(error)
        text = self._redaction.hide(encodable(text).rstrip(), action.params)
        _log.error("the executor failed on %s:\n%s", shown(action.type), text[-LONGEST_ERROR:])

    def _error(self, action: Action, text: str) -> str:
        """Words of an executor that can be stored: not endless, and without the action's secrets."""
        text = self._redaction.hide(encodable(text), action.params)
        if len(text) <= LONGEST_ERROR:
            return text
        return f"{text[:LONGEST_ERROR]}… ({len(text) - LONGEST_ERROR} characters were left out)"

    def _record(
        self, action: Action, decision: Decision, result: Result, asked: _Asked
    ) -> AuditRecord:
        status, approval, operation = result.status, decision.approval, asked.operation
        is_approved = approval is _APPROVE and operation is _EXECUTE
        return AuditRecord(
            now_us(),
            action.session_id or self._session_id,
            action.type,
            action.target,
            self._params_json(action) if action.params else "{}",
            action.description or None,
            decision.risk_level,
            approval,
            decision.matched_rule,
            AUTO_APPROVED if is_approved else None,
            status,
            _NOTHING_DONE_JSON if result.data is _NOTHING_DONE else self._data_json(result),
            result.error,
            action.agent_id or None,
            action.parent_agent_id or None,
            action.chain_id or None,
            action.chain_depth,
            asked.policy_version,
            asked.key_name,
            operation,
            self._audit.worker if status is _STARTED else None,
        )

    def _params_json(self, action: Action) -> str:
        """An action's parameters as they are recorded."""
        return self._redaction.json(dumps_foreign(dict(action.params))).decode()

    def _data_json(self, result: Result) -> str | None:
        """A result's data as they are recorded."""
        if result.data is None:
            return None
        return self._redaction.json(dumps(result.data)).decode()


# A member of an enumeration is looked up each time that it is named.
_APPROVE, _EXECUTE = Approval.APPROVE, Operation.EXECUTE
_STARTED, _SUCCESS = ResultStatus.STARTED, ResultStatus.SUCCESS


def _from_record(record: dict[str, Any]) -> Result:
    """A result as the audit has it."""
    data = record["result_data"]
    return Result(
        Action(record["action_type"], record["action_target"]),
        ResultStatus(record["result_status"]),
        None if data is None else written(data),
        record["result_error"],
    )


def result_json(result: Result) -> bytes:
    """A result as the API answers it."""
    if result.data is _NOTHING_DONE:
        return b'{"action_type":%b,"target":%b,%b' % (
            dumps(result.action.type),
            dumps(result.action.target),
            _NOTHING_DONE_MEMBERS,
        )
    return b'{"action_type":%b,"target":%b,"status":%b,"data":%b,"error":%b}' % (
        dumps(result.action.type),
        dumps(result.action.target),
        dumps(result.status.value),
        dumps(result.data),
        dumps(result.error),
    )


def _blocked(action: Action, decision: Decision) -> Result:
    said = f"Blocked by policy rule: {decision.matched_rule}"
    return Result(action, ResultStatus.BLOCKED, error=said)


def _said(error: BaseException) -> str:
    kind = _KIND.__get__(type(error))
    try:
        text = encodable(str(error))
    except BaseException:  # noqa: BLE001 - foreign code
        text = ""
    return f"{kind}: {text}" if text else encodable(kind)


_KIND = vars(type)["__name__"]  # a class of classes may have a name of its own


async def _awaited(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


async def _called(executor: Executor, name: str) -> None:
    method = getattr(executor, name, None)
    if method is not None:
        outcome: Coroutine[Any, Any, None] | None = method()
        await _awaited(outcome)
