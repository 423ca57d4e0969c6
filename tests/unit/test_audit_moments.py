"""What may happen between two moments of the audit: nothing is hidden, counted twice or kept for ever."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from statistics import median
from typing import Any

import apsw
import pytest

from aegis.audit import (
    AuditFilter,
    AuditLog,
    Claim,
    Claimed,
    Committed,
    Outcome,
    ResultStatus,
    reader,
    search,
)
from aegis.audit.archive import archive
from aegis.audit.chain import ChainHead
from aegis.audit.export import exported_entries
from aegis.audit.idempotency import KEPT_S
from aegis.audit.index import SEGMENT, sealed_to
from aegis.audit.verify import Pin, verify
from aegis.errors import AuditUnavailable, InvalidTrail, StoreError
from aegis.store.database import Store
from aegis.store.sql import Connection
from aegis.timestamps import now_us
from tests.unit.test_audit import Log, found, opened, record, targets, until

CLAIM = Claim("caller", "key", sha256(b"body").digest())


def once(then: Callable[[], object], before: Any) -> Any:
    """`before`, with something that happens just ahead of its first call."""
    left = [then]

    def called(*arguments: Any, **named: Any) -> Any:
        if left:
            left.pop()()
        return before(*arguments, **named)

    return called


def begun(target: object, log: AuditLog) -> Any:
    return record(target, result_status=ResultStatus.STARTED, worker=log.worker)


# --- words ---


@pytest.mark.slow
def test_commit_with_new_words_costs_the_same_however_many_are_known() -> None:
    def cost_s(chain: ChainHead, store: Store, name: str) -> float:
        """Of one commit with a session of its own: the median, of this thread alone."""
        took = []
        for number in range(200):
            entries = [record(session_id=f"{name}/{number}")]
            with store.transaction() as connection:
                begun_s = time.thread_time()
                appended = chain.append(connection, entries)
                took.append(time.thread_time() - begun_s)
            chain.committed(appended)
        return median(took)

    store = Store(":memory:")
    with closing(store):
        chain = ChainHead(store)
        few_s = cost_s(chain, store, "few")
        with store.transaction() as connection:
            many = [record(session_id=str(number)) for number in range(90_000)]
            appended = chain.append(connection, many)
        chain.committed(appended)
        assert cost_s(chain, store, "many") < 2 * few_s


# --- pages ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wanted", [AuditFilter(agent_id="a"), AuditFilter(agent_id="a", limit=9_999)]
)
def test_segments_that_are_indexed_while_a_page_is_read_hide_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: AuditFilter
) -> None:
    path = tmp_path / "audit.db"
    count = 3 * SEGMENT
    other = Store(path)
    assert other.hold(1 << 40)  # so that nobody indexes

    with opened(path) as (log, store):

        def index() -> None:
            other.close()

            async def more() -> None:
                await log.append([record() for _ in range(SEGMENT)])
                await until(is_indexed)

            asyncio.run(more())

        def is_indexed() -> bool:
            with store.reading() as connection:
                return sealed_to(connection) >= 2 * SEGMENT

        asyncio.run(log.append([record(n, agent_id="a") for n in range(count)]))
        monkeypatch.setattr(search, "sealed_to", once(index, sealed_to))
        rows = [row for page in log.reader.read(wanted) for row in page]
    assert [row["action_target"] for row in rows] == [
        str(n) for n in range(max(0, count - (wanted.limit or count)), count)
    ]


def test_posting_that_was_put_there_before_its_segment_is_sealed_does_not_stay(
    tmp_path: Path,
) -> None:
    path = tmp_path / "audit.db"
    with opened(path) as (log, store):
        with store.transaction() as connection:  # of a rule and of an agent that no record names
            connection.execute("INSERT INTO posting VALUES (0, 2, 900, x'0500'), (0, 3, 901, x'')")

        async def fill() -> None:
            await log.append([record(n) for n in range(2 * SEGMENT)])
            await until(is_sealed)

        def is_sealed() -> bool:
            with store.reading() as connection:
                return sealed_to(connection) > 0

        asyncio.run(fill())
        verify(store)


def test_outcome_that_comes_while_a_page_is_read_hides_no_other_from_a_follower(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(tmp_path / "audit.db") as (log, _):
        asyncio.run(log.append([begun(n, log) for n in range(1, 8)]))

        def end_the_first() -> None:
            asyncio.run(log.append([Outcome(9, 1, ResultStatus.SUCCESS, None, None)]))

        def follow() -> list[int]:
            seen, seq = [], 0
            while page := next(log.reader.read(AuditFilter(since_seq=seq, limit=3)), None):
                seen += [row["id"] for row in page]
                seq = page[-1]["seq"]
            return seen

        page = reader._page  # noqa: SLF001 - the moment in between has no door
        monkeypatch.setattr(reader, "_page", once(end_the_first, page))
        assert set(follow()) == set(range(1, 8))


@pytest.mark.parametrize(
    "wanted", [AuditFilter(), AuditFilter(agent_id="a"), AuditFilter(since_seq=0)]
)
def test_records_that_are_archived_while_they_are_read_are_not_left_out_unsaid(
    tmp_path: Path, wanted: AuditFilter
) -> None:
    with opened(tmp_path / "audit.db") as (log, store):
        asyncio.run(log.append([record(n, agent_id="a") for n in range(1_200)]))
        pages = log.reader.read(wanted)
        assert len(next(pages)) == reader.MAX_ROWS_PER_PAGE
        archive(store, now_us(), tmp_path / "old.db")
        with pytest.raises(StoreError, match="archived while they were read"):
            list(pages)
        # What comes later is another question.
        assert list(log.reader.read(wanted)) == []


def test_reading_sees_one_moment(tmp_path: Path) -> None:
    def counted(connection: Connection) -> Any:
        return connection.execute("SELECT count(*) FROM record").get

    with opened(tmp_path / "audit.db") as (log, store):
        asyncio.run(log.append([record()]))
        with store.reading() as connection:
            assert counted(connection) == 1
            asyncio.run(log.append([record()]))
            assert counted(connection) == 1
        with store.reading() as connection:
            assert counted(connection) == 2


# --- requests ------------------------------------------------------------------------------------


def test_request_whose_beginning_was_refused_may_be_made_again(tmp_path: Path) -> None:
    path = tmp_path / "audit.db"

    async def scenario(log: Log) -> tuple[Committed | Claimed, list[str]]:
        with closing(apsw.Connection(str(path))) as other:
            other.execute("BEGIN IMMEDIATE")
            # Its commit has begun, and waits for the other program, when its caller gives up.
            with pytest.raises(AuditUnavailable, match="not committed within"):
                await log.append([begun("late", log)], claim=CLAIM)
            other.execute("ROLLBACK")
        await until(lambda: log.queued == 0)
        again = await log.append([begun("again", log)], claim=CLAIM)
        return again, [row["result_status"] for row in await found(log)]

    with opened(path, timeout_s=0.1) as (log, _):
        again, statuses = asyncio.run(scenario(log))
    assert isinstance(again, Committed)
    assert statuses in (["skipped", "started"], ["started"])


@pytest.mark.slow
@pytest.mark.parametrize("locked_s", [0.05, 0.15, 0.25, 0.4, 0.8, 1.1])
def test_record_whose_caller_was_refused_is_stored_neither_then_nor_later(
    tmp_path: Path, locked_s: float
) -> None:
    path = tmp_path / "audit.db"

    async def scenario(log: Log) -> tuple[bool, list[str]]:
        with closing(apsw.Connection(str(path))) as other:
            other.execute("BEGIN IMMEDIATE")
            asyncio.get_running_loop().call_later(locked_s, other.execute, "ROLLBACK")
            try:
                await log.append([record("asked for")])
                is_told = True
            except AuditUnavailable:
                is_told = False
            await until(lambda: not other.in_transaction and log.queued == 0)
        await log.append([record("next")])
        return is_told, await targets(log)

    with opened(path, timeout_s=0.2) as (log, _):
        is_told, stored = asyncio.run(scenario(log))
    assert stored == (["asked for", "next"] if is_told else ["next"])


def test_commit_that_goes_on_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(log: Log) -> tuple[Committed | Claimed, list[str]]:
        return await log.append([record("slow")]), await targets(log)

    def slow() -> None:
        time.sleep(0.3)  # as a disk that is slow to sync

    with opened(timeout_s=0.05) as (log, _):
        chain = log._chain  # noqa: SLF001 - the moment in between has no door
        monkeypatch.setattr(chain, "append", once(slow, chain.append))
        assert asyncio.run(scenario(log)) == (Committed(1, None), ["slow"])


def test_records_that_a_key_may_ask_for_are_not_archived(tmp_path: Path) -> None:
    with opened(tmp_path / "audit.db") as (log, store):

        async def fill() -> None:
            await log.append([record("old"), record("older")])
            await log.append([record("asked for"), record("too")], claim=CLAIM, is_last=True)
            await log.append([record("new")])

        asyncio.run(fill())
        assert archive(store, now_us(), tmp_path / "old.db").last == 2
        with store.transaction() as connection:
            connection.execute(
                "UPDATE request SET created_us = created_us - ?", (KEPT_S * 1_000_000,)
            )
        assert (
            archive(store, now_us(), tmp_path / "new.db").last == 6
        )  # with the entry of the first
        assert asyncio.run(targets(log)) == []


HOUR_US = 3_600_000_000


def archived_of(tmp_path: Path, ages_h: list[int], before_h: int) -> tuple[int, str | None]:
    """Up to which entry a trail is archived, and what keeps the rest, by the entries' ages in hours."""
    now = now_us()
    with opened(tmp_path / "audit.db") as (log, store):
        asyncio.run(log.append([record(timestamp_us=now - age * HOUR_US) for age in ages_h]))
        done = archive(store, now - before_h * HOUR_US, tmp_path / "old.db")
    return done.last, done.kept_by


@pytest.mark.parametrize(
    ("ages_h", "last", "because"),
    [
        ([50, 40, 30, 20, 10], 3, None),
        ([50, -9_000, 30, 20, -5], 3, None),  # a clock ran ahead, further than now
        ([50, 2, 30, 20, 10], 1, "entry 2 is of "),  # it ran ahead, or was set back since
        ([50, 40, 10, -1, 30, 20], 2, "entry 3 is of "),
        ([2, 1], 0, None),
        ([2, 30, 1], 0, "entry 1 is of "),
    ],
)
def test_clock_that_ran_ahead_keeps_no_links_from_the_archive_unsaid(
    tmp_path: Path, ages_h: list[int], last: int, because: str | None
) -> None:
    found, kept_by = archived_of(tmp_path, ages_h, 25)
    assert found == last
    assert (kept_by or "").startswith(because or "")
    assert (kept_by is None) == (because is None)


def test_archive_says_which_action_and_which_request_keep_the_rest(tmp_path: Path) -> None:
    with opened(tmp_path / "audit.db") as (log, store):

        async def fill() -> None:
            await log.append([record()])
            await log.append([record()], claim=CLAIM, is_last=True)
            await log.append([begun("runs", log)])

        asyncio.run(fill())
        done = archive(store, now_us(), tmp_path / "old.db")
        assert (done.last, done.kept_by) == (
            1,
            "entry 2 may be asked for again, for a day, by its Idempotency-Key",
        )
        with store.transaction() as connection:
            connection.execute("UPDATE request SET created_us = 0")
        done = archive(store, now_us(), tmp_path / "more.db")
        assert (done.last, done.kept_by) == (2, "entry 3 has not ended")


# --- pins ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("knows_number", [True, False])
def test_pin_that_nothing_leads_to_from_the_first_link_to_look_at_is_refused(
    tmp_path: Path, knows_number: bool
) -> None:
    with opened(tmp_path / "audit.db") as (log, store):
        asyncio.run(log.append([record(n) for n in range(3)]))
        head = log.reader.read_head()
        asyncio.run(log.append([record(n) for n in range(5)]))
        pinned = bytes.fromhex(head["hash"])
        pin = Pin(pinned, head["id"] if knows_number else None)
        assert verify(store, pin=pin, since=4).pinned == 3
        with pytest.raises(StoreError, match="entry 3 is before entry 5"):
            verify(store, pin=pin, since=5)
        wrong = replace(pin, hash=sha256(pinned).digest())
        with pytest.raises(InvalidTrail) as refused:
            verify(store, pin=wrong, since=4)
        assert refused.value.number == (3 if knows_number else 9)


def test_pin_that_was_archived_is_not_called_missing(tmp_path: Path) -> None:
    with opened(tmp_path / "audit.db") as (log, store):
        asyncio.run(log.append([record(n) for n in range(3)]))
        head = log.reader.read_head()
        asyncio.run(log.append([record(n) for n in range(5)]))
        archive(store, now_us(), tmp_path / "old.db")
        pin = Pin(bytes.fromhex(head["hash"]), head["id"])
        with pytest.raises(StoreError, match=r"entry 3 was archived; verify `old\.db` with it"):
            verify(store, pin=pin)
        old = Store(tmp_path / "old.db", read_only=True)
        assert verify(old, pin=pin).pinned == 3
        old.close()


def test_verification_and_export_take_large_records_a_few_at_a_time(tmp_path: Path) -> None:
    with opened(tmp_path / "audit.db") as (log, store):
        large = "x" * 2_000_000
        asyncio.run(log.append([record(n, action_params=large) for n in range(12)]))
        seen: list[int] = []
        assert verify(store, tick=seen.append).count == 12
        assert len(seen) > 2
        assert seen[-1] == 12
        assert sum(1 for _ in exported_entries(store)) == 13
