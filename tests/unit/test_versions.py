"""The history of the policy: what is stored of each version, and in which order."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from aegis.audit.journal import Journal
from aegis.errors import NotFound, PreconditionFailed
from aegis.policy.history import PolicyHistory, PolicyVersion
from aegis.store.database import Store


@pytest.fixture
def history(tmp_path: Path) -> Iterator[PolicyHistory]:
    store = Store(tmp_path / "audit.db")
    yield PolicyHistory(store, Journal(store))
    store.close()


def test_without_a_policy_there_is_no_newest(history: PolicyHistory) -> None:
    assert history.newest() is None
    assert history.newest("file") is None
    assert history.page() == []


def test_versions_count_from_one_over_all_origins(history: PolicyHistory) -> None:
    versions = [
        history.add("s1", "file", 5, "a").version,
        history.add("s2", "put", 6, "b").version,
        history.add("s1", "file", 7, "a").version,
        history.add("s3", "rollback", 8, "c").version,
    ]
    assert versions == [1, 2, 3, 4]


def test_newest_policy_is_that_of_all_or_of_one_origin(history: PolicyHistory) -> None:
    history.add("s1", "file", 5, "a")
    history.add("s2", "put", 6, "é\x00", key_name="ops", note="why")
    put = PolicyVersion(2, "s2", "put", 6, "ops", "why")
    assert history.newest() == history.newest("put") == history.find(2) == put
    assert history.newest("file") == PolicyVersion(1, "s1", "file", 5)


def test_text_of_a_version_is_what_was_stored(history: PolicyHistory) -> None:
    history.add("s1", "file", 5, "")
    history.add("s2", "put", 6, "é\x00")
    assert [history.source(1), history.source(2)] == ["", "é\x00"]


def test_version_that_is_not_there_is_not_found(history: PolicyHistory) -> None:
    with pytest.raises(NotFound, match="no policy version 1"):
        history.find(1)
    with pytest.raises(NotFound, match="no policy version 7"):
        history.source(7)


def test_pages_go_from_the_newest_to_the_oldest(history: PolicyHistory) -> None:
    for number in range(1, 6):
        history.add(f"s{number}", "put", number, "")
    assert [one.version for one in history.page()] == [5, 4, 3, 2, 1]
    assert [one.version for one in history.page(limit=2)] == [5, 4]
    assert [one.version for one in history.page(before=4, limit=2)] == [3, 2]


def test_version_that_may_not_follow_is_not_stored(history: PolicyHistory) -> None:
    history.add("s1", "file", 5, "a")
    with pytest.raises(PreconditionFailed, match="version 1 is in force"):
        history.add("s2", "put", 6, "b", is_expected=lambda newest: newest == 0)
    assert [one.version for one in history.page()] == [1]


def test_versions_of_many_threads_are_all_different(history: PolicyHistory) -> None:
    with ThreadPoolExecutor(8) as pool:
        added = pool.map(lambda n: history.add(f"{n}", "put", n, "").version, range(40))
        assert sorted(added) == list(range(1, 41))
