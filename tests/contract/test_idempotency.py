"""`Idempotency-Key`: what was asked for once is executed once, and answered as it was."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from aegis import Action, Executor, Result, ResultStatus
from aegis.audit import idempotency
from aegis.audit.archive import archive
from aegis.config import Settings
from aegis.policy.compiled_cache import CompiledFiles
from aegis.server.composition import build_app
from aegis.server.http.app import App
from aegis.store.database import Store
from aegis.timestamps import now_us
from tests.contract.client import EXECUTE, POLICY, Client, Reply, app_of, eventually, served

READ = {"action_type": "read", "target": "t"}
BATCH = [{"type": "read", "target": "a"}, {"type": "delete"}, {"type": "write", "target": "c"}]
DAY_US = 24 * 60 * 60 * 1_000_000


class Counting(Executor):
    """Says how often it has been called, which also is its effect."""

    def __init__(self, status: ResultStatus = ResultStatus.SUCCESS) -> None:
        self.status = status
        self.done: list[str] = []

    async def execute(self, action: Action) -> Result:
        self.done.append(action.target)
        return Result(action, self.status, {"calls": len(self.done)})


class Waiting(Counting):
    """Is busy with an action until it may go on."""

    def __init__(self) -> None:
        super().__init__()
        self.may_go_on = asyncio.Event()

    async def execute(self, action: Action) -> Result:
        self.done.append(action.target)
        await self.may_go_on.wait()
        return Result(action, ResultStatus.SUCCESS, {"calls": len(self.done)})


def app_with(executor: Executor, **settings: Any) -> App:
    """An application of `POLICY` with further settings."""
    wanted = Settings(**({"audit_db": ":memory:"} | settings))
    return build_app(wanted, file=CompiledFiles(":memory:").load(POLICY), executor=executor)


def ask(client: Client, asked: object, key: str = "k", **details: Any) -> Reply:
    """Execute under a key."""
    headers = {"idempotency-key": key} | details.pop("headers", {})
    return client.post(EXECUTE, asked, headers=headers, **details)


# --- repeats -------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", [READ, {"type": "delete"}, BATCH, {"actions": BATCH}, [READ]])
def test_repeat_is_answered_as_before_and_executes_nothing(asked: object) -> None:
    executor = Counting()
    with served(app_of(executor=executor)) as client:
        first = ask(client, asked)
        done, records = list(executor.done), client.records()
        for _ in range(3):
            again = ask(client, asked)
            assert (again.status, again.body) == (200, first.body)
        assert executor.done == done
        assert client.records() == records


@pytest.mark.parametrize("asked", [READ, BATCH])
def test_repeat_is_recorded_once_where_nothing_is_executed(asked: object) -> None:
    with served() as client:
        first = ask(client, asked)
        again = ask(client, asked)
        assert again.body == first.body
        assert len(client.records()) == (3 if asked is BATCH else 1)


@pytest.mark.parametrize("status", list(ResultStatus))
def test_result_of_any_status_is_repeated(status: ResultStatus) -> None:
    executor = Counting(status)
    with served(app_of(executor=executor)) as client:
        first = ask(client, READ)
        again = ask(client, READ)
        assert (again.status, again.json) == (200, first.json)
        assert again.json["status"] == status.value
        assert len(executor.done) == 1


def test_without_a_key_each_request_is_its_own() -> None:
    executor = Counting()
    with served(app_of(executor=executor)) as client:
        for _ in range(3):
            client.post(EXECUTE, READ)
        assert len(executor.done) == 3


def test_each_key_is_a_request_of_its_own() -> None:
    executor = Counting()
    with served(app_of(executor=executor)) as client:
        assert [ask(client, READ, key).json["data"]["calls"] for key in "abA"] == [1, 2, 3]


@pytest.mark.parametrize("key", ["a", "~" * 255, '"quoted"', "0", "a,b;c=d"])
def test_any_visible_text_is_a_key(key: str) -> None:
    executor = Counting()
    with served(app_of(executor=executor)) as client:
        assert ask(client, READ, key).body == ask(client, READ, key).body
        assert len(executor.done) == 1


def test_repeat_is_answered_after_a_restart(tmp_path: Path) -> None:
    database = tmp_path / "audit.db"
    executor = Counting()
    with served(app_of(executor=executor, audit_db_path=database)) as client:
        first = ask(client, BATCH)
    with served(app_of(executor=executor, audit_db_path=database)) as client:
        assert ask(client, BATCH).body == first.body
    assert executor.done == ["a", "c"]


def test_repeat_is_answered_by_every_server_over_the_database(tmp_path: Path) -> None:
    database = tmp_path / "audit.db"
    executor = Counting()
    with (
        served(app_of(executor=executor, audit_db_path=database)) as one,
        served(app_of(executor=executor, audit_db_path=database)) as other,
    ):
        assert ask(one, READ).body == ask(other, READ).body
    assert len(executor.done) == 1


def test_repeat_is_answered_as_before_when_the_policy_has_changed() -> None:
    executor = Counting()
    with served(app_of(executor=executor)) as client:
        first = ask(client, READ)
        client.put("/api/v1/policy", {"rules": [{"match": {"type": "*"}, "approval": "block"}]})
        assert ask(client, READ).body == first.body


def test_secrets_are_redacted_in_the_repeated_answer() -> None:
    class Leaking(Executor):
        async def execute(self, action: Action) -> Result:
            return Result(action, ResultStatus.SUCCESS, {"rows": [{"api_key": "s3cret", "n": 1}]})

    with served(app_of(executor=Leaking())) as client:
        assert ask(client, READ).json["data"] == {"rows": [{"api_key": "s3cret", "n": 1}]}
        again = ask(client, READ)
        assert again.json["data"] == {"rows": [{"api_key": "[REDACTED]", "n": 1}]}


def test_empty_batch_is_repeated() -> None:
    with served(app_of(executor=Counting())) as client:
        assert [ask(client, []).json, ask(client, []).json] == [[], []]


def test_batch_larger_than_a_page_is_repeated_in_its_order() -> None:
    executor = Counting()
    batch = [{"type": "read", "target": str(n)} for n in range(1_100)]
    with served() as client:
        first = ask(client, batch)
        assert ask(client, batch).body == first.body
        assert [result["target"] for result in first.json] == [str(n) for n in range(1_100)]
    assert executor.done == []


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "other", [READ | {"target": "u"}, [READ], READ | {"params": {}}, {"type": "delete"}, BATCH]
)
def test_another_body_under_a_used_key_is_refused(other: object) -> None:
    executor = Counting()
    with served(app_of(executor=executor)) as client:
        ask(client, READ)
        records = client.records()
        reply = ask(client, other)
        assert (reply.status, reply.code) == (409, "idempotency_key_reused")
        assert len(executor.done) == 1
        assert client.records() == records


@pytest.mark.parametrize(
    "key", ["", " ", "a b", "é", b"\xff", "a" * 256, "\x7f", ["a", "b"], ["a", "a"]]
)
def test_impossible_key_is_refused_and_nothing_is_executed(key: Any) -> None:
    executor = Counting()
    with served(app_of(executor=executor)) as client:
        reply = ask(client, READ, headers={"idempotency-key": key})
        assert (reply.status, reply.code) == (400, "invalid_idempotency_key")
        assert executor.done == []
        assert client.records() == []


def test_refused_body_does_not_use_its_key_up() -> None:
    executor = Counting()
    with served(app_of(executor=executor)) as client:
        assert ask(client, {"type": ""}).status == 400
        assert ask(client, READ).json["status"] == "success"


def test_two_callers_may_make_up_the_same_key() -> None:
    executor = Counting()
    with served(app_of(executor=executor, api_key="one", admin_key="other")) as client:
        calls = [
            ask(client, READ, headers={"x-api-key": caller}).json["data"]["calls"]
            for caller in ("one", "other", "one", "other")
        ]
        assert calls == [1, 2, 1, 2]
        reply = ask(client, [READ], headers={"x-api-key": "other"})
        assert reply.code == "idempotency_key_reused"


# --- while it runs -------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", [READ, BATCH])
def test_repeat_while_the_first_runs_is_told_to_come_back(asked: object) -> None:
    executor = Waiting()

    async def scenario(client: Client) -> tuple[Reply, Reply, Reply, Reply]:
        headers = {"idempotency-key": "k"}

        async def has_begun() -> bool:
            return bool(executor.done)

        first = asyncio.ensure_future(client.request("POST", EXECUTE, asked, headers=headers))
        await eventually(has_begun)
        early = await client.request("POST", EXECUTE, asked, headers=headers)
        other = await client.request("POST", EXECUTE, {"type": "write"}, headers=headers)
        executor.may_go_on.set()
        late = await first
        return early, other, late, await client.request("POST", EXECUTE, asked, headers=headers)

    with served(app_of(executor=executor)) as client:
        early, other, first, again = client.run(scenario(client))
    assert (early.status, early.code) == (409, "request_in_progress")
    assert int(early.header("retry-after") or 0) > 0
    assert other.code == "idempotency_key_reused"
    assert (first.status, again.status, again.body) == (200, 200, first.body)
    assert len(executor.done) == (2 if asked is BATCH else 1)


def test_of_many_at_once_one_is_executed() -> None:
    executor = Counting()

    async def scenario(client: Client) -> list[Reply]:
        headers = {"idempotency-key": "k"}
        return await asyncio.gather(
            *[client.request("POST", EXECUTE, BATCH, headers=headers) for _ in range(20)]
        )

    with served(app_of(executor=executor)) as client:
        replies = client.run(scenario(client))
        assert {reply.status for reply in replies} <= {200, 409}
        assert len({reply.body for reply in replies if reply.status == 200}) == 1
        assert len(client.records()) == 3
    assert executor.done == ["a", "c"]


def test_interrupted_request_keeps_its_state_and_the_rest_is_skipped(tmp_path: Path) -> None:
    executor = Waiting()
    settings = {"audit_db": str(tmp_path / "audit.db"), "drain_timeout": 0.01}
    batch = [READ, {"type": "read", "target": "never"}, {"type": "delete"}]

    async def begin(client: Client) -> None:
        async def has_begun() -> bool:
            return bool(executor.done)

        asking.append(
            asyncio.ensure_future(
                client.request("POST", EXECUTE, batch, headers={"idempotency-key": "k"})
            )
        )
        await eventually(has_begun)

    asking: list[asyncio.Future[Reply]] = []
    with served(app_with(executor, **settings)) as client:
        client.run(begin(client))
    first = asking[0].result().json
    assert [result["status"] for result in first] == ["interrupted", "skipped", "blocked"]
    another = Counting()
    with served(app_with(another, **settings)) as client:
        assert ask(client, batch).json == first
    assert (executor.done, another.done) == (["t"], [])


# --- how long ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("later_us", "calls"), [(DAY_US - 60_000_000, 1), (DAY_US, 2)])
def test_key_is_remembered_for_a_day(
    monkeypatch: pytest.MonkeyPatch, later_us: int, calls: int
) -> None:
    executor = Counting()
    with served(app_of(executor=executor)) as client:
        ask(client, READ)
        monkeypatch.setattr(idempotency, "now_us", lambda: now_us() + later_us)
        ask(client, READ)
        assert len(executor.done) == calls


def test_key_is_remembered_when_the_clock_is_set_back(monkeypatch: pytest.MonkeyPatch) -> None:
    executor = Counting()
    with served(app_of(executor=executor)) as client:
        ask(client, READ)
        monkeypatch.setattr(idempotency, "now_us", lambda: now_us() - 3 * DAY_US)
        ask(client, READ)
        assert len(executor.done) == 1


def test_key_may_be_used_for_another_request_after_a_day(monkeypatch: pytest.MonkeyPatch) -> None:
    executor = Counting()
    with served(app_of(executor=executor)) as client:
        ask(client, READ)
        monkeypatch.setattr(idempotency, "now_us", lambda: now_us() + DAY_US)
        assert ask(client, BATCH).status == 200
        assert executor.done == ["t", "a", "c"]


@pytest.mark.parametrize("asked", [READ, BATCH])
def test_repeat_of_what_was_archived_says_so_and_executes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: object
) -> None:
    path, executor = tmp_path / "audit.db", Counting()
    with served(app_of(executor=executor, audit_db_path=path)) as client:
        ask(client, asked)
        done = list(executor.done)
        with monkeypatch.context() as ahead:  # the clock that it is archived by
            ahead.setattr(idempotency, "now_us", lambda: now_us() + 2 * DAY_US)
            store = Store(path)
            archive(store, now_us() + DAY_US, tmp_path / "old.db")
            store.close()
        assert client.records() == []
        reply = ask(client, asked)
        assert (reply.status, reply.code) == (409, "request_archived")
        assert ask(client, {"type": "write"}).code == "idempotency_key_reused"
        assert executor.done == done
