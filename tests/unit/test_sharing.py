"""Which policy is in force at the start, and how everyone learns of a newer one."""

from __future__ import annotations

import itertools
import logging
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import pytest

from aegis.audit.journal import Journal
from aegis.errors import NotReady, StoreError
from aegis.host.workers import Workers
from aegis.policy import rollout
from aegis.policy.compiled_cache import CompiledFiles, PolicyText
from aegis.policy.decision_point import DecisionPoint, Snapshot
from aegis.policy.rollout import PolicyVersions
from aegis.store.database import Store


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
    versions = PolicyVersions(store, Journal(store))
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
        versions.put(policy(name))


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


STEPS = ("edit", "put", "rollback", "restart")


@pytest.mark.slow
@pytest.mark.parametrize("steps", list(itertools.product(STEPS, repeat=4)), ids="-".join)
def test_after_any_steps_and_a_restart_the_newest_intent_is_in_force(
    path: Path, steps: tuple[str, ...]
) -> None:
    """The file as it is, where it was edited since it was last loaded; else what was last in force."""
    file = loaded = in_force = "file_0"
    assert started(path, file)[1] == in_force
    for number, step in enumerate((*steps, "restart")):
        match step:
            case "edit":
                file = f"file_{number}"
            case "put":
                in_force = f"put_{number}"
                put(path, in_force)
            case "rollback":
                in_force = "file_0"  # which is version 1
                with opened(path) as versions:
                    versions.rollback(1)
            case _:
                in_force, loaded = (in_force, loaded) if file == loaded else (file, file)
                assert started(path, file)[1] == in_force


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
        versions.rollback(2)
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
        versions = PolicyVersions(store, Journal(store))
        assert versions.start(policy("a")).version == 1
        versions.close()
        store.close()


def test_same_changed_file_of_several_processes_is_one_version(path: Path) -> None:
    started(path, "a")
    with opened(path) as one, opened(path) as other, ThreadPoolExecutor(2) as pool:
        snapshots = list(pool.map(lambda versions: versions.start(policy("b")), (one, other)))
    assert [snapshot.version for snapshot in snapshots] == [2, 2]
    assert stored(path) == [(1, "file"), (2, "file")]


# --- who learns of it ----------------------------------------------------------------------------


def test_put_is_known_to_every_store_when_it_returns(path: Path) -> None:
    with opened(path) as one, opened(path) as other:
        one.start(policy("a"))
        other.start(policy("a"))
        in_force = one.put(policy("p"))
        assert (in_force.snapshot.version, rule_of(in_force.snapshot)) == (2, "p")
        assert other.newest[0] == 2
        assert rule_of(other.load_newest()) == "p"


def test_put_of_another_process_is_known_when_it_ends(path: Path) -> None:
    with opened(path) as versions:
        versions.start(policy("a"))
        in_another_process(path, 'versions.put(files.load("rules: [{name: p}]"))')
        assert versions.newest[0] == 2
        assert rule_of(versions.load_newest()) == "p"


def test_newest_is_the_last_of_many_puts_of_many_stores(path: Path) -> None:
    names = [f"p{number}" for number in range(20)]
    with opened(path) as one, opened(path) as other:
        one.start(policy("a"))
        other.start(policy("a"))

        def put_one(index: int) -> int:
            versions = (one, other)[index % 2]
            return versions.put(policy(names[index])).snapshot.version

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


def test_process_that_is_killed_before_the_word_is_raised_leaves_no_old_policy(path: Path) -> None:
    with opened(path) as versions:
        versions.start(policy("a"))
        versions.history.add("0" * 64, "put", 1, "rules: [{name: committed}]")
        assert versions.newest[0] == 1
        with opened(path) as other:
            assert rule_of(other.start(None)) == "committed"
        assert versions.newest[0] == 2


def test_word_of_another_history_is_set_right_at_the_start(path: Path) -> None:
    started(path, "a")
    with opened(path) as versions:
        versions.newest[0] = 99
    assert started(path, "a") == (1, "a", "file")


def test_lost_shared_file_is_made_anew(path: Path) -> None:
    started(path, "a")
    put(path, "p")
    Path(f"{path}.version").unlink()
    assert started(path, "a") == (2, "p", "put")


@pytest.mark.parametrize("content", [b"", b"\x07" * 8, b"\xff" * 100_000])
def test_shared_file_of_another_meaning_is_no_reason_to_fail(path: Path, content: bytes) -> None:
    Path(f"{path}.version").write_bytes(content)
    assert started(path, "a") == (1, "a", "file")
    put(path, "p")
    assert started(path, "a") == (2, "p", "put")


def test_shared_file_that_cannot_be_made_is_a_store_error(path: Path) -> None:
    Path(f"{path}.version").mkdir()
    store = Store(path)
    with pytest.raises(StoreError, match="cannot use"):
        PolicyVersions(store, Journal(store))
    store.close()


def test_what_is_in_force_in_memory_is_compiled() -> None:
    store = Store(":memory:")
    versions = PolicyVersions(store, Journal(store))
    assert rule_of(versions.start(policy("a"))) == "a"
    versions.put(policy("p"))
    assert rule_of(versions.load_newest()) == "p"
    versions.close()
    store.close()


# --- how they switch -----------------------------------------------------------------------------


@contextmanager
def following(path: Path) -> Iterator[tuple[PolicyVersions, DecisionPoint]]:
    """A process that decides, as a server does."""
    with opened(path) as versions:
        decisions = DecisionPoint()
        snapshot = versions.start(policy("a"))
        decisions.begin(snapshot, versions.newest, versions.load_newest)
        versions.follow(snapshot, decisions.switch)
        try:
            yield versions, decisions
        finally:
            decisions.end()


def test_processes_that_follow_have_the_policy_at_hand_when_put_returns(path: Path) -> None:
    with following(path) as (one, deciding), following(path) as (_, also_deciding):
        assert one.put(policy("p")).workers == 2
        assert [rule_of(each.snapshot()) for each in (deciding, also_deciding)] == ["p", "p"]


def test_process_that_follows_switches_without_being_asked(path: Path) -> None:
    with opened(path) as versions:
        switched: list[Snapshot] = []
        versions.follow(versions.start(policy("a")), switched.append)
        versions.put(policy("p"))
        until(lambda: [snapshot.version for snapshot in switched] == [2])


def test_nobody_waits_for_a_process_that_was_killed(path: Path) -> None:
    with following(path) as (versions, _):
        in_another_process(
            path,
            "versions.follow(versions.start(None), print)",
            "os.kill(os.getpid(), signal.SIGKILL)",
            code=-signal.SIGKILL,
        )
        begun = time.monotonic()
        assert versions.put(policy("p")).workers == 1
        assert time.monotonic() - begun < 2


def test_process_that_does_not_get_ready_is_not_waited_for_for_ever(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollout, "READY_TIMEOUT_S", 0.1)
    with following(path) as (versions, decisions), opened(path) as stuck:
        stuck.start(policy("a"))
        joined = Workers(str(path))
        joined.join()
        assert versions.put(policy("p")).workers == 1
        assert rule_of(decisions.snapshot()) == "p"
        assert rule_of(stuck.load_newest()) == "p"
        joined.close()


def test_process_without_the_policy_at_hand_decides_nothing_by_an_older_one(path: Path) -> None:
    with opened(path) as versions:
        decisions = DecisionPoint()
        decisions.begin(versions.start(policy("a")), versions.newest, versions.load_newest)
        with opened(path) as other:
            other.put(policy("p"))
        remove_compiled(path)
        with pytest.raises(NotReady, match="version 2 of the policy is being loaded"):
            decisions.snapshot()
        decisions.switch(versions.compile_newest())
        assert rule_of(decisions.snapshot()) == "p"


def test_process_gets_ready_by_itself_where_the_file_is_gone(path: Path) -> None:
    with following(path) as (_, decisions), opened(path) as other:
        version = other.history.add(policy("p").sha256, "put", 1, "rules: [{name: p}]").version
        other.newest[0] = version
        with pytest.raises(NotReady):
            decisions.snapshot()
        until(lambda: version_of(decisions) == 2)
        assert rule_of(decisions.snapshot()) == "p"


def test_put_that_cannot_be_stored_changes_nothing_anywhere(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> NoReturn:
        raise StoreError("database or disk is full")

    with following(path) as (one, deciding), following(path) as (_, also_deciding):
        with monkeypatch.context() as patched:
            patched.setattr(one.history, "add", fail)
            with pytest.raises(StoreError):
                one.put(policy("p"))
        assert [rule_of(each.snapshot()) for each in (deciding, also_deciding)] == ["a", "a"]
        assert one.put(policy("q")).snapshot.version == 2
        assert [rule_of(each.snapshot()) for each in (deciding, also_deciding)] == ["q", "q"]


def test_put_goes_on_where_no_file_can_be_kept(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CompiledFiles, "keep", lambda _, compiled: compiled)
    with following(path) as (one, deciding), following(path) as (_, also_deciding):
        assert one.put(policy("p")).workers == 1
        assert rule_of(deciding.snapshot()) == "p"
        until(lambda: version_of(also_deciding) == 2)


@pytest.fixture
def switching_often() -> Iterator[None]:
    """Threads that hardly ever run on for long."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(0.0002)
    yield
    sys.setswitchinterval(usual)


@pytest.mark.usefixtures("switching_often")
def test_requests_never_go_back_to_an_older_version(path: Path) -> None:
    with following(path) as (one, _), following(path) as (_, deciding):
        is_over = threading.Event()
        gone_back: list[tuple[int, int]] = []

        def watch() -> None:
            last = 0
            while not is_over.is_set():
                floor = one.newest[0]
                seen = deciding.snapshot().version
                if seen < max(last, floor):
                    gone_back.append((last, seen))
                last = seen

        threads = [threading.Thread(target=watch) for _ in range(2)]
        for thread in threads:
            thread.start()
        for number in range(30):
            one.put(policy(f"p{number}"))
        is_over.set()
        for thread in threads:
            thread.join(10)
        assert gone_back == []


def version_of(decisions: DecisionPoint) -> int:
    """The version that is decided by; 0 where it is being loaded."""
    try:
        return decisions.snapshot().version
    except NotReady:
        return 0


def until(condition: Callable[[], bool]) -> None:
    """Wait until it is true; fails after a time that nothing takes."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.005)


def remove_compiled(path: Path) -> None:
    """Take the cache away."""
    for file in path.parent.glob("*.policy-*"):
        file.unlink()


def in_another_process(path: Path, *lines: str, code: int = 0) -> None:
    """Do something with `versions` in a process that ends without closing them."""
    source = f"""
        import os, signal
        from aegis.audit.journal import Journal
        from aegis.policy.compiled_cache import CompiledFiles
        from aegis.policy.rollout import PolicyVersions
        from aegis.store.database import Store

        store = Store({str(path)!r})
        files = CompiledFiles(store.path)
        versions = PolicyVersions(store, Journal(store))
    """
    text = "\n".join([textwrap.dedent(source), *lines, "os._exit(0)"])
    done = subprocess.run([sys.executable, "-c", text], check=False, timeout=60)
    assert done.returncode == code
