"""The files beside the database that processes map: removed, replaced or cut while they run."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from aegis.audit.journal import Journal
from aegis.errors import NotReady
from aegis.host.workers import SIZE, Workers
from aegis.policy.compiled_cache import CompiledFiles, PolicyText
from aegis.policy.decision_point import DecisionPoint
from aegis.policy.rollout import PolicyVersions
from aegis.store.database import Store
from tests.process.server import Server, end_of, until

DATABASE = "aegis_audit.db"
READY = ("GET", "/health/ready")


def policy(name: str) -> PolicyText:
    """A policy whose one rule has this name."""
    return CompiledFiles(":memory:").load(f"rules: [{{name: {name}}}]")


def removed(path: Path) -> None:
    path.unlink()


def replaced_by_nothing(path: Path) -> None:
    new = path.with_name("new")
    new.touch()
    new.replace(path)


def replaced_by_a_copy(path: Path) -> None:
    new = path.with_name("new")
    shutil.copy(path, new)
    new.replace(path)


def replaced_by_noise(path: Path) -> None:
    new = path.with_name("new")
    new.write_bytes(os.urandom(SIZE))
    new.replace(path)


CHANGES = [removed, replaced_by_nothing, replaced_by_a_copy, replaced_by_noise]


@contextmanager
def following(path: Path) -> Iterator[tuple[PolicyVersions, DecisionPoint]]:
    """A process that decides, as a server does."""
    store = Store(path)
    versions = PolicyVersions(store, Journal(store))
    decisions = DecisionPoint()
    snapshot = versions.start(policy("a"))
    decisions.begin(snapshot, versions.newest, versions.load_newest, versions.renew)
    versions.follow(snapshot, decisions.switch)
    try:
        yield versions, decisions
    finally:
        decisions.end()
        versions.close()
        store.close()


def decided(decisions: DecisionPoint) -> int:
    """The version that is decided by; 0 where nothing is decided now."""
    try:
        return decisions.snapshot().version
    except NotReady:
        return 0


@pytest.mark.parametrize(
    ("change", "moment_s"), [*((change, 0.0) for change in CHANGES), (removed, 0.4)]
)
def test_no_older_policy_is_decided_by_after_a_change_by_another_file(
    tmp_path: Path, change: Callable[[Path], None], moment_s: float
) -> None:
    path = tmp_path / DATABASE
    stale: list[tuple[int, int]] = []
    floor, is_over = [1], threading.Event()
    with following(path) as (_, one), following(path) as (_, other):

        def watch(decisions: DecisionPoint) -> None:
            while not is_over.is_set():
                newest = floor[0]
                seen = decided(decisions)
                if 0 < seen < newest:
                    stale.append((seen, newest))

        threads = [threading.Thread(target=watch, args=(each,)) for each in (one, other)]
        for thread in threads:
            thread.start()
        for number in range(2):
            change(Path(f"{path}.version"))
            time.sleep(moment_s)
            # By another process, which has never seen the file of before.
            store = Store(path)
            versions = PolicyVersions(store, Journal(store))
            floor[0] = versions.put(policy(f"p{number}")).snapshot.version
            versions.close()
            store.close()
        until(lambda: decided(one) == decided(other) == 3, "both decide by the newest")
        is_over.set()
        for thread in threads:
            thread.join(10)
    assert stale == []


@pytest.mark.parametrize("change", CHANGES)
def test_all_go_on_by_one_file_after_it_was_removed(
    tmp_path: Path, change: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / DATABASE
    with following(path) as (one, deciding), following(path) as (other, also_deciding):
        change(Path(f"{path}.version"))
        until(lambda: decided(deciding) == decided(also_deciding) == 1, "they have moved")
        until(lambda: caplog.text.count("all go on by another one") == 2, "both say so")
        for number, versions in ((2, one), (3, other)):
            assert versions.put(policy(f"p{number}")).workers == 2
            assert [decided(deciding), decided(also_deciding)] == [number, number]


def test_nothing_is_decided_while_no_file_can_be_made(tmp_path: Path) -> None:
    path = tmp_path / DATABASE
    shared = Path(f"{path}.version")
    with following(path) as (_, decisions):
        shared.unlink()
        shared.mkdir()
        until(lambda: decided(decisions) == 0, "it decides nothing")
        time.sleep(0.3)
        with pytest.raises(NotReady, match="was removed or replaced"):
            decisions.snapshot()
        shared.rmdir()
        until(lambda: decided(decisions) == 1, "it decides again")


def test_first_policy_of_a_database_is_not_waited_with(tmp_path: Path) -> None:
    begun = time.monotonic()
    with following(tmp_path / DATABASE) as (versions, _):
        versions.put(policy("p"))
    assert time.monotonic() - begun < 0.4


def test_file_that_was_cut_is_left_for_another_one(tmp_path: Path) -> None:
    path = str(tmp_path / DATABASE)
    one = Workers(path)
    os.truncate(f"{path}.version", 100)
    other = Workers(path)
    assert not one.is_in_place()
    assert other.is_in_place()
    assert [entry.name for entry in tmp_path.iterdir()] == [f"{DATABASE}.version"]
    other.close()


# --- a server ------------------------------------------------------------------------------------


def test_server_notices_a_policy_that_was_put_after_its_file_was_removed(tmp_path: Path) -> None:
    with Server(tmp_path, "--workers", "2") as server:
        server.wait_for_workers(2)
        server.put_rule("second")
        (tmp_path / f"{DATABASE}.version").unlink()
        ended = end_of(tmp_path, "policy", "rollback", "1", "--audit-db", DATABASE)
        assert ended.code == 0, ended.stderr
        rules = {_rule(server) for _ in range(16)} - {None}
        until(lambda: server.ask(*READY).status == 200, "it is ready")
        assert rules | {server.rule_for("read") for _ in range(16)} == {"reads"}
        assert server.stop() == 0


def _rule(server: Server) -> str | None:
    answer = server.ask("POST", "/api/v1/evaluate", {"action_type": "read"})
    return str(answer.json()["matched_rule"]) if answer.status == 200 else None


def test_compiled_policy_that_is_cut_or_overwritten_ends_nobody(tmp_path: Path) -> None:
    with Server(tmp_path, "--workers", "2") as server:
        server.wait_for_workers(2)
        workers = server.children
        for file in tmp_path.glob(f"{DATABASE}.policy-*"):
            os.truncate(file, 0)
        assert {server.rule_for("read") for _ in range(16)} == {"reads"}
        server.put_rule("second")
        for file in tmp_path.glob(f"{DATABASE}.policy-*"):
            file.write_bytes(os.urandom(file.stat().st_size))
        assert {server.rule_for("read") for _ in range(16)} == {"second"}
        assert server.ask("GET", "/api/v1/policy").json()["rules"][0]["name"] == "second"
        assert server.children == workers
        assert server.stop() == 0


def test_server_is_back_after_the_file_by_which_its_workers_agree_was_cut(tmp_path: Path) -> None:
    with Server(tmp_path, "--workers", "2") as server:
        server.wait_for_workers(2)
        server.put_rule("second")
        os.truncate(tmp_path / f"{DATABASE}.version", 0)
        until(lambda: _is_decided(server), "it decides by the newest policy")
        server.wait_for_workers(2)
        assert {server.rule_for("read") for _ in range(16)} == {"second"}
        server.put_rule("third")
        assert {server.rule_for("read") for _ in range(16)} == {"third"}
        assert server.stop() == 0


def _is_decided(server: Server) -> bool:
    try:
        return _rule(server) == "second" and server.ask(*READY).status == 200
    except OSError:
        return False
