"""Reading: whatever is asked for, the index and the rest find what looking at every record finds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis.audit import (
    AuditFilter,
    AuditLog,
    AuditReader,
    AuditRecord,
    Operation,
    Outcome,
    ResultStatus,
)
from aegis.audit.archive import archive
from aegis.audit.index import SEGMENT, sealed_to
from aegis.store.database import Store
from aegis_core import Approval, RiskLevel
from tests.property.test_chain import fault, forge

LINKS = 3 * SEGMENT + 3_000
SEALED = 3 * SEGMENT
PATIENCE_S = 30.0
TYPES = ["read", "read", "read", "write", "delete", "é\0"]
AGENTS = [None, "a", "a", "b", "rare agent"]
ENDS = [ResultStatus.SUCCESS, ResultStatus.SUCCESS, ResultStatus.FAILED, ResultStatus.INTERRUPTED]
DONE = [ResultStatus.SUCCESS, ResultStatus.BLOCKED, ResultStatus.BLOCKED, ResultStatus.DENIED]


@dataclass(slots=True)
class Known:
    """A record as it stands in the end, without any database."""

    id: int
    seq: int
    record: AuditRecord
    status: ResultStatus


class Trail:
    """Random entries, with what is known of them.

    Attributes:
        entries: In their order.
        known: The records among them, in that order.
    """

    def __init__(self, random: Random, worker: int) -> None:
        self.entries: list[AuditRecord | Outcome] = []
        self.known: list[Known] = []
        begun: list[Known] = []
        now = 1_000_000_000
        for number in range(1, LINKS + 1):
            # Now and then the clock is set back.
            now += random.choice([0, 1, 5, 1_000, -300_000 if number % 997 == 0 else 10])
            must_end = begun and number < LINKS - 1_000 and begun[0].id < number - 300
            if begun and (must_end or random.random() < 0.3):
                ended = begun.pop(0 if must_end else random.randrange(len(begun)))
                ended.status, ended.seq = random.choice(ENDS), number
                self.entries.append(Outcome(now, ended.id, ended.status, None, None))
                continue
            record = self._record(random, now, number, worker)
            self.entries.append(record)
            self.known.append(Known(number, number, record, record.result_status))
            if record.result_status is ResultStatus.STARTED:
                begun.append(self.known[-1])

    def _record(self, random: Random, now: int, number: int, worker: int) -> AuditRecord:
        is_begun = random.random() < 0.3
        # One rule is of the second segment alone, one session of three places far apart.
        rule = "new rule" if SEGMENT < number < 2 * SEGMENT and number % 50 == 0 else "reads"
        session = "rare" if number in (SEGMENT - 1, 2 * SEGMENT, LINKS - 1) else "s"
        return AuditRecord(
            timestamp_us=now,
            session_id=session,
            action_type=random.choice(TYPES),
            action_target=str(number),
            action_params="{}",
            action_desc=None,
            risk_level=random.choice(list(RiskLevel)),
            approval=Approval.AUTO,
            matched_rule=rule,
            human_decision=None,
            result_status=ResultStatus.STARTED if is_begun else random.choice(DONE),
            result_data=None,
            result_error=None,
            agent_id=random.choice(AGENTS),
            parent_agent_id=None,
            chain_id=None,
            chain_depth=0,
            policy_version=1,
            operation=Operation.EVALUATE if number % 7 == 0 else Operation.EXECUTE,
            worker=worker if is_begun else None,
        )


@dataclass(frozen=True, slots=True)
class Written:
    """A database, and what is known of it."""

    reader: AuditReader
    known: list[Known]


@pytest.fixture(scope="module")
def trail(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Written]:
    """A long trail, whose first segments are indexed."""
    store = Store(Path(tmp_path_factory.mktemp("reading")) / "audit.db")
    log = AuditLog(store, most_queued=2 * LINKS, timeout_s=60)
    reader = AuditReader(store)
    try:
        made = Trail(Random(5), log.worker)
        asyncio.run(_append(log, made.entries))
        deadline = time.monotonic() + PATIENCE_S
        while _sealed(store) < SEALED:
            assert time.monotonic() < deadline, "the segments were not indexed"
            time.sleep(0.01)
        yield Written(reader, made.known)
    finally:
        reader.close()
        log.close()
        store.close()


async def _append(log: AuditLog, entries: list[AuditRecord | Outcome]) -> None:
    for start in range(0, len(entries), 500):
        await log.append(entries[start : start + 500])


def _sealed(store: Store) -> int:
    with store.reading() as connection:
        return sealed_to(connection)


# --- what is asked for, and what fits ------------------------------------------------------------

near = st.builds(
    lambda base, more: max(0, base + more),
    st.sampled_from([0, 1, SEGMENT, 2 * SEGMENT, 3 * SEGMENT, LINKS]),
    st.integers(-3, 3),
)
ids = st.none() | near | st.integers(0, LINKS + 5)
moments = st.none() | st.integers(999_000_000, 1_003_500_000)
limits = st.none() | st.sampled_from([0, 1, 2, 100, 500, 501]) | st.integers(0, 2_000)


def often_none(values: Any) -> st.SearchStrategy[Any]:
    return st.one_of(st.none(), st.none(), st.sampled_from(values))


filters = st.builds(
    AuditFilter,
    session_id=often_none(["s", "rare", "unknown"]),
    action_type=often_none([*TYPES, "unknown"]),
    risk_level=often_none(list(RiskLevel)),
    result_status=often_none(list(ResultStatus)),
    agent_id=often_none(["a", "b", "rare agent"]),
    matched_rule=often_none(["reads", "new rule"]),
    operation=often_none(list(Operation)),
    since_us=moments,
    until_us=moments,
    after=ids,
    before=ids,
    limit=limits,
)


def fits(wanted: AuditFilter, one: Known) -> bool:
    """Whether a record is one of those that are asked for."""
    record = one.record
    said = {
        "session_id": record.session_id,
        "action_type": record.action_type,
        "risk_level": record.risk_level,
        "result_status": one.status,
        "agent_id": record.agent_id,
        "matched_rule": record.matched_rule,
        "operation": record.operation,
    }
    return (
        all(getattr(wanted, name) in (None, value) for name, value in said.items())
        and (wanted.since_us is None or record.timestamp_us >= wanted.since_us)
        and (wanted.until_us is None or record.timestamp_us <= wanted.until_us)
        and (wanted.after is None or one.id > wanted.after)
        and (wanted.before is None or one.id < wanted.before)
        and (wanted.since_seq is None or one.seq > wanted.since_seq)
    )


def expected(wanted: AuditFilter, known: list[Known]) -> list[tuple[int, int, str]]:
    """What looking at every record finds."""
    found = [one for one in known if fits(wanted, one)]
    if wanted.since_seq is not None:
        found.sort(key=lambda one: one.seq)
    if wanted.limit is not None:
        first_so_many = wanted.since_seq is not None or wanted.after is not None
        found = found[: wanted.limit] if first_so_many else found[-wanted.limit :]
        found = found if wanted.limit else []
    return [(one.id, one.seq, one.status.value) for one in found]


def read(reader: AuditReader, wanted: AuditFilter) -> list[tuple[int, int, str]]:
    return [
        (row["id"], row["seq"], row["result_status"])
        for page in reader.read(wanted)
        for row in page
    ]


@given(filters)
def test_filter_finds_what_looking_at_every_record_finds(
    trail: Written, wanted: AuditFilter
) -> None:
    assert read(trail.reader, wanted) == expected(wanted, trail.known)


@given(filters, near | st.integers(0, LINKS + 5))
def test_follower_gets_every_record_by_its_newest_link(
    trail: Written, wanted: AuditFilter, since_seq: int
) -> None:
    wanted = replace(wanted, since_seq=since_seq)
    assert read(trail.reader, wanted) == expected(wanted, trail.known)


@given(filters, st.integers(1, 700))
def test_pages_by_id_are_the_whole(trail: Written, wanted: AuditFilter, size: int) -> None:
    whole = expected(replace(wanted, limit=None), trail.known)[: 5 * size]
    after = wanted.after or 0
    paged: list[tuple[int, int, str]] = []
    while len(paged) < len(whole):
        page = read(trail.reader, replace(wanted, after=after, limit=size))
        assert page
        paged += page
        after = page[-1][0]
    assert paged[: len(whole)] == whole


@given(filters, st.integers(1, 700))
def test_pages_by_seq_are_the_whole(trail: Written, wanted: AuditFilter, size: int) -> None:
    wanted = replace(wanted, since_seq=0)
    whole = expected(replace(wanted, limit=None), trail.known)[: 5 * size]
    seq = 0
    paged: list[tuple[int, int, str]] = []
    while len(paged) < len(whole):
        page = read(trail.reader, replace(wanted, since_seq=seq, limit=size))
        assert page
        paged += page
        seq = page[-1][1]
    assert paged[: len(whole)] == whole


def test_counts_are_those_of_all_records(trail: Written) -> None:
    stats = trail.reader.read_stats()
    assert (stats["records"], stats["entries"]) == (len(trail.known), LINKS)
    for status in ResultStatus:
        count = sum(one.status is status for one in trail.known)
        assert stats["result_statuses"].get(status.value, 0) == count


# --- the index, changed --------------------------------------------------------------------------

FORGERIES = {
    "a posting without its records": "UPDATE posting SET records = x'' WHERE segment = {} AND kind = 1",
    "postings that are none": "UPDATE posting SET records = x'ff' WHERE segment = {} AND kind = 1",
    "no postings of a kind": "DELETE FROM posting WHERE segment = {} AND kind = 4",
    "a posting too many": "INSERT INTO posting VALUES ({}, 4, 9999, x'ff0f')",
    "no segment": "DELETE FROM segment WHERE id = {}",
    "another time": "UPDATE segment SET last_us = 0 WHERE id = {}",
}


@pytest.mark.parametrize("is_archived", [False, True])
@pytest.mark.parametrize("forgery", FORGERIES)
def test_index_that_hides_records_is_found(
    trail: Written, tmp_path: Path, forgery: str, is_archived: bool
) -> None:
    path = tmp_path / "audit.db"
    trail.reader.store.copy_to(path, lambda _done, _of: None)
    copy = Store(path)
    if is_archived:
        before_us = trail.known[SEGMENT + SEGMENT // 2].record.timestamp_us
        assert SEGMENT < archive(copy, before_us, tmp_path / "old.db").last < 2 * SEGMENT
    copy.end_log()
    copy.close()
    for segment in [1] if is_archived else [0, 1]:
        assert fault(path) is None
        content = path.read_bytes()
        forge(path, FORGERIES[forgery].format(segment))
        assert fault(path) == segment * SEGMENT
        path.write_bytes(content)


@pytest.mark.parametrize("segment", [SEALED // SEGMENT, 2**40])
def test_index_of_links_that_are_not_there_is_found(
    trail: Written, tmp_path: Path, segment: int
) -> None:
    path = tmp_path / "audit.db"
    trail.reader.store.copy_to(path, lambda _done, _of: None)
    forge(path, f"INSERT INTO segment VALUES ({segment}, 0, 0)")
    assert fault(path) == SEALED
