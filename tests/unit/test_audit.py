"""The audit log: what is acknowledged is stored, once, in order; what is asked for is found."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any, NoReturn

import pytest

from aegis.audit import (
    AuditFilter,
    AuditLog,
    AuditReader,
    AuditRecord,
    Committed,
    Operation,
    ResultStatus,
)
from aegis.audit.reader import MAX_PAGE_BYTES, MAX_ROWS_PER_PAGE
from aegis.errors import AuditUnavailable, StoreError
from aegis.store.database import Store
from aegis.timestamps import now_us, timestamp_text
from aegis_core import Approval, RiskLevel

PATIENCE_S = 10.0

RECORD = AuditRecord(
    timestamp_us=1_000_000,
    session_id="s",
    action_type="read",
    action_target="t",
    action_params="{}",
    action_desc=None,
    risk_level=RiskLevel.LOW,
    approval=Approval.AUTO,
    matched_rule="reads",
    human_decision=None,
    result_status=ResultStatus.SUCCESS,
    result_data=None,
    result_error=None,
    agent_id=None,
    parent_agent_id=None,
    chain_id=None,
    chain_depth=0,
    policy_version=1,
)


def record(target: object = "t", **members: Any) -> AuditRecord:
    """A record with this target."""
    return replace(RECORD, action_target=str(target), **members)


class Log(AuditLog):
    """A log that can be read too."""

    def __init__(self, store: Store, *, most_queued: int, timeout_s: float) -> None:
        self.reader = AuditReader(store)
        super().__init__(store, most_queued=most_queued, timeout_s=timeout_s)

    def close(self, timeout_s: float = 10.0) -> None:
        super().close(timeout_s)
        self.reader.close()

    def pages(self, wanted: AuditFilter) -> AsyncIterator[list[dict[str, Any]]]:
        return self.reader.pages(wanted)


@contextmanager
def opened(
    path: Path | str = ":memory:", *, most_queued: int = 10_000, timeout_s: float = PATIENCE_S
) -> Iterator[tuple[Log, Store]]:
    """A log and its store, closed in the end."""
    store = Store(path)
    log = Log(store, most_queued=most_queued, timeout_s=timeout_s)
    try:
        yield log, store
    finally:
        log.close()
        store.close()


async def found(log: Log, **wanted: Any) -> list[dict[str, Any]]:
    """All records of a filter."""
    return [row async for page in log.pages(AuditFilter(**wanted)) for row in page]


async def targets(log: Log, **wanted: Any) -> list[str]:
    """The targets of all records of a filter."""
    return [row["action_target"] for row in await found(log, **wanted)]


def in_log(scenario: Callable[[Log], Awaitable[Any]], **options: Any) -> Any:
    """Run a scenario with a log of its own."""
    with opened(**options) as (log, _):

        async def within() -> Any:
            return await asyncio.wait_for(scenario(log), PATIENCE_S)

        return asyncio.run(within())


# --- writing -------------------------------------------------------------------------------------


HASH_OF_WHOLE = sha256(
    bytes(32)
    + b'["record",1,1769882400123456,"evaluate","s\\u0000\xc3\xa9","write","\xf0\x9f\x98\x80",'
    b'"{\\"a\\": 1}","d","CRITICAL","approve","<default>","auto-approved","interrupted","[1]","e",'
    b'"a","p","c",-9223372036854775808,7,"crm-bot",3,'
    b'"toolu_1","r","4bf92f3577b34da6a3ce929d0e0e4736"]'
).hexdigest()
"""As docs/audit-format.md says."""


def test_record_is_found_as_it_was_appended() -> None:
    whole = AuditRecord(
        timestamp_us=1_769_882_400_123_456,
        session_id="s\x00é",
        action_type="write",
        action_target="\U0001f600",
        action_params='{"a": 1}',
        action_desc="d",
        risk_level=RiskLevel.CRITICAL,
        approval=Approval.APPROVE,
        matched_rule="<default>",
        human_decision="auto-approved",
        result_status=ResultStatus.INTERRUPTED,
        result_data="[1]",
        result_error="e",
        agent_id="a",
        parent_agent_id="p",
        chain_id="c",
        chain_depth=-(2**63),
        policy_version=7,
        key_name="crm-bot",
        operation=Operation.EVALUATE,
        worker=3,
        call_id="toolu_1",
        request_id="r",
        trace_id="4bf92f3577b34da6a3ce929d0e0e4736",
    )

    async def scenario(log: Log) -> list[dict[str, Any]]:
        await log.append([whole])
        return await found(log)

    assert in_log(scenario) == [
        {
            "id": 1,
            "session_id": "s\x00é",
            "timestamp": "2026-01-31T18:00:00.123456+00:00",
            "action_type": "write",
            "action_target": "\U0001f600",
            "action_params": '{"a": 1}',
            "action_desc": "d",
            "risk_level": "CRITICAL",
            "approval": "approve",
            "matched_rule": "<default>",
            "human_decision": "auto-approved",
            "result_status": "interrupted",
            "result_data": "[1]",
            "result_error": "e",
            "agent_id": "a",
            "parent_agent_id": "p",
            "chain_id": "c",
            "chain_depth": -(2**63),
            "policy_version": 7,
            "key_name": "crm-bot",
            "operation": "evaluate",
            "worker": 3,
            "call_id": "toolu_1",
            "request_id": "r",
            "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736",
            "ended": None,
            "seq": 1,
            "hash": HASH_OF_WHOLE,
        }
    ]


@pytest.mark.parametrize("status", list(ResultStatus))
@pytest.mark.parametrize("approval", list(Approval))
def test_every_status_and_approval_is_kept(status: ResultStatus, approval: Approval) -> None:
    async def scenario(log: Log) -> list[dict[str, Any]]:
        await log.append([record(result_status=status, approval=approval)])
        return await found(log)

    (row,) = in_log(scenario)
    assert (row["result_status"], row["approval"]) == (status.value, approval.value)


def test_nothing_is_appended_at_once() -> None:
    async def scenario(log: Log) -> list[str]:
        await log.append([])
        return await targets(log)

    assert in_log(scenario) == []


def test_append_returns_after_the_commit(tmp_path: Path) -> None:
    path = tmp_path / "audit.db"

    async def scenario(log: Log) -> None:
        for count in range(1, 6):
            await log.append([record()])
            other = Store(path)
            with other.reading() as connection:
                assert connection.execute("SELECT count(*) FROM record").get == count
            other.close()

    in_log(scenario, path=path)


def test_many_appends_at_once_are_stored_once_each_in_the_order_of_the_calls() -> None:
    async def scenario(log: Log) -> list[str]:
        await asyncio.gather(*[log.append([record(number)]) for number in range(500)])
        return await targets(log)

    assert in_log(scenario) == [str(number) for number in range(500)]


def test_records_of_one_append_stay_together() -> None:
    async def scenario(log: Log) -> list[str]:
        batches = [[record(f"{batch}-{n}") for n in range(7)] for batch in range(50)]
        await asyncio.gather(*[log.append(batch) for batch in batches])
        return await targets(log)

    assert in_log(scenario) == [f"{batch}-{n}" for batch in range(50) for n in range(7)]


def test_batch_larger_than_a_commit_is_stored_whole() -> None:
    async def scenario(log: Log) -> list[str]:
        await log.append([record(number) for number in range(5_000)])
        return await targets(log)

    assert in_log(scenario) == [str(number) for number in range(5_000)]


def test_many_new_words_in_one_batch_are_all_kept() -> None:
    async def scenario(log: Log) -> list[str]:
        await log.append([record(number, agent_id=f"agent {number}") for number in range(1_200)])
        return [row["agent_id"] for row in await found(log)]

    assert in_log(scenario) == [f"agent {number}" for number in range(1_200)]


def test_loops_of_many_threads_may_append_to_one_log() -> None:
    with opened() as (log, _):

        async def append_some(thread: int) -> None:
            await asyncio.gather(*[log.append([record(f"{thread}-{n}")]) for n in range(20)])

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda thread: asyncio.run(append_some(thread)), range(4)))
        assert len(set(asyncio.run(targets(log)))) == 80


def test_two_logs_over_one_file_both_keep_their_records(tmp_path: Path) -> None:
    async def scenario(one: Log, other: Log) -> tuple[list[str], list[str]]:
        appends = [log.append([record(n)]) for n in range(50) for log in (one, other)]
        await asyncio.gather(*appends)
        return await targets(one), await targets(other)

    path = tmp_path / "audit.db"
    with opened(path) as (one, _), opened(path) as (other, _):
        first, second = asyncio.run(scenario(one, other))
    assert first == second
    assert sorted(first) == sorted([str(n) for n in range(50)] * 2)


def test_record_that_cannot_be_stored_does_not_keep_others_from_it() -> None:
    async def scenario(log: Log) -> tuple[list[Any], list[str]]:
        batches = [[record("a")], [record("half a pair: \ud800")], [record("b")]]
        outcomes = await asyncio.gather(
            *[log.append(batch) for batch in batches], return_exceptions=True
        )
        await log.append([record("c")])
        return outcomes, await targets(log)

    outcomes, stored = in_log(scenario)
    assert [type(outcome) for outcome in outcomes] == [Committed, AuditUnavailable, Committed]
    assert stored == ["a", "b", "c"]


def test_record_that_cannot_be_stored_does_not_change_the_order_of_the_others() -> None:
    async def scenario(log: Log, store: Store) -> list[str]:
        with store.turn():
            bad = asyncio.ensure_future(log.append([record("half a pair: \ud800")]))
            good = [asyncio.ensure_future(log.append([record(n)])) for n in range(2_500)]
            await until(lambda: log.queued == 2_501)
        await asyncio.gather(*good)
        with pytest.raises(AuditUnavailable):
            await bad
        return await targets(log)

    with opened() as (log, store):
        assert asyncio.run(scenario(log, store)) == [str(number) for number in range(2_500)]


# --- waiting -------------------------------------------------------------------------------------


async def until(is_so: Callable[[], bool]) -> None:
    deadline = asyncio.get_running_loop().time() + PATIENCE_S
    while not is_so():
        assert asyncio.get_running_loop().time() < deadline, "it never came true"
        await asyncio.sleep(0.002)


@pytest.mark.parametrize(("must_stay", "stored"), [(False, []), (True, ["late"])])
def test_record_that_waited_too_long_is_withdrawn_unless_it_must_stay(
    must_stay: bool, stored: list[str]
) -> None:
    async def scenario(log: Log, store: Store) -> list[str]:
        with store.turn():
            with pytest.raises(AuditUnavailable, match="not committed within"):
                await log.append([record("late")], must_stay=must_stay)
            assert log.queued == 1
        await until(lambda: log.queued == 0)
        return await targets(log)

    with opened(timeout_s=0.02) as (log, store):
        assert asyncio.run(scenario(log, store)) == stored


@pytest.mark.parametrize(
    ("status", "later"),
    [
        (ResultStatus.SUCCESS, ResultStatus.SUCCESS),
        (ResultStatus.STARTED, ResultStatus.SKIPPED),
    ],
)
def test_commit_whose_file_was_moved_away_is_answered_in_time(
    status: ResultStatus, later: ResultStatus, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = 0

    def see_in_place(_: Store) -> None:
        nonlocal looks
        looks += 1
        if looks > 1:  # it was there before the commit, and is not any more
            raise StoreError("it was moved")

    async def scenario(log: Log, _: Store) -> list[dict[str, Any]]:
        with monkeypatch.context() as patched:
            patched.setattr(Store, "_see_in_place", see_in_place)
            with pytest.raises(AuditUnavailable, match="it was moved"):
                await asyncio.wait_for(log.append([record(result_status=status)]), PATIENCE_S)
        await until(lambda: log.queued == 0 and log.failure is None)
        return await found(log)

    with opened(timeout_s=0.05) as (log, store):
        assert [row["result_status"] for row in asyncio.run(scenario(log, store))] == [later]


def test_full_queue_is_said_before_anything_is_done() -> None:
    async def scenario(log: Log, store: Store) -> None:
        log.refuse_when_unavailable()
        with store.turn():
            waiting = asyncio.gather(*[log.append([record(n)]) for n in range(3)])
            await until(lambda: log.queued == 3)
            with pytest.raises(AuditUnavailable, match="3 audit records wait"):
                log.refuse_when_unavailable()
        await waiting
        await until(lambda: log.queued == 0)
        log.refuse_when_unavailable()

    with opened(most_queued=3) as (log, store):
        asyncio.run(scenario(log, store))


def test_append_whose_caller_has_gone_is_stored() -> None:
    async def scenario(log: Log, store: Store) -> list[str]:
        with store.turn():
            asked = asyncio.ensure_future(log.append([record("alone")]))
            await until(lambda: log.queued == 1)
            asked.cancel()
            await asyncio.wait([asked])
        await until(lambda: log.queued == 0)
        return await targets(log)

    with opened() as (log, store):
        assert asyncio.run(scenario(log, store)) == ["alone"]


# --- closing -------------------------------------------------------------------------------------


def test_closing_stores_what_waits(tmp_path: Path) -> None:
    path = tmp_path / "audit.db"

    async def scenario(log: Log, store: Store) -> None:
        with store.turn():
            appends = [asyncio.ensure_future(log.append([record(n)])) for n in range(2_000)]
            await until(lambda: log.queued == 2_000)
        await asyncio.to_thread(log.close)
        await asyncio.gather(*appends)

    with opened(path) as (log, store):
        asyncio.run(scenario(log, store))
    with opened(path) as (log, _):
        assert asyncio.run(targets(log)) == [str(number) for number in range(2_000)]


def test_closed_log_gives_up_on_all_that_it_cannot_store(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(log: Log, store: Store) -> None:
        monkeypatch.setattr(store, "turn", broken)
        first = asyncio.ensure_future(log.append([record(0)], must_stay=True))
        await until(lambda: log.failure is not None)
        others = [asyncio.ensure_future(log.append([record(n)], must_stay=True)) for n in (1, 2)]
        await until(lambda: log.queued == 3)
        await asyncio.to_thread(log.close)
        for append in (first, *others):
            with pytest.raises(AuditUnavailable):
                await append
        assert log.queued == 0

    def broken() -> NoReturn:
        raise StoreError("no space left")

    with opened() as (log, store):
        asyncio.run(scenario(log, store))
        monkeypatch.undo()
    assert "3 audit records are lost" in caplog.text


def test_closed_log_says_that_it_is() -> None:
    with opened() as (log, _):
        log.close()
        with pytest.raises(AuditUnavailable, match="stopping"):
            log.refuse_when_unavailable()


def test_log_may_be_closed_twice() -> None:
    with opened() as (log, _):
        log.close()
        log.close()
        assert _is_refusing(log)


def test_what_comes_after_the_end_and_must_stay_is_stored() -> None:
    async def scenario(log: Log, store: Store) -> list[str]:
        with store.turn():
            first = asyncio.ensure_future(log.append([record("before")]))
            await until(lambda: log.queued == 1)
            closing = asyncio.ensure_future(asyncio.to_thread(AuditLog.close, log))
            await until(lambda: _is_refusing(log))
            await asyncio.sleep(0.05)  # the end is in the queue
            last = asyncio.ensure_future(log.append([record("after")], must_stay=True))
            await until(lambda: log.queued == 2)
        await asyncio.gather(first, last, closing)
        return await targets(log)

    with opened() as (log, store):
        assert asyncio.run(scenario(log, store)) == ["before", "after"]


def _is_refusing(log: Log) -> bool:
    try:
        log.refuse_when_unavailable()
    except AuditUnavailable:
        return True
    return False


def test_append_to_a_closed_log_is_not_acknowledged() -> None:
    with opened(timeout_s=0.02) as (log, _):
        log.close()
        with pytest.raises(AuditUnavailable):
            asyncio.run(log.append([record()]))


# --- reading -------------------------------------------------------------------------------------


MANY = 1_300


@contextmanager
def filled(count: int, **members: Any) -> Iterator[Log]:
    """A log of so many records, whose targets count from 1 as their ids do."""
    with opened() as (log, _):
        asyncio.run(log.append([record(number, **members) for number in range(1, count + 1)]))
        yield log


async def pages(log: Log, **wanted: Any) -> list[int]:
    """How many records each page has."""
    return [len(page) async for page in log.pages(AuditFilter(**wanted))]


def test_page_has_a_bounded_number_of_rows() -> None:
    with filled(MANY) as log:
        sizes = asyncio.run(pages(log))
        assert sum(sizes) == MANY
        assert max(sizes) <= MAX_ROWS_PER_PAGE


def test_page_has_a_bounded_size() -> None:
    size = 1024 * 1024
    with filled(10, action_desc="x" * size) as log:
        sizes = asyncio.run(pages(log))
        assert sum(sizes) == 10
        assert max(sizes) * size <= MAX_PAGE_BYTES + 2 * size


def test_record_larger_than_a_page_is_read() -> None:
    with filled(3, action_desc="x" * (MAX_PAGE_BYTES + 1)) as log:
        assert asyncio.run(pages(log)) == [1, 1, 1]


@pytest.mark.parametrize(
    ("wanted", "first", "last"),
    [
        ({}, 1, MANY),
        ({"limit": 0}, 1, 0),
        ({"limit": 1}, MANY, MANY),
        ({"limit": MAX_ROWS_PER_PAGE}, MANY - MAX_ROWS_PER_PAGE + 1, MANY),
        ({"limit": MAX_ROWS_PER_PAGE + 1}, MANY - MAX_ROWS_PER_PAGE, MANY),
        ({"limit": MANY}, 1, MANY),
        ({"limit": 10**9}, 1, MANY),
        ({"after": 600}, 601, MANY),
        ({"after": MANY}, 1, 0),
        ({"before": 600}, 1, 599),
        ({"before": 1}, 1, 0),
        ({"after": 600, "limit": 3}, 601, 603),
        ({"after": 0, "limit": 600}, 1, 600),
        ({"before": 600, "limit": 3}, 597, 599),
        ({"after": 100, "before": 900}, 101, 899),
        ({"after": 100, "before": 900, "limit": 700}, 101, 800),
        ({"after": 2**63 - 1}, 1, 0),
        ({"limit": 600, "session_id": "s"}, MANY - 599, MANY),
        ({"session_id": "another"}, 1, 0),
        ({"session_id": "another", "limit": 5}, 1, 0),
    ],
)
def test_range_is_found_oldest_first(wanted: dict[str, Any], first: int, last: int) -> None:
    with filled(MANY) as log:
        assert [row["id"] for row in asyncio.run(found(log, **wanted))] == list(
            range(first, last + 1)
        )


@pytest.mark.parametrize(
    ("member", "value", "other"),
    [
        ("session_id", "x", "y"),
        ("action_type", "x", "X"),
        ("matched_rule", "x", "x*"),
        ("agent_id", "x", None),
        ("risk_level", RiskLevel.HIGH, RiskLevel.LOW),
        ("result_status", ResultStatus.DENIED, ResultStatus.BLOCKED),
    ],
)
def test_filter_tells_its_value_from_another(member: str, value: Any, other: Any) -> None:
    async def scenario(log: Log) -> list[str]:
        values = [value, other] * 3
        await log.append([record(n, **{member: value}) for n, value in enumerate(values)])
        return await targets(log, **{member: value})

    assert in_log(scenario) == ["0", "2", "4"]


def test_times_are_inclusive() -> None:
    async def scenario(log: Log) -> list[list[str]]:
        await log.append([record(n, timestamp_us=n) for n in range(5)])
        return [
            await targets(log, since_us=2),
            await targets(log, until_us=2),
            await targets(log, since_us=2, until_us=2),
            await targets(log, since_us=3, until_us=2),
        ]

    assert in_log(scenario) == [["2", "3", "4"], ["0", "1", "2"], ["2"], []]


def test_what_is_added_while_pages_are_read_is_not_in_them() -> None:
    async def scenario(log: Log) -> int:
        count = 0
        async for page in log.pages(AuditFilter()):
            count += len(page)
            await log.append([record("later")])
        return count

    with filled(MANY) as log:
        assert asyncio.run(scenario(log)) == MANY


def test_writing_goes_on_while_pages_are_read(tmp_path: Path) -> None:
    async def scenario(log: Log) -> None:
        await log.append([record(n) for n in range(MAX_ROWS_PER_PAGE + 1)])
        reading = log.pages(AuditFilter())
        await anext(reading)
        await log.append([record("written")])
        assert await targets(log, limit=1) == ["written"]
        assert len(await anext(reading)) == 1

    in_log(scenario, path=tmp_path / "audit.db")


def test_reading_that_fails_is_a_store_error(tmp_path: Path) -> None:
    path = tmp_path / "audit.db"
    with opened(path) as (log, store):
        with store.transaction() as connection:
            connection.execute("DROP TABLE record")
        with pytest.raises(StoreError, match="cannot read"):
            asyncio.run(found(log))


# --- append only ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM record",
        "UPDATE record SET action_target = 'another'",
        "UPDATE word SET text = 'another'",
        "DELETE FROM word",
    ],
)
def test_record_is_never_changed_or_removed(statement: str) -> None:
    async def fill(log: Log) -> list[dict[str, Any]]:
        await log.append([record()])
        return await found(log)

    with opened() as (log, store):
        before = asyncio.run(fill(log))
        with pytest.raises(StoreError, match="never"), store.transaction() as connection:
            connection.execute(statement)
        assert asyncio.run(found(log)) == before


# --- times ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("timestamp_us", [0, 1, 999_999, 1_769_882_400_000_000])
def test_timestamp_is_rfc_3339_in_utc_to_the_microsecond(timestamp_us: int) -> None:
    text = timestamp_text(timestamp_us)
    moment = datetime.fromisoformat(text)
    assert moment.utcoffset() == timedelta(0)
    assert round(moment.timestamp() * 1e6) == timestamp_us
    assert len(text) == len("1970-01-01T00:00:00.000000+00:00")


def test_now_is_in_microseconds() -> None:
    assert timestamp_text(now_us()) > "2020"


def test_rows_are_json() -> None:
    async def scenario(log: Log) -> list[dict[str, Any]]:
        await log.append([record()])
        return await found(log)

    rows = in_log(scenario)
    assert json.loads(json.dumps(rows)) == rows
