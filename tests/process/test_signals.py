"""One signal to stop ends the server, in every state and whatever comes with it.

`AEGIS_SIGNAL_ROUNDS` makes it longer: a signal that is lost is lost now and then only.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.process.server import COMMAND, POLICY, Program, Server, is_running, until

ROUNDS = int(os.environ.get("AEGIS_SIGNAL_ROUNDS", "1"))
SOON_S = 8.0
READY = ("GET", "/health/ready")

SETS_UP_SLOWLY = """
import asyncio, pathlib
from aegis import Executor, Result, ResultStatus

class Slow(Executor):
    async def setup(self):
        pathlib.Path("setting-up").touch()
        await asyncio.sleep(1)

    async def execute(self, action):
        return Result(action, ResultStatus.SUCCESS)
"""
FAILS_WHEN_TOLD = """
import pathlib
from aegis import Executor, Result, ResultStatus

class Fails(Executor):
    async def setup(self):
        if pathlib.Path("fail").exists():
            raise RuntimeError("the mail server is away: password=hunter2")

    async def execute(self, action):
        return Result(action, ResultStatus.SUCCESS)
"""


def stopped_and_continued(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)
    time.sleep(0.1)
    os.kill(pid, signal.SIGTERM)
    os.kill(pid, signal.SIGCONT)


def hangup_before(pid: int) -> None:
    os.kill(pid, signal.SIGHUP)
    os.kill(pid, signal.SIGTERM)


def hangup_after(pid: int) -> None:
    os.kill(pid, signal.SIGTERM)
    os.kill(pid, signal.SIGHUP)


def interrupt_beside(pid: int) -> None:
    os.kill(pid, signal.SIGTERM)
    os.kill(pid, signal.SIGINT)


def all_while_stopped(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)
    for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(pid, number)
    os.kill(pid, signal.SIGCONT)


def to_the_group(pid: int) -> None:
    os.killpg(pid, signal.SIGHUP)
    os.kill(pid, signal.SIGTERM)


ALL = [
    stopped_and_continued,
    hangup_before,
    hangup_after,
    interrupt_beside,
    all_while_stopped,
    to_the_group,
]
FEW = ALL if ROUNDS > 1 else [stopped_and_continued, all_while_stopped]


def serve(folder: Path, *options: str) -> Program:
    """A server that need not be ready yet."""
    (folder / "policy.yaml").write_text(POLICY)
    return Program((*COMMAND, "serve", "policy.yaml", "--port", "0", *options), folder)


@pytest.mark.parametrize("send", ALL)
def test_one_signal_ends_a_server_that_serves(tmp_path: Path, send: Callable[[int], None]) -> None:
    for _ in range(ROUNDS):
        with Server(tmp_path, "--workers", "2") as server:
            workers = server.children
            send(server.pid)
            assert server.process.wait(SOON_S) == 0
            assert "stopping on SIG" in server.stdout
            assert server.stdout.endswith("stopped\n")
            assert server.stderr == ""
        assert not any(map(is_running, workers))


@pytest.mark.parametrize("send", FEW)
def test_one_signal_ends_a_server_that_starts(tmp_path: Path, send: Callable[[int], None]) -> None:
    (tmp_path / "slow.py").write_text(SETS_UP_SLOWLY)
    for _ in range(ROUNDS):
        (tmp_path / "setting-up").unlink(missing_ok=True)
        with serve(tmp_path, "--executor", "slow:Slow") as server:
            until((tmp_path / "setting-up").exists, "its executor sets up")
            send(server.pid)
            assert server.process.wait(SOON_S) == 0


@pytest.mark.parametrize("send", FEW)
def test_one_signal_ends_a_server_that_starts_a_worker_again_and_again(
    tmp_path: Path, send: Callable[[int], None]
) -> None:
    (tmp_path / "fails.py").write_text(FAILS_WHEN_TOLD)
    for _ in range(ROUNDS):
        (tmp_path / "fail").unlink(missing_ok=True)
        with Server(tmp_path, "--executor", "fails:Fails", "--workers", "2") as server:
            server.wait_for_workers(2)
            (tmp_path / "fail").touch()
            os.kill(max(server.children), signal.SIGKILL)
            server.printed("worker . (cannot start)")
            send(server.pid)
            assert server.process.wait(SOON_S) == 0


@pytest.mark.parametrize("send", FEW)
def test_one_signal_ends_a_server_that_drains(tmp_path: Path, send: Callable[[int], None]) -> None:
    for _ in range(ROUNDS):
        with Server(tmp_path, "--drain-delay", "0.3") as server:
            send(server.pid)
            until(lambda: server.ask(*READY).status == 503, "it says that it stops")
            server.process.send_signal(signal.SIGHUP)
            assert server.process.wait(SOON_S) == 0


def test_hangup_while_it_starts_is_answered_when_it_serves(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(SETS_UP_SLOWLY)
    with serve(tmp_path, "--executor", "slow:Slow") as server:
        until((tmp_path / "setting-up").exists, "its executor sets up")
        (tmp_path / "policy.yaml").write_text("rules: [{name: newer}]")
        server.process.send_signal(signal.SIGHUP)
        server.printed("(Aegis .*) at")
        server.printed("the policy file has changed: (version 2) is in force")
        assert server.stop() == 0


def test_hangup_loads_the_policy_file_in_every_worker(tmp_path: Path) -> None:
    with Server(tmp_path, "--workers", "2") as server:
        (tmp_path / "policy.yaml").write_text("rules: [{name: newer}]")
        os.killpg(server.pid, signal.SIGHUP)  # as the end of a terminal does
        server.printed("the policy file has changed: (version 2) is in force")
        assert {server.rule_for("x") for _ in range(16)} == {"newer"}
        (tmp_path / "policy.yaml").write_text("rules: [{nam: newer}]")
        server.process.send_signal(signal.SIGHUP)
        server.printed("the policy in (force) stays: policy.yaml:1: ")
        assert server.ask(*READY).json()["policy_file"]["failures"] == 1
        assert {server.rule_for("x") for _ in range(16)} == {"newer"}
        assert server.stop() == 0


def test_hangup_is_answered_although_a_worker_dies_or_stands_still(tmp_path: Path) -> None:
    with Server(tmp_path, "--workers", "2") as server:
        server.wait_for_workers(2)
        still, other = server.children
        os.kill(still, signal.SIGSTOP)
        try:
            (tmp_path / "policy.yaml").write_text("rules: [{name: newer}]")
            server.process.send_signal(signal.SIGHUP)
            os.kill(other, signal.SIGKILL)
            server.printed("the policy file has changed: (version 2) is in force")
        finally:
            os.kill(still, signal.SIGCONT)
        assert server.stop() == 0


def test_two_signals_at_once_let_what_runs_come_to_its_end(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(
        SETS_UP_SLOWLY.replace("SUCCESS", "SUCCESS, data=1").replace(
            "        return", "        await asyncio.sleep(1)\n        return"
        )
    )
    with Server(tmp_path, "--executor", "slow:Slow") as server:
        answers = []
        thread = threading.Thread(
            target=lambda: answers.append(
                server.ask("POST", "/api/v1/execute", {"action_type": "read"})
            )
        )
        thread.start()
        until(lambda: server.audit(result_status="started"), "it runs")
        interrupt_beside(server.pid)
        thread.join()
        assert answers[0].json()["status"] == "success"
        assert server.process.wait(SOON_S) == 0


def test_drain_delay_serves_on_while_readiness_says_no(tmp_path: Path) -> None:
    with Server(tmp_path, "--drain-delay", "2", "--workers", "2") as server:
        server.process.send_signal(signal.SIGTERM)
        begun = time.monotonic()
        until(lambda: server.ask(*READY).status == 503, "it says that it stops")
        assert server.ask(*READY).json()["error"] == "the server is stopping"
        assert server.ask("GET", "/health/live").status == 200
        assert server.ask("POST", "/api/v1/execute", {"action_type": "read"}).status == 200
        assert server.process.wait(SOON_S) == 0
        assert time.monotonic() - begun > 1.5
        assert "stopping on SIGTERM: new requests are taken for 2 s more" in server.stdout
