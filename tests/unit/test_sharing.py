"""Which policy is in force at the start, and how everyone learns of a newer one."""

from __future__ import annotations

import logging
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from aegis.compiled import CompiledFiles, PolicyText
from aegis.decisions import Snapshot
from aegis.errors import StoreError
from aegis.sharing import PolicyVersions
from aegis.store import Store


def policy(name: str) -> PolicyText:
    """A policy whose one rule, of this name, decides about everything."""
    return CompiledFiles(":memory:").load(f"rules: [{{name: {name}}}]")


def rule_of(snapshot: Snapshot) -> str:
    """The name of the rule of a policy in force; `<default>` where it has none."""
    return snapshot.engine.evaluate("anything").matched_rule


@contextmanager
def opened(path: Path) -> Iterator[PolicyVersions]:
    """The versions of a database, as one process has them."""
    store = Store(path)
    versions = PolicyVersions(store)
    try:
        yield versions
    finally:
        versions.close()
        store.close()


def started(path: Path, name: str | None, *, reset: bool = False) -> tuple[int, str, str]:
    """Version, rule and origin of the policy in force after a start with this file."""
    with opened(path) as versions:
        file = None if name is None else policy(name)
        snapshot = versions.start(file, reset=reset)
        assert versions.newest[0] == snapshot.version
        return snapshot.version, rule_of(snapshot), snapshot.stored.origin


def put(path: Path, name: str) -> None:
    """Put a policy, as a running server does."""
    with opened(path) as versions:
        versions.announce(versions.put(policy(name)))


def stored(path: Path) -> list[tuple[int, str]]:
    """Version and origin of all that is in the history."""
    store = Store(path)
    try:
        with store.reading() as connection:
            rows: list[Any] = connection.execute(
                "SELECT version, origin FROM policy_version ORDER BY version"
            ).fetchall()
    finally:
        store.close()
    return rows


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.db"


# --- the newest intent wins ----------------------------------------------------------------------


def test_first_start_takes_the_file(path: Path) -> None:
    assert started(path, "a") == (1, "a", "file")


def test_unchanged_file_makes_no_new_version(path: Path) -> None:
    for _ in range(3):
        assert started(path, "a") == (1, "a", "file")
    assert stored(path) == [(1, "file")]


def test_changed_file_becomes_a_new_version(path: Path) -> None:
    started(path, "a")
    assert started(path, "b") == (2, "b", "file")
    assert stored(path) == [(1, "file"), (2, "file")]


def test_file_that_is_changed_back_becomes_a_new_version(path: Path) -> None:
    started(path, "a")
    started(path, "b")
    assert started(path, "a") == (3, "a", "file")


def test_unchanged_file_leaves_a_newer_put_in_force_and_that_is_said(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    started(path, "a")
    put(path, "p")
    with caplog.at_level(logging.WARNING):
        assert started(path, "a") == (2, "p", "put")
    assert "--reset-policy" in caplog.text
    assert "version 2" in caplog.text
    assert started(path, "a") == (2, "p", "put")
    assert stored(path) == [(1, "file"), (2, "put")]


def test_changed_file_replaces_a_put_which_stays_in_the_history_and_that_is_said(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    started(path, "a")
    put(path, "p")
    with caplog.at_level(logging.WARNING):
        assert started(path, "b") == (3, "b", "file")
    assert "version 2" in caplog.text
    assert stored(path) == [(1, "file"), (2, "put"), (3, "file")]
    assert started(path, "b") == (3, "b", "file")


def test_ordinary_start_says_nothing(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        for name in ("a", "a", "b"):
            started(path, name)
    assert caplog.text == ""


def test_reset_goes_back_to_the_file(path: Path) -> None:
    started(path, "a")
    put(path, "p")
    put(path, "q")
    assert started(path, "a", reset=True) == (4, "a", "file")
    assert started(path, "a") == (4, "a", "file")


def test_reset_without_a_put_changes_nothing(path: Path) -> None:
    started(path, "a")
    assert started(path, "a", reset=True) == (1, "a", "file")


def test_reset_with_a_changed_file_takes_it_once(path: Path) -> None:
    started(path, "a")
    put(path, "p")
    assert started(path, "b", reset=True) == (3, "b", "file")


def test_put_before_the_last_change_of_the_file_does_not_come_back(path: Path) -> None:
    started(path, "a")
    put(path, "p")
    started(path, "b")
    assert started(path, "b") == (3, "b", "file")


def test_put_of_the_text_in_force_makes_no_new_version(path: Path) -> None:
    started(path, "a")
    put(path, "a")
    assert started(path, "a") == (1, "a", "file")
    put(path, "p")
    put(path, "p")
    assert stored(path) == [(1, "file"), (2, "put")]


def test_file_that_is_unchanged_leaves_a_rollback_in_force(path: Path) -> None:
    started(path, "a")
    put(path, "p")
    put(path, "q")
    with opened(path) as versions:
        versions.announce(versions.rollback(2))
    assert started(path, "a") == (4, "p", "rollback")
    assert started(path, "b") == (5, "b", "file")


def test_file_that_a_put_said_before_is_a_change_of_the_file(path: Path) -> None:
    started(path, "a")
    put(path, "b")
    assert started(path, "b") == (3, "b", "file")


def test_without_a_file_what_is_in_force_stays(path: Path) -> None:
    started(path, "a")
    assert started(path, None) == (1, "a", "file")
    put(path, "p")
    assert started(path, None) == (2, "p", "put")


def test_without_anything_the_defaults_are_in_force(path: Path) -> None:
    assert started(path, None) == (1, "<default>", "file")
    assert started(path, "a") == (2, "a", "file")


def test_database_in_memory_takes_the_file_each_time() -> None:
    for _ in range(2):
        store = Store(":memory:")
        versions = PolicyVersions(store)
        assert versions.start(policy("a")).version == 1
        versions.close()
        store.close()


# --- who learns of it ----------------------------------------------------------------------------


def test_put_is_known_to_every_store_when_it_is_announced(path: Path) -> None:
    with opened(path) as one, opened(path) as other:
        one.start(policy("a"))
        other.start(policy("a"))
        snapshot = one.put(policy("p"))
        assert other.newest[0] == 1
        one.announce(snapshot)
        assert other.newest[0] == 2
        assert rule_of(other.load_newest()) == "p"


def test_put_of_another_process_is_known_when_it_ends(path: Path) -> None:
    with opened(path) as versions:
        versions.start(policy("a"))
        code = f"""
            from aegis.compiled import CompiledFiles
            from aegis.sharing import PolicyVersions
            from aegis.store import Store

            store = Store({str(path)!r})
            versions = PolicyVersions(store)
            versions.announce(versions.put(CompiledFiles(store.path).load("rules: [{{name: p}}]")))
            versions.close()
            store.close()
        """
        subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, timeout=60)
        assert versions.newest[0] == 2
        assert rule_of(versions.load_newest()) == "p"


def test_newest_never_goes_back(path: Path) -> None:
    with opened(path) as versions:
        versions.start(policy("a"))
        older = versions.put(policy("b"))
        newer = versions.put(policy("c"))
        versions.announce(newer)
        versions.announce(older)
        assert versions.newest[0] == newer.version == 3


def test_newest_is_the_last_of_many_puts_of_many_stores(path: Path) -> None:
    names = [f"p{number}" for number in range(20)]
    with opened(path) as one, opened(path) as other:
        one.start(policy("a"))
        other.start(policy("a"))

        def put_one(index: int) -> int:
            versions = (one, other)[index % 2]
            return versions.announce(versions.put(policy(names[index]))).version

        with ThreadPoolExecutor(4) as pool:
            versions = list(pool.map(put_one, range(20)))
        assert sorted(versions) == list(range(2, 22))
        assert one.newest[0] == other.newest[0] == 21
        assert rule_of(other.load_newest()) == names[versions.index(21)]


def test_new_process_knows_the_newest_at_once(path: Path) -> None:
    started(path, "a")
    put(path, "p")
    with opened(path) as versions:
        assert versions.newest[0] == 2


def test_lost_shared_file_is_made_anew(path: Path) -> None:
    started(path, "a")
    put(path, "p")
    Path(f"{path}.version").unlink()
    assert started(path, "a") == (2, "p", "put")


def test_shared_file_of_another_database_is_no_reason_to_fail(path: Path) -> None:
    Path(f"{path}.version").write_bytes(b"")
    assert started(path, "a") == (1, "a", "file")


def test_shared_file_that_cannot_be_made_is_a_store_error(path: Path) -> None:
    Path(f"{path}.version").mkdir()
    store = Store(path)
    with pytest.raises(StoreError, match="cannot use"):
        PolicyVersions(store)
    store.close()


def test_what_is_announced_is_compiled() -> None:
    store = Store(":memory:")
    versions = PolicyVersions(store)
    snapshot = versions.start(policy("a"))
    assert snapshot.engine is snapshot.engine
    assert versions.load_newest().engine.evaluate("x").matched_rule == "a"
    versions.close()
    store.close()


def test_readers_never_see_an_older_version_than_was_announced(path: Path) -> None:
    with opened(path) as one, opened(path) as other:
        one.start(policy("a"))
        is_over = threading.Event()
        gone_back: list[tuple[int, int]] = []

        def watch() -> None:
            last = 0
            while not is_over.is_set():
                seen = other.newest[0]
                if seen < last:
                    gone_back.append((last, seen))
                last = seen

        thread = threading.Thread(target=watch)
        thread.start()
        for number in range(20):
            version = one.announce(one.put(policy(f"p{number}"))).version
            assert other.newest[0] >= version
        is_over.set()
        thread.join(10)
        assert gone_back == []
