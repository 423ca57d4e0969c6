"""Workers that are to take the place of others and cannot start: the rest of the server goes on."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import apsw
import pytest

from tests.process.server import POLICY, Server, end_of, until

READY = ("GET", "/health/ready")
EXECUTE = ("POST", "/api/v1/execute", {"action_type": "read"})

EXECUTORS = """
import os, pathlib
from aegis import Executor, Result, ResultStatus

if pathlib.Path("fail").exists():
    kind = pathlib.Path("fail").read_text()
    if kind == "import":
        raise ImportError("no module named crm; password=hunter2")
    if kind == "exit":
        os._exit(7)
    if kind == "signal":
        os.abort()

class Fails(Executor):
    async def setup(self):
        if pathlib.Path("fail").exists():
            raise RuntimeError("the mail server is away; password=hunter2")

    async def execute(self, action):
        return Result(action, ResultStatus.SUCCESS)
"""


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("setup", "the executor's setup failed: the mail server is away"),
        ("import", "cannot load executor `fails:Fails`: no module named crm"),
        ("exit", "it ended with exit code 7"),
        ("signal", "it was ended by SIGABRT"),
    ],
)
def test_worker_that_cannot_start_is_tried_again_and_the_others_go_on(
    tmp_path: Path, kind: str, said: str
) -> None:
    (tmp_path / "fails.py").write_text(EXECUTORS)
    with Server(tmp_path, "--executor", "fails:Fails", "--workers", "2") as server:
        server.wait_for_workers(2)
        (tmp_path / "fail").write_text(kind)
        os.kill(max(server.children), signal.SIGKILL)
        server.printed(r"worker . (was ended by SIGKILL)")
        assert said in server.printed(r"worker . cannot start: (.*); it is tried again in 0\.1 s")
        server.printed(r"(tried again in 0\.2 s)")
        server.printed(r"(tried again in 0\.4 s)")
        # Where it had a socket it would have been sent some of these.
        assert {server.ask(*EXECUTE).status for _ in range(30)} == {200}
        ready = server.ask(*READY)
        assert (ready.status, ready.json()["workers"]) == (
            200,
            {
                "running": 1,
                "expected": 2,
                "error": "a worker cannot start and is tried again; the log says why",
            },
        )
        (tmp_path / "fail").unlink()
        until(lambda: server.ask(*READY).json() == {"status": "ok"}, "it is as it was")
        server.printed("worker . (is ready again)")
        assert server.stop() == 0


def test_locked_database_ends_no_worker_but_the_one_that_was_to_be_replaced(
    tmp_path: Path,
) -> None:
    with Server(tmp_path, "--workers", "2") as server:
        server.wait_for_workers(2)
        locked = apsw.Connection(str(tmp_path / "aegis_audit.db"))
        locked.execute("BEGIN IMMEDIATE")
        os.kill(max(server.children), signal.SIGKILL)
        server.printed("worker . (cannot start: cannot .*lock)")
        assert server.ask("POST", "/api/v1/evaluate", {"action_type": "read"}).status == 200
        locked.execute("ROLLBACK")
        locked.close()
        until(lambda: _ready(server) == {"status": "ok"}, "both are ready")
        assert server.ask(*EXECUTE).status == 200
        assert server.stop() == 0


def _ready(server: Server) -> object:
    return server.ask(*READY).json()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_all_workers_that_cannot_start_end_the_first_start(tmp_path: Path, workers: str) -> None:
    (tmp_path / "fails.py").write_text(EXECUTORS)
    (tmp_path / "policy.yaml").write_text(POLICY)
    (tmp_path / "fail").write_text("exit")
    ended = end_of(
        tmp_path, "serve", "policy.yaml", "--port", "0", "--executor", "fails:Fails",
        "--workers", workers,
    )  # fmt: skip
    assert (ended.code, ended.stdout) == (2, "")
    assert ended.stderr == "aegis: error: a worker cannot start: it ended with exit code 7\n"


def test_all_workers_may_die_and_fail_and_the_server_is_back_when_they_can_start(
    tmp_path: Path,
) -> None:
    (tmp_path / "fails.py").write_text(EXECUTORS)
    with Server(tmp_path, "--executor", "fails:Fails", "--workers", "2") as server:
        server.wait_for_workers(2)
        (tmp_path / "fail").write_text("setup")
        for pid in server.children:
            os.kill(pid, signal.SIGKILL)
        server.printed(r"worker 1 (cannot start)")
        server.printed(r"worker 2 (cannot start)")
        assert server.process.poll() is None
        (tmp_path / "fail").unlink()
        until(lambda: _answered(server), "it answers again")
        assert server.stop() == 0


def _answered(server: Server) -> bool:
    try:
        return server.ask(*EXECUTE).status == 200
    except OSError:
        return False
