"""What was acknowledged is what is stored, whatever is killed, full, locked, lost or hanging."""

from __future__ import annotations

import fcntl
import http.client
import itertools
import json
import os
import resource
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import apsw
import pytest

from tests.process.server import Answer, AsgiServer, Connection, Program, Server, until

EVALUATE, EXECUTE, READY = "/api/v1/evaluate", "/api/v1/execute", "/health/ready"
DATABASE = "aegis_audit.db"
AUDIT_TIMEOUT = ("--audit-timeout", "0.5")
BREAKAGES = ("locked", "turn kept", "disk full")
CLIENTS = 6
GRACE_S = 15.0
"""Below the time after which a worker that does not stop is killed, and above that of the drain."""

UVICORN = """
from aegis.server import create_app
import uvicorn
uvicorn.run(create_app(policy_path="policy.yaml", audit_db_path="shared.db"), port=0)
"""
EXECUTORS = """
import asyncio
from pathlib import Path
from aegis import Executor, Result, ResultStatus

class Waits(Executor):
    # Runs from the time that it makes the file `begun` until there is a file `go`.
    async def execute(self, action):
        Path("begun").touch()
        while not Path("go").exists():
            await asyncio.sleep(0.01)
        Path("done").touch()
        return Result(action, ResultStatus.SUCCESS, {"waited": True})

    async def teardown(self):
        Path("torn down").touch()

class Stubborn(Waits):
    # Takes no notice of being cancelled.
    async def execute(self, action):
        Path("begun").touch()
        while True:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                pass
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with executors that wait."""
    (tmp_path / "waits.py").write_text(EXECUTORS)
    return tmp_path


def execute(server: Server, target: str) -> Answer:
    """Execute an action that is allowed, to find its record by the target."""
    return server.ask("POST", EXECUTE, {"action_type": "read", "target": target})


def targets(server: Server | AsgiServer) -> list[str]:
    """The targets of all records, oldest first."""
    return [str(record["action_target"]) for record in server.audit()]


def until_ready(server: Server, status: int) -> Answer:
    """The answer about readiness, as soon as it has a status."""

    def asked() -> Answer | None:
        answer = server.ask("GET", READY)
        return answer if answer.status == status else None

    return until(asked, f"readiness is {status}")


def begin(server: Server, folder: Path) -> Connection:
    """A connection on which an execution has begun."""
    connection = server.connect(timeout_s=30.0)
    connection.send(connection.request("POST", EXECUTE, b'{"action_type": "read"}'))
    until((folder / "begun").exists, "the execution has begun")
    return connection


def recorded_afterwards(folder: Path) -> list[dict[str, Any]]:
    """All records, as a new server finds them."""
    with Server(folder) as server:
        return server.audit()


# --- kills ---------------------------------------------------------------------------------------


class Load:
    """Executes on several connections until the server is gone, and notes what is acknowledged.

    Who loses a worker connects again, as long as anybody listens.

    Args:
        server: Executes.
        name: Of this load; the targets of all its actions begin with it and are all different.
    """

    def __init__(self, server: Server, name: str = "") -> None:
        self.acknowledged: list[str] = []
        self._server = server
        self._name = name
        self._threads = [
            threading.Thread(target=self._run, args=(client,)) for client in range(CLIENTS)
        ]
        for thread in self._threads:
            thread.start()

    def _run(self, client: int) -> None:
        numbers = itertools.count()
        while True:
            try:
                connection = self._server.connect()
            except OSError:
                return
            with connection, suppress(OSError, http.client.HTTPException):
                for number in numbers:
                    target = f"{self._name}/{client}/{number}"
                    action = {"action_type": "read", "target": target}
                    if connection.ask("POST", EXECUTE, action).status == 200:
                        self.acknowledged.append(target)

    def acknowledge(self, count: int) -> None:
        """Wait until so many more actions are acknowledged."""
        wanted = len(self.acknowledged) + count
        until(lambda: len(self.acknowledged) >= wanted, "actions are acknowledged")

    def join(self) -> None:
        """Wait until all clients have lost their server."""
        for thread in self._threads:
            thread.join(30.0)
            assert not thread.is_alive()


def test_power_cuts_under_load_lose_no_acknowledged_record(tmp_path: Path) -> None:
    acknowledged: list[str] = []
    for name in ("first", "second", "third"):
        with Server(tmp_path, "--workers", "2") as server:
            load = Load(server, name)
            load.acknowledge(200)
            server.kill_all()
            load.join()
        acknowledged += load.acknowledged
    records = recorded_afterwards(tmp_path)
    stored = [record["action_target"] for record in records]
    assert [record["id"] for record in records] == list(range(1, len(records) + 1))
    assert len(stored) == len(set(stored))
    assert set(acknowledged) <= set(stored)
    # Each client may have been waiting for one that was stored already.
    assert len(stored) - len(acknowledged) <= 3 * CLIENTS


def test_killed_worker_under_load_loses_no_acknowledged_record(tmp_path: Path) -> None:
    with Server(tmp_path, "--workers", "2") as server:
        load = Load(server)
        load.acknowledge(200)
        os.kill(min(server.children), signal.SIGKILL)
        load.acknowledge(20)
        server.kill_all()
        load.join()
    records = recorded_afterwards(tmp_path)
    stored = [record["action_target"] for record in records]
    assert [record["id"] for record in records] == list(range(1, len(records) + 1))
    assert len(stored) == len(set(stored))
    assert set(load.acknowledged) <= set(stored)


def test_policy_that_was_put_outlives_a_power_cut(tmp_path: Path) -> None:
    with Server(tmp_path, "--workers", "2") as server:
        server.put_rule("was_put")
        server.kill_all()
    with Server(tmp_path) as server:
        assert server.rule_for("read") == "was_put"


def test_two_servers_over_one_database_both_record_and_share_the_policy(tmp_path: Path) -> None:
    with AsgiServer(tmp_path, UVICORN) as one, AsgiServer(tmp_path, UVICORN) as other:
        for number in range(20):
            for name, server in (("one", one), ("other", other)):
                action = {"action_type": "read", "target": f"{name}/{number}"}
                assert server.ask("POST", EXECUTE, action).status == 200
        one.put_rule("put_to_one")
        assert other.rule_for("read") == "put_to_one"
        other.put_rule("put_to_other")
        assert one.rule_for("read") == "put_to_other"
        records = one.audit()
        assert records == other.audit()
    assert [record["id"] for record in records] == list(range(1, 41))
    assert len({record["action_target"] for record in records}) == 40


# --- a database that cannot be written -----------------------------------------------------------


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """The database, locked against writers by another program."""
    with closing(apsw.Connection(str(folder / DATABASE))) as connection:
        connection.set_busy_timeout(5000)
        connection.execute("BEGIN EXCLUSIVE")
        yield
        connection.execute("ROLLBACK")


@contextmanager
def turn_kept(folder: Path) -> Iterator[None]:
    """The turn to write, kept by another process: as one that was suspended in its commit."""
    with (folder / f"{DATABASE}.lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def disk_full(server: Server) -> Iterator[None]:
    """No file of a worker can grow any more."""
    size = os.path.getsize(server.folder / f"{DATABASE}-wal")
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    for pid in server.children:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    yield
    for pid in server.children:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, unlimited)


@contextmanager
def broken(server: Server, how: str) -> Iterator[None]:
    """A database that cannot be written for a while."""
    match how:
        case "locked":
            with locked(server.folder):
                yield
        case "turn kept":
            with turn_kept(server.folder):
                yield
        case _:
            with disk_full(server):
                yield


# Small enough to be compiled in the worker itself: where its files cannot grow, larger ones do not
# even reach the process that compiles them.
SMALL_POLICY = {"rules": [{"name": "x" * 30_000, "match": {"type": "*"}}]}
LARGE = {"action_type": "read", "target": "delayed", "params": {"text": "x" * 800_000}}


@pytest.mark.parametrize("how", BREAKAGES)
def test_unwritable_audit_withholds_answers_and_recovers_by_itself(
    tmp_path: Path, how: str
) -> None:
    with Server(tmp_path, *AUDIT_TIMEOUT) as server:
        assert execute(server, "before").status == 200
        with broken(server, how):
            with server.connect(timeout_s=3.0) as connection:
                withheld = connection.ask("POST", EXECUTE, LARGE)
            assert (withheld.status, withheld.code) == (503, "audit_unavailable")
            assert int(withheld.headers["retry-after"]) > 0
            not_ready = until_ready(server, 503)
            assert not_ready.code == "not_ready"
            assert "audit" in not_ready.json()["error"]
            assert server.rule_for("read") == "reads"
            assert server.ask("GET", "/health/live").status == 200
            assert targets(server) == ["before"]
        until_ready(server, 200)
        until(lambda: execute(server, "after").status == 200, "it executes again")
        stored = targets(server)
        assert server.stop() == 0
    # What was answered by 503 was withdrawn: it happened neither then nor later.
    assert [name for name in stored if name != "after"] == ["before"]
    assert "Traceback" not in server.stderr


@contextmanager
def all_broken(folder: Path) -> Iterator[dict[str, Server]]:
    """A server for each way in which a database cannot be written, all broken at the same time."""
    with ExitStack() as stack:
        servers = {}
        for how in BREAKAGES:
            (folder / how).mkdir()
            servers[how] = stack.enter_context(Server(folder / how, *AUDIT_TIMEOUT))
        for how in BREAKAGES:
            stack.enter_context(broken(servers[how], how))
        yield servers


def test_policy_that_cannot_be_stored_is_503_and_not_in_force(tmp_path: Path) -> None:
    body = json.dumps(SMALL_POLICY).encode()
    with all_broken(tmp_path) as servers, ExitStack() as stack:
        connections = {
            how: stack.enter_context(server.connect(timeout_s=12.0))
            for how, server in servers.items()
        }
        for connection in connections.values():
            connection.send(connection.request("PUT", "/api/v1/policy", body))
        answers = {how: connection.answer("PUT") for how, connection in connections.items()}
        in_force = {how: server.rule_for("read") for how, server in servers.items()}
    assert {how: answer.status for how, answer in answers.items()} == dict.fromkeys(BREAKAGES, 503)
    assert in_force == dict.fromkeys(BREAKAGES, "reads")


def test_policy_can_be_put_again_when_the_database_can_be_written_again(tmp_path: Path) -> None:
    with Server(tmp_path) as server:
        with disk_full(server):
            refused = server.ask("PUT", "/api/v1/policy", SMALL_POLICY)
            assert (refused.status, refused.code) == (503, "store_unavailable")
        assert server.put_rule("later") == 2
        assert server.rule_for("read") == "later"


def test_unwritable_audit_does_not_block_the_end_and_nothing_is_lost_by_it(tmp_path: Path) -> None:
    with all_broken(tmp_path) as servers:
        for server in servers.values():
            assert server.ask("POST", EXECUTE, LARGE).status == 503
        for server in servers.values():
            server.process.terminate()
        deadline = time.monotonic() + GRACE_S
        for server in servers.values():
            with suppress(subprocess.TimeoutExpired):
                server.process.wait(max(0.1, deadline - time.monotonic()))
        running = {how for how, server in servers.items() if server.process.poll() is None}
        lossy = {how for how, server in servers.items() if "lost" in server.stderr}
    assert (running, lossy) == (set(), set())


@pytest.mark.parametrize("how", ["removed", "replaced", "moved"])
def test_lost_database_file_is_noticed_and_nothing_is_acknowledged(
    tmp_path: Path, how: str
) -> None:
    with Server(tmp_path, *AUDIT_TIMEOUT) as server:
        assert execute(server, "before").status == 200
        if how == "removed":
            (tmp_path / DATABASE).unlink()
        elif how == "moved":
            (tmp_path / DATABASE).rename(tmp_path / "moved")
        else:
            (tmp_path / "other").write_bytes((tmp_path / DATABASE).read_bytes())
            (tmp_path / "other").replace(tmp_path / DATABASE)
        answer = execute(server, "after")
        assert (answer.status, answer.code) == (503, "audit_unavailable")
        assert "replaced or removed" in until_ready(server, 503).json()["error"]
        assert server.rule_for("read") == "reads"


def test_nothing_is_executed_while_it_could_not_be_recorded(folder: Path) -> None:
    (folder / "go").touch()
    with Server(folder, *AUDIT_TIMEOUT, "--executor", "waits:Waits") as server, locked(folder):
        execute(server, "first")
        until_ready(server, 503)
        (folder / "begun").unlink(missing_ok=True)
        answer = execute(server, "second")
        assert (answer.status, answer.code) == (503, "audit_unavailable")
        assert not (folder / "begun").exists()


# --- executors that take long --------------------------------------------------------------------


@pytest.mark.parametrize("executor", ["Waits", "Stubborn"])
def test_execution_over_its_timeout_is_recorded_as_interrupted(folder: Path, executor: str) -> None:
    options = ("--executor", f"waits:{executor}", "--execute-timeout", "0.3")
    with Server(folder, *options) as server:
        result = execute(server, "slow").json()
        (record,) = server.audit()
        assert server.rule_for("read") == "reads"
    assert result["status"] == "interrupted"
    assert "0.3 s" in result["error"]
    assert (record["action_target"], record["result_status"]) == ("slow", "interrupted")


def test_execution_goes_on_to_its_record_when_the_client_has_gone(folder: Path) -> None:
    with Server(folder, "--executor", "waits:Waits") as server:
        begin(server, folder).socket.close()
        assert server.audit(result_status="success") == []
        (folder / "go").touch()
        until(lambda: server.audit(result_status="success"), "the execution is recorded")
        assert len(server.audit()) == 1


def stops_listening(server: Program, port: int) -> None:
    """Wait until a server that was told to stop takes no more connections."""

    def refused() -> bool:
        try:
            Connection(port).socket.close()
        except ConnectionError:
            return True
        return server.process.poll() is not None

    until(refused, "it listens no more")


def test_sigterm_lets_a_running_execution_end_and_answers_it(folder: Path) -> None:
    with Server(folder, "--executor", "waits:Waits") as server, begin(server, folder) as connection:
        server.process.terminate()
        stops_listening(server, server.port)
        (folder / "go").touch()
        answer = connection.answer("POST")
        assert (answer.status, answer.json()["status"]) == (200, "success")
        assert server.process.wait(10.0) == 0
        assert server.stderr == ""
    assert (folder / "torn down").exists()
    assert [record["result_status"] for record in recorded_afterwards(folder)] == ["success"]


def test_sigterm_under_load_loses_no_answer_of_a_request_that_was_received(tmp_path: Path) -> None:
    for round_ in range(2):
        with Server(tmp_path, "--workers", "2") as server:
            load = Load(server, f"load {round_}")
            load.acknowledge(200)
            server.process.terminate()
            load.join()
            assert server.process.wait(GRACE_S) == 0
            assert server.stderr == ""
        # What was received was executed, and is recorded.
        recorded = [
            record["action_target"]
            for record in recorded_afterwards(tmp_path)
            if record["action_target"].startswith(f"load {round_}/")
        ]
        assert sorted(recorded) == sorted(load.acknowledged)


@pytest.mark.slow
def test_sigterm_records_hanging_executions_as_interrupted(tmp_path: Path) -> None:
    statuses = {}
    with ExitStack() as stack:
        servers = {}
        for executor in ("Waits", "Stubborn"):
            folder = tmp_path / executor
            folder.mkdir()
            (folder / "waits.py").write_text(EXECUTORS)
            options = ("--executor", f"waits:{executor}", "--execute-timeout", "600")
            servers[executor] = stack.enter_context(Server(folder, *options))
            stack.enter_context(begin(servers[executor], folder))
        for server in servers.values():
            server.process.terminate()
        deadline = time.monotonic() + GRACE_S
        for executor, server in servers.items():
            with suppress(subprocess.TimeoutExpired):
                server.process.wait(max(0.1, deadline - time.monotonic()))
            server.kill_all()
            records = recorded_afterwards(server.folder)
            ends = [record["result_status"] for record in records]
            statuses[executor] = (server.process.returncode, ends)
    assert statuses == {"Waits": (0, ["interrupted"]), "Stubborn": (0, ["interrupted"])}


def test_execution_under_a_power_cut_is_not_recorded_as_done(folder: Path) -> None:
    with Server(folder, "--executor", "waits:Waits") as server, begin(server, folder):
        server.kill_all()
    records = recorded_afterwards(folder)
    assert [record for record in records if record["result_status"] == "success"] == []
