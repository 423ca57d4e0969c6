"""Executors: whatever one does, each action gets a result and a record."""

from __future__ import annotations

import asyncio
import json
from collections import UserDict, deque, namedtuple
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from aegis import Action, Executor, Result, ResultStatus
from aegis.config import Settings
from aegis.errors import ConfigError
from aegis.policy.compiled_cache import CompiledFiles
from aegis.server.composition import build_app
from aegis.server.http.app import App
from tests.contract.client import (
    AUDIT,
    EXECUTE,
    POLICY,
    Client,
    StartupFailed,
    app_of,
    eventually,
    living,
    served,
)

READ = {"action_type": "read", "target": "t"}


class Calling(Executor):
    """Does what a function does, and remembers for which actions."""

    def __init__(self, do: Callable[[Action], Awaitable[Any]] | None = None) -> None:
        self.do = do
        self.seen: list[str] = []
        self.set_up = 0
        self.torn_down = 0

    async def execute(self, action: Action) -> Result:
        self.seen.append(action.type)
        if self.do is None:
            return Result(action, ResultStatus.SUCCESS, {"did": action.type})
        outcome: Result = await self.do(action)
        return outcome

    async def setup(self) -> None:
        self.set_up += 1

    async def teardown(self) -> None:
        self.torn_down += 1


def returning(outcome: Any) -> Calling:
    """An executor that returns this."""

    async def do(_: Action) -> Any:
        return outcome

    return Calling(do)


def giving(data: Any) -> Calling:
    """An executor that succeeds with this."""

    async def do(action: Action) -> Any:
        return Result(action, ResultStatus.SUCCESS, data)

    return Calling(do)


def raising(error: BaseException) -> Calling:
    """An executor that raises this."""

    async def do(_: Action) -> Any:
        raise error

    return Calling(do)


def executed(executor: Executor, action: dict[str, Any] | None = None) -> tuple[Any, Any]:
    """The answer and the one record of one action."""
    with served(app_of(executor=executor)) as client:
        reply = client.post(EXECUTE, action or READ)
        assert reply.status == 200, reply.body
        (record,) = client.records()
        return reply.json, record


def with_timeout(executor: Executor, execute_timeout_s: float) -> App:
    """An application whose actions may take this long."""
    settings = Settings(audit_db=":memory:", execute_timeout=execute_timeout_s)
    return build_app(settings, file=CompiledFiles(":memory:").load(POLICY), executor=executor)


# --- what reaches it -----------------------------------------------------------------------------


def test_only_allowed_actions_reach_the_executor() -> None:
    executor = Calling()
    with served(app_of(executor=executor)) as client:
        types = ["read", "delete", "write", "unheard of", "read it"]
        replies = client.post(EXECUTE, [{"type": type_} for type_ in types]).json
        assert executor.seen == ["read", "write", "read it"]
        assert [reply["status"] for reply in replies] == [
            "success",
            "blocked",
            "success",
            "blocked",
            "success",
        ]


def test_undecidable_action_never_reaches_the_executor() -> None:
    executor = Calling()
    policy = "rules: [{approval: auto, conditions: {param_gt: {n: 1}}}]"
    with served(app_of(policy, executor=executor)) as client:
        reply = client.post(EXECUTE, {"type": "x", "params": {"n": "many"}}).json
        assert (reply["status"], executor.seen) == ("blocked", [])


def test_evaluation_never_reaches_the_executor() -> None:
    executor = Calling()
    with served(app_of(executor=executor)) as client:
        client.post("/api/v1/evaluate", READ)
        assert executor.seen == []


def test_executor_gets_the_whole_action() -> None:
    seen: list[Action] = []

    async def do(action: Action) -> Result:
        seen.append(action)
        return Result(action, ResultStatus.SUCCESS)

    sent = {
        "action_type": "read",
        "target": "t",
        "params": {"password": "visible", "n": [1, 2.5, None]},
        "description": "d",
        "agent_id": "a",
        "session_id": "s",
        "parent_agent_id": "p",
        "chain_id": "c",
        "chain_depth": 3,
    }
    executed(Calling(do), sent)
    params = {"password": "visible", "n": [1, 2.5, None]}
    assert seen == [Action("read", "t", params, "d", "a", "s", "p", "c", 3)]


def test_batch_runs_in_order_one_after_the_other() -> None:
    events: list[str] = []

    async def do(action: Action) -> Result:
        events.append(f"begin {action.target}")
        await asyncio.sleep(0)
        events.append(f"end {action.target}")
        return Result(action, ResultStatus.SUCCESS)

    with served(app_of(executor=Calling(do))) as client:
        client.post(EXECUTE, [{"type": "read", "target": str(n)} for n in range(3)])
    assert events == ["begin 0", "end 0", "begin 1", "end 1", "begin 2", "end 2"]


# --- what comes back -----------------------------------------------------------------------------


def test_result_is_answered_and_recorded() -> None:
    answer, record = executed(giving({"rows": [1, "zwei", None, True]}))
    assert answer == {
        "action_type": "read",
        "target": "t",
        "status": "success",
        "data": {"rows": [1, "zwei", None, True]},
        "error": None,
    }
    assert record["result_status"] == "success"
    assert json.loads(record["result_data"]) == {"rows": [1, "zwei", None, True]}
    assert record["result_error"] is None


@pytest.mark.parametrize("status", list(ResultStatus))
def test_status_of_the_executor_is_kept(status: ResultStatus) -> None:
    answer, record = executed(returning(Result(Action("other"), status, None, "as it said")))
    assert (answer["status"], answer["error"]) == (status.value, "as it said")
    assert (record["result_status"], record["result_error"]) == (status.value, "as it said")


def test_answer_is_about_the_action_that_was_asked_for() -> None:
    answer, record = executed(returning(Result(Action("other", "elsewhere"), ResultStatus.SUCCESS)))
    assert (answer["action_type"], answer["target"]) == ("read", "t")
    assert (record["action_type"], record["action_target"]) == ("read", "t")


def test_executor_that_changes_its_action_changes_neither_answer_nor_record() -> None:
    async def do(action: Action) -> Result:
        for name in ("type", "target", "agent_id", "params"):
            with suppress(AttributeError):
                object.__setattr__(action, name, 5)
        action.params.clear()  # type: ignore[attr-defined]
        return Result(action, ResultStatus.SUCCESS)

    answer, record = executed(Calling(do), READ | {"params": {"a": 1}})
    assert (answer["action_type"], answer["target"]) == ("read", "t")
    assert (record["action_type"], record["action_target"]) == ("read", "t")
    assert (record["action_params"], record["agent_id"]) == ('{"a":1}', None)


def test_verification_that_changes_the_data_changes_neither_answer_nor_record() -> None:
    def check(result: Result) -> bool:
        result.data["did"] = {1, 2}
        return True

    answer, record = executed(Verifying(check))
    assert answer["data"] == json.loads(record["result_data"]) == {"did": "read"}


def test_record_keeps_the_params_as_they_were_asked() -> None:
    async def do(action: Action) -> Result:
        assert isinstance(action.params, dict)
        action.params["paths"].append("/tmp/other")
        action.params.pop("force")
        return Result(action, ResultStatus.SUCCESS)

    _, record = executed(Calling(do), READ | {"params": {"paths": ["/etc"], "force": True}})
    assert json.loads(record["action_params"]) == {"paths": ["/etc"], "force": True}


@pytest.mark.parametrize("data", [0, False, "", [], {}, 1.5, "text", [None]])
def test_any_json_may_be_data(data: Any) -> None:
    answer, record = executed(giving(data))
    assert (answer["data"], type(answer["data"])) == (data, type(data))
    assert json.loads(record["result_data"]) == data


def test_no_data_is_null() -> None:
    answer, record = executed(giving(None))
    assert answer["data"] is record["result_data"] is None


class NoWords(Exception):
    """An exception that cannot even say what it is."""

    def __str__(self) -> str:
        raise RuntimeError("and neither can this")


class Ending(BaseException):
    """What some libraries end their tasks with."""


class OddText(str):
    """Text that is none when it is used."""

    __slots__ = ()

    def __format__(self, _: str) -> str:
        raise RuntimeError("not like this")

    def encode(self, *_: Any, **__: Any) -> bytes:
        raise RuntimeError("not like this either")


class OddWords(Exception):
    def __str__(self) -> str:
        return OddText("odd")


class LastWords(Exception):
    def __str__(self) -> str:
        raise SystemExit(1)


class Nameless(type):
    @property
    def __name__(cls) -> str:  # type: ignore[override]
        raise RuntimeError("no name")


class WithoutName(Exception, metaclass=Nameless):
    """An exception whose class does not say its name."""


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("the disk is gone"),
        ValueError(),
        KeyError("k"),
        TimeoutError(),
        StopAsyncIteration(),
        SystemExit(3),
        KeyboardInterrupt(),
        RuntimeError("half of a pair: \ud800"),
        NoWords(),
        OddWords(),
        LastWords(),
        WithoutName("why"),
        Ending("over"),
        BaseExceptionGroup("several", [Ending("over")]),
    ],
    ids=lambda error: type.__dict__["__name__"].__get__(type(error)),
)
def test_executor_that_raises_has_failed_and_is_recorded(error: BaseException) -> None:
    answer, record = executed(raising(error))
    assert answer["status"] == record["result_status"] == "failed"
    assert answer["error"] == record["result_error"]
    assert answer["error"]
    assert "Traceback" not in answer["error"]


def test_what_was_raised_is_said() -> None:
    answer, _ = executed(raising(RuntimeError("the disk is gone")))
    assert "the disk is gone" in answer["error"]


def test_server_goes_on_after_an_executor_that_wants_to_exit() -> None:
    with served(app_of(executor=raising(SystemExit(1)))) as client:
        for _ in range(3):
            assert client.post(EXECUTE, READ).json["status"] == "failed"
        assert len(client.records()) == 3


def test_executor_that_cancels_itself_is_interrupted() -> None:
    answer, record = executed(raising(asyncio.CancelledError()))
    assert answer["status"] == record["result_status"] == "interrupted"


@pytest.mark.parametrize("outcome", [None, True, {"status": "success"}, "success", [], 0, Result])
def test_executor_that_returns_no_result_has_failed(outcome: Any) -> None:
    answer, record = executed(returning(outcome))
    assert answer["status"] == record["result_status"] == "failed"
    assert "not a Result" in answer["error"]


@pytest.mark.parametrize("status", ["done", "SUCCESS", "", None, 1, [], {}])
def test_unknown_status_has_failed(status: Any) -> None:
    answer, record = executed(returning(Result(Action("read"), status)))
    assert answer["status"] == record["result_status"] == "failed"
    assert "unknown status" in answer["error"]


@pytest.mark.parametrize("status", ["success", "skipped"])
def test_status_may_be_plain_text(status: Any) -> None:
    answer, record = executed(returning(Result(Action("read"), status)))
    assert answer["status"] == record["result_status"] == status


class Unprintable:
    """A value that cannot be turned into text."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


def circular() -> list[Any]:
    inside: list[Any] = []
    inside.append(inside)
    return inside


@pytest.mark.parametrize(
    ("odd", "written"),
    [
        ("caf\udce9", "caf\\udce9"),
        ({"caf\udce9": 1}, {"caf\\udce9": 1}),
        ({(1, 2): 3}, {"(1, 2)": 3}),
        (2**70, 2**70),
        (Unprintable(), "[UNWRITABLE]"),
        (circular(), ["[UNWRITABLE]"]),
        (float("nan"), None),
    ],
    ids=["half", "half a key", "tuple key", "big", "unprintable", "circular", "nan"],
)
def test_odd_part_of_data_is_replaced_and_the_rest_kept(odd: Any, written: Any) -> None:
    answer, record = executed(giving({"rows": [1, "a"], "odd": odd, "token": odd}))
    assert answer["status"] == record["result_status"] == "success"
    assert answer["error"] is record["result_error"] is None
    assert answer["data"] == {"rows": [1, "a"], "odd": written, "token": written}
    assert json.loads(record["result_data"]) == answer["data"] | {"token": "[REDACTED]"}


LARGE = [2**64, -(2**63) - 1, 100000000000000000001, 10**400 + 1]


@pytest.mark.parametrize("number", LARGE, ids=len(LARGE) * ["n"])
def test_integer_is_exact_to_executor_answer_and_record(number: int) -> None:
    seen: list[Any] = []

    async def do(action: Action) -> Any:
        seen.append(action.params)
        return Result(action, ResultStatus.SUCCESS, action.params)

    params = {"wei": [number, 1.0], "token": number}
    answer, record = executed(Calling(do), READ | {"params": params})
    assert repr(seen) == repr([params])
    assert repr(answer["data"]) == repr(params)
    stored = f'{{"wei":[{number},1.0],"token":"[REDACTED]"}}'
    assert record["action_params"] == record["result_data"] == stored


def test_data_over_the_limit_are_left_out_of_answer_and_record() -> None:
    settings = Settings(audit_db=":memory:", max_result_bytes=300)
    file = CompiledFiles(":memory:").load(POLICY)
    for size, data in ((300, "x" * 298), (301, "x" * 299)):
        app = build_app(settings, file=file, executor=giving(data))
        with served(app) as client:
            answer = client.post(EXECUTE, READ).json
            (record,) = client.records()
        omitted = {"omitted": "too large", "bytes": size, "max_bytes": 300}
        assert answer["status"] == record["result_status"] == "success"
        assert answer["error"] is record["result_error"] is None
        assert answer["data"] == (data if size == 300 else omitted)
        assert json.loads(record["result_data"]) == answer["data"]


def test_error_over_the_limit_is_cut_in_answer_and_record() -> None:
    answer, record = executed(raising(RuntimeError("x" * 300_000)))
    assert answer["error"] == record["result_error"]
    assert answer["error"].startswith("RuntimeError: xxx")
    assert answer["error"].endswith("characters were left out)")
    assert len(answer["error"]) < 17_000


class Version:
    """A value that JSON has not, but that has a text."""

    def __str__(self) -> str:
        return "v2"


def test_what_json_has_not_is_written_as_its_text() -> None:
    answer, record = executed(giving({"version": Version(), 5: b"x"}))
    assert answer["data"] == {"version": "v2", "5": "b'x'"}
    assert json.loads(record["result_data"]) == answer["data"]


def test_collections_that_json_has_not_are_written_as_the_ones_that_it_has() -> None:
    pair = namedtuple("pair", "left right")
    data = {
        "mapping": MappingProxyType({"a": 1}),
        "user": UserDict({"b": [UserDict()]}),
        "named": pair(1, 2),
        "deque": deque([1, 2]),
        "set": {1},
    }
    answer, record = executed(giving(data))
    assert answer["data"] == {
        "mapping": {"a": 1},
        "user": {"b": [{}]},
        "named": {"left": 1, "right": 2},
        "deque": [1, 2],
        "set": [1],
    }
    assert json.loads(record["result_data"]) == answer["data"]


def test_answer_and_record_are_of_the_moment_at_which_the_action_ended() -> None:
    data = {"n": 0}

    async def counting(action: Action) -> Result:
        data["n"] += 1
        return Result(action, ResultStatus.SUCCESS, data)

    with served(app_of(executor=Calling(counting))) as client:
        answer = client.post(EXECUTE, [READ, READ, READ]).json
        assert [one["data"] for one in answer] == [{"n": 1}, {"n": 2}, {"n": 3}]
        assert [json.loads(one["result_data"]) for one in client.records()] == [
            one["data"] for one in answer
        ]


def test_data_that_is_another_each_time_is_answered_as_it_is_recorded() -> None:
    class Counting:
        count = 0

        def __str__(self) -> str:
            Counting.count += 1
            return str(Counting.count)

    answer, record = executed(giving([Counting()]))
    assert json.loads(record["result_data"]) == answer["data"]


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_number_that_json_has_not_is_null(number: float) -> None:
    answer, _ = executed(giving([number]))
    assert answer["data"] == [None]


@pytest.mark.parametrize("error", ["half \ud800", 5, ValueError("as it is")])
def test_error_of_a_result_becomes_text(error: Any) -> None:
    answer, record = executed(returning(Result(Action("read"), ResultStatus.FAILED, error=error)))
    assert type(answer["error"]) is str
    assert answer["error"] == record["result_error"]


# --- the log -------------------------------------------------------------------------------------


def lines(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str, str]]:
    """What the log says of executors."""
    return [
        (record.name, record.levelname.lower(), record.getMessage()) for record in caplog.records
    ]


def test_exception_of_an_executor_is_logged_with_its_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    executed(raising(RuntimeError("the disk is gone")))
    ((name, level, message),) = lines(caplog)
    assert (name, level) == ("aegis.executor", "error")
    assert message.startswith(
        "the executor failed on `read`:\nTraceback (most recent call last):\n"
    )
    assert "in do\n    raise error" in message
    assert message.endswith("\nRuntimeError: the disk is gone")


def test_secrets_of_params_are_neither_logged_nor_in_the_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def do(action: Action) -> Any:
        secret = action.params["password"]
        action.params.clear()  # type: ignore[attr-defined]
        raise KeyError(secret) from ValueError(f"cannot log in as bob:{secret}")

    answer, record = executed(Calling(do), READ | {"params": {"password": "s3cr\\et"}})
    ((_, _, message),) = lines(caplog)
    assert answer["error"] == record["result_error"] == "KeyError: '[REDACTED]'"
    assert message.endswith("KeyError: '[REDACTED]'")
    assert "cannot log in as bob:[REDACTED]" in message
    assert "cr\\" not in message


@pytest.mark.parametrize("error", [NoWords(), WithoutName("why"), OddWords(), SystemExit(3)])
def test_odd_exception_is_logged(error: BaseException, caplog: pytest.LogCaptureFixture) -> None:
    executed(raising(error))
    ((name, _, message),) = lines(caplog)
    assert (name, message[:30]) == ("aegis.executor", "the executor failed on `read`:")


def test_what_else_goes_wrong_with_an_executor_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    executed(returning(None))
    executed(returning(Result(Action("read"), "done")))  # type: ignore[arg-type]
    executed(Verifying(lambda _: False))
    with served(with_timeout(Calling(never), 0.02)) as client:
        client.post(EXECUTE, READ)
    assert [(level, message.partition(";")[0]) for _, level, message in lines(caplog)] == [
        ("error", "`read`: the executor returned null, not a Result"),
        ("error", "`read`: the executor returned the unknown status `done`"),
        ("warning", "`read`: the executor could not verify its effect"),
        ("warning", "`read` did not end within 0.02 s"),
    ]


def test_executor_that_does_its_work_logs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    executed(Calling())
    assert lines(caplog) == []


# --- verify --------------------------------------------------------------------------------------


class Verifying(Calling):
    """An executor whose check of the effect is a function."""

    def __init__(self, check: Callable[[Result], Any]) -> None:
        super().__init__()
        self.check = check

    async def verify(self, action: Action, result: Result) -> bool:
        return bool(self.check(result))


def test_action_whose_effect_is_not_there_has_failed() -> None:
    answer, record = executed(Verifying(lambda result: False))
    assert answer["status"] == record["result_status"] == "failed"
    assert "verify" in answer["error"]
    assert answer["data"] == {"did": "read"}


def test_verification_that_raises_has_failed() -> None:
    def check(_: Result) -> bool:
        raise RuntimeError("cannot look")

    answer, record = executed(Verifying(check))
    assert answer["status"] == record["result_status"] == "failed"
    assert "cannot look" in answer["error"]


def test_verified_action_succeeds() -> None:
    answer, _ = executed(Verifying(lambda result: result.data == {"did": "read"}))
    assert (answer["status"], answer["error"]) == ("success", None)


class Minimal:
    """What has `execute` and nothing else, and is not even asynchronous."""

    def execute(self, action: Action) -> Result:
        return Result(action, ResultStatus.SUCCESS, "done")


def test_execute_is_all_that_an_executor_needs() -> None:
    with served(app_of(executor=Minimal())) as client:
        assert client.post(EXECUTE, READ).json["data"] == "done"


# --- time ----------------------------------------------------------------------------------------


async def never(_: Action) -> Any:
    await asyncio.Event().wait()


async def stubborn(action: Action) -> Any:
    """Does not let itself be cancelled once."""
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        return Result(action, ResultStatus.SUCCESS)


@pytest.mark.parametrize("do", [never, stubborn])
def test_action_that_outlives_its_timeout_is_interrupted(
    do: Callable[[Action], Awaitable[Any]],
) -> None:
    with served(with_timeout(Calling(do), 0.02)) as client:
        answer = client.post(EXECUTE, READ).json
        (record,) = client.records()
        assert answer["status"] == record["result_status"] == "interrupted"
        assert "0.02 s" in answer["error"]


def test_interrupted_action_is_told_to_end() -> None:
    ended: list[str] = []

    async def do(action: Action) -> Any:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(action.type)

    with served(with_timeout(Calling(do), 0.02)) as client:
        client.post(EXECUTE, READ)
    assert ended == ["read"]


def test_verification_that_outlives_the_timeout_is_interrupted() -> None:
    class Slow(Calling):
        async def verify(self, action: Action, result: Result) -> bool:
            await asyncio.Event().wait()
            return True

    with served(with_timeout(Slow(), 0.02)) as client:
        assert client.post(EXECUTE, READ).json["status"] == "interrupted"


def test_batch_goes_on_after_a_failure_and_after_a_timeout() -> None:
    async def do(action: Action) -> Any:
        match action.target:
            case "fails":
                raise RuntimeError("no")
            case "hangs":
                await asyncio.Event().wait()
            case "returns nothing":
                return None
        return Result(action, ResultStatus.SUCCESS)

    targets = ["fails", "hangs", "returns nothing", "works"]
    batch = [{"type": "read", "target": target} for target in targets]
    with served(with_timeout(Calling(do), 0.02)) as client:
        answers = client.post(EXECUTE, [{"type": "delete"}, *batch]).json
        statuses = ["blocked", "failed", "interrupted", "failed", "success"]
        assert [answer["status"] for answer in answers] == statuses
        assert [record["result_status"] for record in client.records()] == statuses


# --- records -------------------------------------------------------------------------------------


def test_each_action_has_its_record_when_the_answer_arrives() -> None:
    with served(app_of(executor=Calling())) as client:
        for count in range(1, 6):
            client.post(EXECUTE, [READ] * count)
            assert len(client.records()) == sum(range(count + 1))


def test_client_that_leaves_does_not_stop_its_batch() -> None:
    is_begun, may_end = asyncio.Event(), asyncio.Event()

    async def do(action: Action) -> Any:
        is_begun.set()
        await may_end.wait()
        return Result(action, ResultStatus.SUCCESS, "done")

    executor = Calling(do)

    async def scenario(client: Client) -> Any:
        asked = asyncio.ensure_future(client.request("POST", EXECUTE, [READ, READ]))
        await is_begun.wait()
        asked.cancel()
        await asyncio.wait([asked])
        assert asked.cancelled()
        (intent,) = (await client.request("GET", AUDIT)).json
        assert intent["result_status"] == "started"
        may_end.set()

        async def records() -> Any:
            found = (await client.request("GET", AUDIT)).json
            return found if [record["seq"] for record in found] == [2, 4] else None

        return await eventually(records)

    with served(app_of(executor=executor)) as client:
        assert [record["result_status"] for record in client.run(scenario(client))] == [
            "success",
            "success",
        ]
    assert executor.seen == ["read", "read"]


def test_action_that_runs_when_the_server_stops_is_recorded() -> None:
    is_begun = asyncio.Event()
    drained: list[str] = []

    async def do(action: Action) -> Any:
        is_begun.set()
        for _ in range(20):
            await asyncio.sleep(0)
        drained.append(action.type)
        return Result(action, ResultStatus.SUCCESS)

    with served(app_of(executor=Calling(do)), lifespan=False) as client:
        assert client.run(statuses_when_stopped(client, is_begun)) == ["success", "success"]
    assert drained == ["read", "read"]


def test_action_that_outlives_the_stopping_server_is_interrupted_and_the_rest_is_skipped(
    tmp_path: Path,
) -> None:
    is_begun = asyncio.Event()

    async def do(_: Action) -> Any:
        is_begun.set()
        await asyncio.Event().wait()

    settings = Settings(audit_db=str(tmp_path / "audit.db"), drain_timeout=0.02)
    file = CompiledFiles(":memory:").load(POLICY)
    with served(build_app(settings, file=file, executor=Calling(do)), lifespan=False) as client:
        assert client.run(statuses_when_stopped(client, is_begun)) == ["interrupted", "skipped"]
    with served(build_app(settings, file=file)) as client:
        records = client.records()
        assert [record["result_status"] for record in records] == ["interrupted", "skipped"]


async def statuses_when_stopped(client: Client, is_begun: asyncio.Event) -> list[str]:
    """What becomes of two actions when the server stops while the first one runs."""
    async with living(client.app):
        asked = asyncio.ensure_future(client.request("POST", EXECUTE, [READ, READ]))
        await is_begun.wait()
    return [answer["status"] for answer in (await asked).json]


# --- secrets -------------------------------------------------------------------------------------

SECRETS = {
    "Password": "s1",
    "user_PASSWD": "s2",
    "user-pwd": ["s3"],
    "client-secret-1": {"a": "s4"},
    "accessToken": "s5",
    "MY_API_KEY": "s6",
    "x-api-key": 7,
    "Authorization": None,
    "Set-Cookie": True,
    "credentials": "s8",
    "ssh_private_key": "s9",
    "aws_access_key_id": "s10",
}
PLAIN = {"user": "bob", "key": "k", "pass": "p", "path": "/etc/passwd", "n": 1.5, "none": None}


@pytest.mark.parametrize("secret", SECRETS)
def test_secret_is_stored_redacted_at_any_depth_and_answered_whole(secret: str) -> None:
    value = {secret: SECRETS[secret], "in": [{"a": [[{secret: SECRETS[secret]}]]}], **PLAIN}
    hidden = {secret: "[REDACTED]", "in": [{"a": [[{secret: "[REDACTED]"}]]}], **PLAIN}
    answer, record = executed(giving(value), READ | {"params": value})
    assert answer["data"] == value
    assert json.loads(record["action_params"]) == hidden
    assert json.loads(record["result_data"]) == hidden


@pytest.mark.parametrize("kind", [MappingProxyType, UserDict, lambda pairs: deque([pairs])])
def test_secret_in_any_collection_is_stored_redacted(kind: Callable[[Any], Any]) -> None:
    answer, record = executed(giving([kind({"password": "s3cret"})]))
    assert "s3cret" in json.dumps(answer["data"])
    assert "s3cret" not in record["result_data"]


def test_secret_in_a_named_tuple_is_stored_redacted() -> None:
    login = namedtuple("login", "user password")
    answer, record = executed(giving(login("bob", "s3cret")))
    assert answer["data"] == {"user": "bob", "password": "s3cret"}
    assert json.loads(record["result_data"]) == {"user": "bob", "password": "[REDACTED]"}


def test_secret_whose_name_is_written_with_escapes_is_redacted() -> None:
    body = rb'{"type":"read","params":{"p\u0061ssword":"s","my_\u0070WD":"s"}}'
    with served() as client:
        client.post(EXECUTE, body=body)
        (record,) = client.records()
        assert json.loads(record["action_params"]) == {
            "password": "[REDACTED]",
            "my_pWD": "[REDACTED]",
        }


@pytest.mark.parametrize("is_argument", [True, False])
def test_application_takes_names_of_secrets_and_the_limit_of_results(
    is_argument: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {}
    if is_argument:
        options = {"redact": ["ssn"], "redact_except": ["token_count"], "max_result_bytes": 256}
    else:
        monkeypatch.setenv("AEGIS_REDACT", "ssn, iban")
        monkeypatch.setenv("AEGIS_REDACT_EXCEPT", "token_count")
        monkeypatch.setenv("AEGIS_MAX_RESULT_BYTES", "256")
    params = {"customerSsn": 1, "token_count": 2, "token": 3}
    with served(app_of(executor=giving("x" * 300), **options)) as client:
        client.post(EXECUTE, READ | {"params": params})
        (record,) = client.records()
    hidden = {"customerSsn": "[REDACTED]", "token_count": 2, "token": "[REDACTED]"}
    assert json.loads(record["action_params"]) == hidden
    assert json.loads(record["result_data"])["max_bytes"] == 256


@pytest.mark.parametrize("value", ["0", "many", "1e6", str(2**40)])
def test_impossible_limit_of_results_is_refused(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AEGIS_MAX_RESULT_BYTES", value)
    with pytest.raises(
        ConfigError, match=f"AEGIS_MAX_RESULT_BYTES `{value}` must be an integer from 256"
    ):
        app_of()
    app_of(max_result_bytes=256)


def test_secret_of_a_blocked_action_is_redacted() -> None:
    with served() as client:
        client.post(EXECUTE, {"type": "delete", "params": {"token": "s"}})
        (record,) = client.records()
        assert json.loads(record["action_params"]) == {"token": "[REDACTED]"}


# --- life ----------------------------------------------------------------------------------------


def test_executor_is_set_up_once_and_torn_down_once() -> None:
    executor = Calling()
    with served(app_of(executor=executor)) as client:
        client.post(EXECUTE, [READ, READ])
        assert (executor.set_up, executor.torn_down) == (1, 0)
    assert (executor.set_up, executor.torn_down) == (1, 1)


def test_server_does_not_start_with_an_executor_that_does_not() -> None:
    class Unready(Calling):
        async def setup(self) -> None:
            raise RuntimeError("no socket")

    with pytest.raises(StartupFailed, match="no socket"), served(app_of(executor=Unready())):
        pass


def test_without_a_lifespan_an_executor_that_does_not_start_makes_the_server_not_ready() -> None:
    class Unready(Calling):
        async def setup(self) -> None:
            raise RuntimeError("no socket")

    with served(app_of(executor=Unready()), lifespan=False) as client:
        reply = client.post(EXECUTE, READ)
        assert (reply.status, reply.code) == (503, "not_ready")


def test_server_stops_in_order_where_the_teardown_fails() -> None:
    class Untidy(Calling):
        async def teardown(self) -> None:
            raise RuntimeError("cannot let go")

    with served(app_of(executor=Untidy())) as client:
        client.post(EXECUTE, READ)
