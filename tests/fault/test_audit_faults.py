"""Faults under load: each has its documented answer, nothing stalls, and all goes on by itself."""

from __future__ import annotations

import http.client
import json
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from statistics import quantiles
from typing import Any

import apsw
import pytest

from aegis import Action, Executor, Result, ResultStatus
from aegis.audit.verify import verify
from aegis.execution import records
from aegis.store.database import Store
from aegis.timestamps import now_us
from tests.contract.client import app_of, served
from tests.contract.test_idempotency import app_with
from tests.fault.conftest import disk_filled
from tests.fault.test_durability import disk_full, locked, until_ready
from tests.fault.test_kill import EXECUTORS
from tests.process.server import Server, end_of, until

EXECUTE = "/api/v1/execute"
DATABASE = "aegis_audit.db"
OPTIONS = ("--audit-timeout", "0.3", "--executor", "effects:Appends")
CLIENTS = 4
MAX_STALLED_S = 0.05


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with an executor whose effects are lines of a file."""
    (tmp_path / "effects.py").write_text(EXECUTORS)
    (tmp_path / "effects").touch()
    return tmp_path


def action(target: str) -> dict[str, Any]:
    return {"action_type": "read", "target": target, "params": {"before_s": 0, "after_s": 0}}


class Load:
    """Executes on several connections until it is told to end.

    Attributes:
        done: Targets that were answered with a success.
        refused: Codes of the other answers.
    """

    def __init__(self, server: Server, name: str) -> None:
        self.done: list[str] = []
        self.refused: list[tuple[int, str, str]] = []
        self._server = server
        self._is_over = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(f"{name}/{client}",))
            for client in range(CLIENTS)
        ]
        for thread in self._threads:
            thread.start()

    def _run(self, name: str) -> None:
        number = 0
        with suppress(OSError, http.client.HTTPException), self._server.connect() as connection:
            while not self._is_over.is_set():
                number += 1
                answer = connection.ask("POST", EXECUTE, action(f"{name}/{number}"))
                if answer.status == 200:
                    self.done.append(answer.json()["target"])
                else:
                    retry_after = answer.headers.get("retry-after", "")
                    self.refused.append((answer.status, answer.code, retry_after))

    def end(self) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join(30.0)
            assert not thread.is_alive()


def slowness_s(server: Server, until_true: Callable[[], object]) -> float:
    """What nine of ten answers of `/health` took less than, while something comes to be true."""
    took: list[float] = []
    deadline = time.monotonic() + 20.0
    with server.connect() as connection:
        while len(took) < 50 or not until_true():
            assert time.monotonic() < deadline, "it never came true"
            begun = time.monotonic()
            assert connection.ask("GET", "/health").status == 200
            took.append(time.monotonic() - begun)
    return quantiles(took, n=10)[-1]


def assert_whole(folder: Path, database: Path, load: Load) -> None:
    """What was acknowledged is stored, what was done was intended, and nothing is twice."""
    ended = end_of(folder, "audit", "verify", str(database))
    assert (ended.code, ended.stdout[:2]) == (0, "ok"), ended.stderr
    exported = end_of(folder, "audit", "export", "--audit-db", str(database)).stdout
    records = [json.loads(line) for line in exported.splitlines()]
    statuses = {record["action_target"]: record["result_status"] for record in records}
    effects = (folder / "effects").read_text().splitlines()
    assert len(statuses) == len(records)
    assert len(set(effects)) == len(effects)
    assert {target for target in load.done if statuses[target] != "success"} == set()
    assert {target for target in effects if statuses[target] != "success"} == set()
    assert set(statuses.values()) <= {"success", "skipped"}


def assert_refused(load: Load) -> None:
    """Who was refused may try again, but for those whose action was executed already."""
    refused = {(status, code, bool(retry_after)) for status, code, retry_after in load.refused}
    withheld, executed = (503, "audit_unavailable", True), (504, "outcome_unknown", False)
    assert withheld in refused
    assert refused <= {withheld, executed}


@pytest.mark.parametrize("how", ["locked", "limited"])
def test_unwritable_audit_under_load_withholds_stalls_nothing_and_goes_on(
    folder: Path, how: str
) -> None:
    with Server(folder, *OPTIONS) as server:
        load = Load(server, "load")
        usual_s = slowness_s(server, lambda: len(load.done) > 50)
        with locked(folder) if how == "locked" else disk_full(server):
            until_ready(server, 503)
            effects = (folder / "effects").read_text()
            slow_s = slowness_s(server, lambda: len(load.refused) > 2 * CLIENTS)
            assert (folder / "effects").read_text() == effects
        until_ready(server, 200)
        done = len(load.done)
        until(lambda: len(load.done) > done + 50, "it executes again")
        load.end()
        assert server.stop() == 0
    assert_refused(load)
    assert slow_s < usual_s + MAX_STALLED_S
    assert_whole(folder, folder / DATABASE, load)


def test_full_disk_withholds_and_goes_on_when_there_is_room_again(
    folder: Path, small_disk: Path
) -> None:
    database = small_disk / "audit.db"
    with Server(folder, *OPTIONS, "--audit-db", str(database)) as server:
        load = Load(server, "load")
        until(lambda: len(load.done) > 20, "it executes")
        with disk_filled(small_disk):
            not_ready = until_ready(server, 503)
            effects = (folder / "effects").read_text()
            slow_s = slowness_s(server, lambda: len(load.refused) > 2 * CLIENTS)
            assert (folder / "effects").read_text() == effects
        until_ready(server, 200)
        done = len(load.done)
        until(lambda: len(load.done) > done + 20, "it executes again")
        load.end()
        assert server.stop() == 0
    assert "full" in not_ready.json()["error"]
    assert_refused(load)
    assert slow_s < 2 * MAX_STALLED_S
    assert_whole(folder, database, load)


def test_read_only_database_is_refused_at_the_start(folder: Path, small_disk: Path) -> None:
    database = small_disk / "audit.db"
    with Server(folder, "--audit-db", str(database)) as server:
        assert server.stop() == 0
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    ended = end_of(folder, "serve", "policy.yaml", "--port", "0", "--audit-db", str(database))
    assert ended.code == 2
    assert ended.stderr.startswith("aegis: error: cannot ")
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize("damaged", ["the first page", "all but the first page"])
def test_damaged_database_is_never_written_and_never_verified(folder: Path, damaged: str) -> None:
    path = folder / DATABASE
    with Server(folder) as server:
        for number in range(20):
            server.ask("POST", EXECUTE, action(str(number)))
        assert server.stop() == 0
    content = path.read_bytes()
    garbage = b"\xa5" * len(content)
    path.write_bytes(
        garbage[:4096] + content[4096:]
        if damaged == "the first page"
        else content[:4096] + garbage[4096:]
    )
    verified = end_of(folder, "audit", "verify", DATABASE)
    assert verified.code in (1, 2)
    assert verified.stderr.splitlines()[-1].startswith("aegis: error: ")
    ended = end_of(folder, "serve", "policy.yaml", "--port", "0")
    assert (ended.code, "Traceback" in ended.stderr) == (2, False), ended.stderr


class LocksWhileItRuns(Executor):
    """Another program takes the database while the second action runs."""

    def __init__(self, path: Path) -> None:
        self._other = apsw.Connection(str(path))
        self.has_locked = False

    async def execute(self, action: Action) -> Result:
        if action.target == "locks":
            self._other.execute("BEGIN IMMEDIATE")
            self.has_locked = True
        return Result(action, ResultStatus.SUCCESS)

    def unlock(self) -> None:
        self._other.execute("ROLLBACK")
        self._other.close()


@pytest.mark.parametrize("targets", [["locks"], ["first", "locks"], ["first", "locks", "never"]])
def test_who_is_refused_after_something_was_executed_is_told_so(
    tmp_path: Path, targets: list[str]
) -> None:
    path = tmp_path / "audit.db"
    Store(path).close()
    executor = LocksWhileItRuns(path)
    app = app_with(executor, audit_db=str(path), audit_timeout=0.1)
    with served(app) as client:
        reply = client.post(EXECUTE, [{"type": "read", "target": name} for name in targets])
        executor.unlock()
        until(lambda: client.records()[-1]["result_status"] == "success", "it is recorded")
        stored = [record["action_target"] for record in client.records()]
    assert (reply.status, reply.code) == (504, "outcome_unknown")
    assert reply.json["error"].startswith(
        f"{targets.index('locks') + 1} of {len(targets)} actions were executed, but "
    )
    assert stored == targets[: targets.index("locks") + 1]


def test_clock_that_is_set_back_breaks_neither_order_nor_chain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "audit.db"
    with served(app_of(audit_db_path=path)) as client:
        for hours in (0, -1, 2, -30, 0):
            offset = hours * 3_600_000_000
            monkeypatch.setattr(records, "now_us", lambda offset=offset: now_us() + offset)
            client.post(EXECUTE, {"type": "read", "target": str(hours)})
        found = [record["action_target"] for record in client.records()]
        assert found == ["0", "-1", "2", "-30", "0"]
    store = Store(path, read_only=True)
    assert verify(store).count == 6  # with the entry of the policy
    store.close()
