"""The enforcer: approve, write the intent, execute, write the outcome.

No action starts before the audit tells of it, and nothing is answered that the audit does not tell.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, assert_never

from aegis.audit import AuditLog, AuditReader, Claim, Claimed, Committed, ResultStatus
from aegis.audit.entries import Entry
from aegis.errors import AuditUnavailable, Conflict, OutcomeUnknown
from aegis.execution.approvals import Approved, Approver, Denied
from aegis.execution.executors import NO_OP_DATA, GuardedExecutor, Result, ResultBudget
from aegis.execution.records import Recorder, RequestContext, blocked_result, result_of_record
from aegis.policy.decision_point import PIECE
from aegis_core import Action, Approval, Decision

__all__ = ["Enforcer"]

_LAST_RECORDS_S = 2.0
"""For the records of what was interrupted when the server stops."""
_RETRY_LATER = (("retry-after", "1"),)
# A member of an enumeration is looked up each time that it is named.
_APPROVE = Approval.APPROVE
_STARTED, _SUCCESS, _DENIED = ResultStatus.STARTED, ResultStatus.SUCCESS, ResultStatus.DENIED


class _Repeated(Exception):
    """The request was made before."""

    def __init__(self, earlier: Claimed) -> None:
        super().__init__()
        self.earlier = earlier


class Enforcer:
    """Runs actions that were decided and records each of them.

    Invariant: an action is given to the executor after its intent was committed, and whatever the
    executor does, the outcome is committed before the answer; an action that is blocked or denied is
    never given to it.

    Args:
        audit: Where the records go.
        reader: Tells what became of earlier requests.
        executor: Does the actions.
        approver: Is asked about actions whose decision is `approve`.
        recorder: Makes the records.
    """

    def __init__(
        self,
        audit: AuditLog,
        reader: AuditReader,
        executor: GuardedExecutor,
        *,
        approver: Approver,
        recorder: Recorder,
    ) -> None:
        self._audit = audit
        self._reader = reader
        self._executor = executor
        self._approver = approver
        self._recorder = recorder
        self._requests: set[asyncio.Task[list[Result]]] = set()

    async def setup(self) -> None:
        """Get the executor ready; called once, on the loop that serves."""
        await self._executor.setup()

    async def run(
        self,
        actions: Sequence[Action],
        decisions: Sequence[Decision],
        context: RequestContext,
        claim: Claim | None = None,
    ) -> list[Result]:
        """Approve, execute and record actions, one after the other.

        Args:
            actions: What is to be done.
            decisions: About each of them.
            context: Of the request.
            claim: The request, if it may be made only once.

        Returns:
            Their results, in order. All records are committed. Of a request that was made before,
            the results of that time, as the audit has them.

        Raises:
            AuditUnavailable: A record was not committed in time; nothing was executed.
            OutcomeUnknown: As before, but something was.
            Conflict: The claim was made for something else, or what it was made for still runs.
        """
        try:
            if not self._executor.has_effects:
                return await self._record_all(actions, decisions, context, claim)
            # A task of its own: once started it runs to its record, even if the client has gone.
            task = asyncio.create_task(self._run_all(actions, decisions, context, claim))
            self._requests.add(task)
            task.add_done_callback(self._requests.discard)
            return await asyncio.shield(task)
        except _Repeated as repeated:
            return await self._repeat(actions, claim, repeated.earlier)

    async def record_decisions(
        self, decided: Sequence[tuple[Action, Decision]], context: RequestContext
    ) -> None:
        """Record decisions about actions that are not executed.

        Raises:
            AuditUnavailable: They were not committed in time.
        """
        records: list[Entry] = []
        for action, decision in decided:
            if decision.is_allowed:
                result = Result(action, ResultStatus.DECIDED)
            else:
                result = blocked_result(action, decision)
            records.append(self._recorder.record(action, decision, result, context))
            if not len(records) % PIECE:
                await asyncio.sleep(0)
        await self._append(records)

    async def drain(self, timeout_s: float) -> None:
        """Let what runs come to its end; what still runs after the timeout is interrupted."""
        if self._requests:
            await asyncio.wait(self._requests, timeout=timeout_s)
        self._executor.stop()
        if self._requests:
            await asyncio.wait(self._requests, timeout=_LAST_RECORDS_S)

    async def teardown(self) -> None:
        """Let the executor go."""
        await self._executor.teardown()

    async def _ask(
        self, action: Action, decision: Decision, context: RequestContext
    ) -> tuple[Result | None, str | None]:
        """Ask whether an action that needs an approval may start.

        Returns:
            Its result, if it may not; and what the record says of who approved or denied it.
        """
        ruling = await self._approver.ask(action, decision, context)
        match ruling:
            case Approved():
                return None, ruling.human_decision
            case Denied():
                return Result(action, _DENIED, error=ruling.reason), ruling.human_decision
            case _:
                assert_never(ruling)

    async def _record_all(
        self,
        actions: Sequence[Action],
        decisions: Sequence[Decision],
        context: RequestContext,
        claim: Claim | None,
    ) -> list[Result]:
        """Run actions that have no effect outside: so all their records may share one commit."""
        results: list[Result] = []
        records: list[Entry] = []
        record = self._recorder.record
        for action, decision in zip(actions, decisions, strict=True):
            result, human_decision = None, None
            if not decision.is_allowed:
                result = blocked_result(action, decision)
            elif decision.approval is _APPROVE:
                result, human_decision = await self._ask(action, decision, context)
            if result is None:
                result = Result(action, _SUCCESS, NO_OP_DATA)
            results.append(result)
            records.append(record(action, decision, result, context, human_decision))
            if not len(records) % PIECE:
                await asyncio.sleep(0)
        await self._append(records, claim=claim, is_last=True)
        return results

    async def _append(self, entries: Sequence[Entry], **options: Any) -> Committed:
        """Append to the audit what may be withdrawn.

        Raises:
            _Repeated: The claim was made before.
        """
        committed = await self._audit.append(entries, **options)
        if isinstance(committed, Claimed):
            raise _Repeated(committed)
        return committed

    async def _run_all(
        self,
        actions: Sequence[Action],
        decisions: Sequence[Decision],
        context: RequestContext,
        claim: Claim | None,
    ) -> list[Result]:
        results: list[Result] = []
        request: int | None = None
        executed = 0
        budget = ResultBudget()
        try:
            for action, decision in zip(actions, decisions, strict=True):
                is_last = len(results) + 1 == len(actions)
                result, human_decision = None, None
                if not decision.is_allowed:
                    result = blocked_result(action, decision)
                elif decision.approval is _APPROVE:
                    result, human_decision = await self._ask(action, decision, context)
                if result is None and self._executor.is_stopping:
                    result = Result(action, ResultStatus.SKIPPED, error="the server is stopping")
                intent = result or Result(action, _STARTED)
                record = self._recorder.record(action, decision, intent, context, human_decision)
                committed = await self._append(
                    [record], claim=claim, request=request, is_last=is_last and result is not None
                )
                request, claim = request or committed.request, None
                if result is None:
                    executed += 1
                    result = await self._executor.execute(action, budget)
                    outcome = self._recorder.outcome(committed.first, result)
                    await self._audit.append(
                        [outcome], request=request, is_last=is_last, must_stay=True
                    )
                results.append(result)
        except BaseException as error:
            if request is not None:
                self._audit.finish(request)
            if executed and isinstance(error, AuditUnavailable):
                message = f"{executed} of {len(actions)} actions were executed, but {error}"
                raise OutcomeUnknown(
                    f"{message}; look into the audit before you repeat any"
                ) from error
            raise
        return results

    async def _repeat(
        self, actions: Sequence[Action], claim: Claim | None, earlier: Claimed
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
        results = [result_of_record(record) for record in records]
        results += [
            Result(action, ResultStatus.SKIPPED, error="not started: the server ended before it")
            for action in actions[len(results) :]
        ]
        return results
