"""SIGKILL at random moments: nothing acknowledged is lost, nothing is done twice or unsaid.

`AEGIS_KILL_ROUNDS` makes it longer, and `AEGIS_KILL_SEED` other moments of it.
"""

from __future__ import annotations

import http.client
import itertools
import json
import os
import signal
import threading
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.process.server import Answer, Server, end_of, until

EXECUTE = "/api/v1/execute"
DATABASE = "aegis_audit.db"
EFFECTS = "effects"
ROUNDS = int(os.environ.get("AEGIS_KILL_ROUNDS", "20"))
SEED = int(os.environ.get("AEGIS_KILL_SEED", "5"))
CLIENTS = 6
MAX_ACKNOWLEDGED = 120
"""Of one round, before something is killed."""

EXECUTORS = """
import asyncio, os
from aegis import Executor, Result, ResultStatus

class Appends(Executor):
    # Its effect is a line in a file, at once; the result takes its time.
    def __init__(self):
        self.file = os.open("effects", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    async def execute(self, action):
        await asyncio.sleep(action.params["before_s"])
        os.write(self.file, f"{action.target}\\n".encode())
        await asyncio.sleep(action.params["after_s"])
        return Result(action, ResultStatus.SUCCESS, {"did": action.target})
"""


@dataclass
class Request:
    """One request of its own key, and what was answered to it, if anything."""

    key: str
    actions: list[dict[str, Any]]
    answer: Answer | None = None

    @property
    def results(self) -> list[dict[str, Any]]:
        """Of its actions, as they were answered."""
        assert self.answer is not None
        results: list[dict[str, Any]] = self.answer.json()
        return results


@dataclass
class Load:
    """Executes on several connections, and connects again, until nobody listens any more.

    Args:
        server: Executes.
        name: Of this load; the targets of all its actions begin with it and are all different.
        seed: What it asks for depends on it.

    Attributes:
        requests: All that were sent.
        acknowledged: How many of them were answered.
    """

    server: Server
    name: str
    seed: int
    requests: list[Request] = field(default_factory=list)
    acknowledged: int = 0

    def __post_init__(self) -> None:
        self._is_over = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(client,)) for client in range(CLIENTS)
        ]
        for thread in self._threads:
            thread.start()

    def _run(self, client: int) -> None:
        random = Random(f"{self.seed}/{client}")
        numbers = itertools.count()
        while not self._is_over.is_set():
            with suppress(OSError, http.client.HTTPException), self.server.connect() as connection:
                while not self._is_over.is_set():
                    key = f"{self.name}/{client}/{next(numbers)}"
                    request = Request(key, _actions(key, random))
                    self.requests.append(request)
                    request.answer = connection.ask(
                        "POST", EXECUTE, request.actions, {"idempotency-key": key}
                    )
                    self.acknowledged += 1

    def acknowledge(self, count: int) -> None:
        """Wait until so many more requests are answered."""
        wanted = self.acknowledged + count
        until(lambda: self.acknowledged >= wanted, "requests are answered")

    def end(self) -> None:
        """Send no more; the server is gone."""
        self._is_over.set()
        for thread in self._threads:
            thread.join(30.0)
            assert not thread.is_alive()


def _actions(key: str, random: Random) -> list[dict[str, Any]]:
    """One to three actions, of which some are blocked and some take a moment."""
    return [
        {
            "action_type": random.choice(["read", "read", "read", "delete"]),
            "target": f"{key}/{place}",
            "params": {
                "before_s": random.choice([0, 0, 0.002]),
                "after_s": random.choice([0, 0, 0.002]),
            },
        }
        for place in range(random.choice([1, 1, 2, 3]))
    ]


def kill_a_worker(server: Server, load: Load, random: Random) -> None:
    """Kill one of two workers, and all of the rest after it has answered some more."""
    os.kill(random.choice(sorted(server.children)), signal.SIGKILL)
    load.acknowledge(random.randrange(1, 10))
    server.kill_all()


def repeat_unanswered(server: Server, requests: list[Request]) -> None:
    """Ask again, with the same key, for what was being done when the server was killed."""
    for request in requests:
        if request.answer is None:
            answer = server.ask("POST", EXECUTE, request.actions, {"idempotency-key": request.key})
            assert answer.status == 200, answer
            request.answer = answer


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Request]]:
    """The folder of a server that was killed again and again under load, and what was asked."""
    folder = tmp_path_factory.mktemp("killed")
    (folder / "effects.py").write_text(EXECUTORS)
    random = Random(SEED)
    requests: list[Request] = []
    options = ("--workers", "2", "--executor", "effects:Appends")
    for number in range(ROUNDS):
        with Server(folder, *options) as server:
            repeat_unanswered(server, requests)
            load = Load(server, str(number), random.randrange(2**32))
            load.acknowledge(random.randrange(1, MAX_ACKNOWLEDGED))
            if number % 2:
                kill_a_worker(server, load, random)
            else:
                server.kill_all()
            load.end()
        requests += load.requests
    with Server(folder, *options) as server:
        repeat_unanswered(server, requests)
        for request in Random(SEED).sample(requests, min(50, len(requests))):
            again = server.ask("POST", EXECUTE, request.actions, {"idempotency-key": request.key})
            assert request.answer is not None
            assert (again.status, again.json()) == (200, request.answer.json())
        (folder / "audit.json").write_text(json.dumps(server.audit()))
        assert server.stop() == 0
    return folder, requests


@pytest.fixture(scope="module")
def records(killed: tuple[Path, list[Request]]) -> list[dict[str, Any]]:
    """All records."""
    found: list[dict[str, Any]] = json.loads((killed[0] / "audit.json").read_text())
    return found


@pytest.fixture(scope="module")
def effects(killed: tuple[Path, list[Request]]) -> list[str]:
    """The targets of all actions that took effect, in that order."""
    return (killed[0] / EFFECTS).read_text().splitlines()


def test_acknowledged_executions_are_in_the_audit_with_their_outcome(
    killed: tuple[Path, list[Request]], records: list[dict[str, Any]]
) -> None:
    stored = {record["action_target"]: record for record in records}
    answered = {result["target"]: result for request in killed[1] for result in request.results}
    assert len(answered) > ROUNDS
    told = {
        target: (
            stored[target]["result_status"],
            json.loads(stored[target]["result_data"] or "null"),
            stored[target]["result_error"],
        )
        for target, result in answered.items()
        if result["status"] != "skipped"
    }
    assert told == {
        target: (result["status"], result["data"], result["error"])
        for target, result in answered.items()
        if result["status"] != "skipped"
    }


def test_every_effect_has_its_intent_and_happened_once(
    records: list[dict[str, Any]], effects: list[str]
) -> None:
    begun = {
        record["action_target"]
        for record in records
        if record["result_status"] in ("success", "interrupted")
    }
    assert [target for target, count in Counter(effects).items() if count > 1] == []
    assert set(effects) <= begun


@pytest.mark.slow
def test_every_success_has_had_its_effect(
    records: list[dict[str, Any]], effects: list[str]
) -> None:
    done = {record["action_target"] for record in records if record["result_status"] == "success"}
    assert done <= set(effects)


def test_no_action_has_two_records(records: list[dict[str, Any]]) -> None:
    targets = Counter(record["action_target"] for record in records)
    assert [target for target, count in targets.items() if count > 1] == []


def test_what_was_cut_off_is_interrupted_and_nothing_else_is(
    records: list[dict[str, Any]],
) -> None:
    statuses = Counter(record["result_status"] for record in records)
    assert set(statuses) == {"success", "blocked", "interrupted"}
    assert statuses["interrupted"] <= ROUNDS * CLIENTS
    for record in records:
        if record["result_status"] == "interrupted":
            assert "whether it took effect is unknown" in record["result_error"]


def test_what_was_never_begun_is_skipped_for_ever(
    killed: tuple[Path, list[Request]], records: list[dict[str, Any]], effects: list[str]
) -> None:
    skipped = {
        result["target"]
        for request in killed[1]
        for result in request.results
        if result["status"] == "skipped"
    }
    assert skipped.isdisjoint(record["action_target"] for record in records)
    assert skipped.isdisjoint(effects)


def test_chain_is_whole(killed: tuple[Path, list[Request]]) -> None:
    ended = end_of(killed[0], "audit", "verify", DATABASE)
    assert (ended.code, ended.stdout.partition(":")[0]) == (0, "ok"), ended.stderr
