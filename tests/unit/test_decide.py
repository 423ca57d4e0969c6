"""The one door of every protocol: agents bound to keys, decisions, approvals, records, results."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from aegis import Action, Executor, Result, ResultStatus
from aegis.audit import AuditFilter, AuditLog, AuditReader, Operation
from aegis.auth.keys import Key
from aegis.auth.roles import Permission
from aegis.codec import dumps
from aegis.config import AuditDecisions
from aegis.errors import AuditUnavailable, Forbidden
from aegis.execution import enforcer
from aegis.execution.approvals import Approved, Approver, AutoApprover, Denied, Ruling
from aegis.execution.decide import ActionService
from aegis.execution.enforcer import Enforcer
from aegis.execution.executors import GuardedExecutor, NoOpExecutor, ResultBudget
from aegis.execution.records import Recorder, RequestContext
from aegis.policy.compiled_cache import compile_policy
from aegis.policy.decision_point import Decider, Snapshot
from aegis.policy.history import PolicyVersion
from aegis.policy.loader import load_text
from aegis.redaction import Redaction
from aegis.store.database import Store
from aegis.wire import Actions
from aegis.wire_batch import read_questions
from aegis_core import Decision

POLICY = compile_policy(
    load_text(
        "rules:\n"
        "  - {name: of_bots, match: {type: '*', agent: 'bot*'}, risk_level: low, approval: auto}\n"
        "  - {name: reads, match: {type: 'read'}, risk_level: low, approval: auto}\n"
        "  - {name: pays, match: {type: 'pay'}, risk_level: high, approval: approve}\n"
    )
)
SNAPSHOT = Snapshot(POLICY, PolicyVersion(1, POLICY.sha256, "file", 0))
READ, PAY, BLOCKED = Action("read", "t"), Action("pay", "t"), Action("delete", "t")
BOUND = Key("bound", bytes(32), frozenset({Permission.DECIDE}), agents=("bot-1", "bot-2"))


class Asked:
    """An approver that answers the same each time, and remembers what it was asked."""

    def __init__(self, ruling: Ruling | Exception) -> None:
        self.ruling = ruling
        self.requests: list[tuple[Action, Decision, RequestContext]] = []

    async def ask(self, action: Action, decision: Decision, context: RequestContext) -> Ruling:
        self.requests.append((action, decision, context))
        if isinstance(self.ruling, Exception):
            raise self.ruling
        return self.ruling


class Counting(Executor):
    """Succeeds, and counts."""

    def __init__(self) -> None:
        self.executed: list[str] = []

    async def execute(self, action: Action) -> Result:
        self.executed.append(action.type)
        return Result(action, ResultStatus.SUCCESS, {"done": True})


def with_service(
    do: Callable[[ActionService], Awaitable[Any]],
    *,
    approver: Approver | None = None,
    executor: Executor | None = None,
    audit_decisions: AuditDecisions = AuditDecisions.NONE,
) -> tuple[Any, list[dict[str, Any]]]:
    """What is done with a service gives, and the records that it leaves."""

    async def run() -> tuple[Any, list[dict[str, Any]]]:
        store = Store(":memory:")
        log = AuditLog(store, most_queued=1_000, timeout_s=10)
        reader, redaction, decider = AuditReader(store), Redaction(), Decider(1_000_000)
        guarded = GuardedExecutor(
            executor or NoOpExecutor(), timeout_s=10, max_data_bytes=1_000, redaction=redaction
        )
        recorder = Recorder(session_id="s", worker=log.worker, redaction=redaction)
        runs = Enforcer(
            log, reader, guarded, approver=approver or AutoApprover(), recorder=recorder
        )
        await runs.setup()
        service = ActionService(lambda: SNAPSHOT, decider, lambda: runs, audit_decisions)
        try:
            done = await do(service)
            return done, [record for page in reader.read(AuditFilter()) for record in page]
        finally:
            decider.close()
            log.close()
            reader.close()
            store.close()

    return asyncio.run(run())


def executing(
    *actions: Action, caller: Key | None = None
) -> Callable[[ActionService], Awaitable[list[Result]]]:
    return lambda service: service.execute(
        Actions(actions, len(actions) > 1), RequestContext(SNAPSHOT, caller, request_id="r-1")
    )


executors = pytest.mark.parametrize("kind", [NoOpExecutor, Counting])


# --- approvals -----------------------------------------------------------------------------------


@executors
def test_approver_is_asked_once_for_each_approve_and_for_nothing_else(kind: type[Executor]) -> None:
    approver = Asked(Approved("by alice"))
    results, records = with_service(
        executing(READ, PAY, BLOCKED, PAY), approver=approver, executor=kind()
    )
    assert [action.type for action, _, _ in approver.requests] == ["pay", "pay"]
    assert [result.status for result in results] == ["success", "success", "blocked", "success"]
    assert [record["human_decision"] for record in records] == [None, "by alice", None, "by alice"]


@executors
def test_denied_action_is_recorded_and_never_executed(kind: type[Executor]) -> None:
    executor = kind()
    results, records = with_service(
        executing(PAY, READ), approver=Asked(Denied("denied", "not this month")), executor=executor
    )
    assert [result.status for result in results] == ["denied", "success"]
    assert results[0].error == "not this month"
    assert [record["result_status"] for record in records] == ["denied", "success"]
    assert records[0]["human_decision"] == "denied"
    assert getattr(executor, "executed", ["read"]) == ["read"]


@executors
def test_action_whose_approver_fails_is_neither_recorded_nor_executed(kind: type[Executor]) -> None:
    executor = kind()

    async def do(service: ActionService) -> None:
        with pytest.raises(AuditUnavailable, match="no approvals now"):
            await executing(PAY)(service)

    approver = Asked(AuditUnavailable("no approvals now"))
    _, records = with_service(do, approver=approver, executor=executor)
    assert (records, getattr(executor, "executed", [])) == ([], [])


def test_approver_knows_the_bound_agent_the_caller_the_policy_and_the_request() -> None:
    approver = Asked(Approved("yes"))
    key = Key("one", bytes(32), frozenset({Permission.DECIDE}), agents=("payer",))
    with_service(executing(PAY, caller=key), approver=approver)
    ((action, decision, context),) = approver.requests
    assert (action.agent_id, decision.matched_rule) == ("payer", "pays")
    assert (context.caller, context.snapshot, context.request_id) == (key, SNAPSHOT, "r-1")


def test_evaluating_asks_no_approver() -> None:
    approver = Asked(Approved("yes"))
    context = RequestContext(SNAPSHOT, None, Operation.EVALUATE)
    decisions, records = with_service(
        lambda service: service.evaluate(Actions([PAY], False), context),
        approver=approver,
        audit_decisions=AuditDecisions.ALL,
    )
    assert decisions[0].is_allowed
    assert approver.requests == []
    assert (records[0]["result_status"], records[0]["human_decision"]) == ("decided", None)


# --- agents of keys ------------------------------------------------------------------------------


def questions_of(*actions: dict[str, Any], is_plain: bool) -> Any:
    items = [action if is_plain else action | {"description": "d"} for action in actions]
    questions = read_questions(dumps({"actions": items}), 10, 64)
    assert (questions.read_params is not None) is is_plain
    return questions


@pytest.mark.parametrize("is_plain", [True, False])
def test_key_decides_only_for_its_agents_however_a_batch_is_read(is_plain: bool) -> None:
    good = {"action_type": "x", "agent_id": "bot-2"}
    questions = questions_of(good, good | {"agent_id": "human"}, is_plain=is_plain)

    async def do(service: ActionService) -> Any:
        with pytest.raises(Forbidden, match=r"`actions\[1\]\.agent_id` `human`: this key speaks"):
            service.decide(questions, BOUND, SNAPSHOT)
        return service.decide(questions_of(good, is_plain=is_plain), BOUND, SNAPSHOT)

    answer, _ = with_service(do)
    assert [one["matched_rule"] for one in json.loads(answer)] == ["of_bots"]


def test_object_of_a_key_with_agents_is_left_to_the_way_that_binds_it() -> None:
    value = {"action_type": "read", "agent_id": "human"}

    async def do(service: ActionService) -> Any:
        body = dumps(value)
        assert service.decide_object(value, body, None, SNAPSHOT) is not None
        return service.decide_object(value, body, BOUND, SNAPSHOT)

    assert with_service(do)[0] is None


@pytest.mark.parametrize("is_batch", [True, False])
@pytest.mark.parametrize("way", ["evaluate", "execute"])
def test_key_neither_evaluates_nor_executes_for_other_agents(way: str, is_batch: bool) -> None:
    async def do(service: ActionService) -> None:
        member = r"actions\[0\]\.agent_id" if is_batch else "agent_id"
        with pytest.raises(Forbidden, match=f"^`{member}` `human`"):
            await getattr(service, way)(
                Actions([Action("read", agent_id="human")], is_batch),
                RequestContext(SNAPSHOT, BOUND),
            )

    assert with_service(do, audit_decisions=AuditDecisions.ALL)[1] == []


# --- what results may hold -----------------------------------------------------------------------


class Talkative(Executor):
    """Gives much data and a long error."""

    async def execute(self, action: Action) -> Result:
        return Result(action, ResultStatus.FAILED, "x" * 600, "e" * 400)


def test_results_of_one_request_share_a_bound() -> None:
    async def run() -> tuple[list[Result], int]:
        guarded = GuardedExecutor(
            Talkative(), timeout_s=10, max_data_bytes=1_000, redaction=Redaction()
        )
        budget = ResultBudget(1_500)
        return [await guarded.execute(READ, budget) for _ in range(3)], budget.left_bytes

    (first, second, third), left = asyncio.run(run())
    assert len(dumps(first.data)) == 602
    assert first.error == "e" * 400
    assert json.loads(dumps(second.data)) == {
        "omitted": "too large",
        "bytes": 602,
        "max_bytes": 498,
    }
    assert json.loads(dumps(third.data))["omitted"] == "too large"
    assert third.error == "e" * 256 + "… (144 characters were left out)"
    assert left == 0


def test_actions_of_a_batch_share_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(enforcer, "ResultBudget", lambda: ResultBudget(1_500))
    results, records = with_service(executing(READ, READ, READ), executor=Talkative())
    answered = [json.loads(dumps(result.data)) for result in results]
    assert answered[1] == {"omitted": "too large", "bytes": 602, "max_bytes": 498}
    assert [json.loads(record["result_data"]) for record in records] == answered


def test_nothing_is_nothing_when_the_bound_is_reached() -> None:
    async def run() -> Result:
        guarded = GuardedExecutor(
            NothingGiven(), timeout_s=10, max_data_bytes=1_000, redaction=Redaction()
        )
        return await guarded.execute(READ, ResultBudget(0))

    assert asyncio.run(run()) == Result(READ, ResultStatus.SUCCESS)


class NothingGiven(Executor):
    """Succeeds without data."""

    async def execute(self, action: Action) -> Result:
        return Result(action, ResultStatus.SUCCESS)
