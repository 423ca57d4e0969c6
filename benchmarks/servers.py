"""HTTP: a server of ours beside bare granian applications and, when asked, agent-aegis."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from aegis import wire
from aegis.bench import http, workload
from aegis.bench.deciding import compiled, singles, timed
from aegis.bench.load import EVALUATE
from aegis.bench.measure import figures, ratio, turns
from benchmarks import agent_aegis

ACTIONS = 10_000
BARE = ("bare ASGI", "bare RSGI")
BATCH = 100
AGENT_AEGIS_RULES = 1_000
EXECUTE = "/api/v1/execute"
AGENT_AEGIS_PER_S = 200.0
# Few, since it takes milliseconds for one.
AGENT_AEGIS_ASKED = {1_000: 200, 10_000: 20}


Start = Callable[[int], list[str]]
"""What starts a server on a port."""


def ours(folder: Path, rules: int) -> Start:
    """What starts our server on the mix."""
    policy = _policy(folder, rules)
    return lambda port: http.aegis_command(policy, port, folder / f"{port}.db")


def ours_by_asgi(folder: Path, rules: int) -> Start:
    """What starts our application on granian's ASGI instead of its RSGI."""
    policy = _policy(folder, rules)
    return lambda port: [
        sys.executable, "-m", "benchmarks.by_asgi", str(port), str(policy), str(folder / f"{port}.db"),
    ]  # fmt: skip


def _policy(folder: Path, rules: int) -> Path:
    policy = folder / f"policy-{rules}.json"
    policy.write_text(workload.as_text(workload.policy(rules)))
    return policy


def bare(folder: Path, rules: int, *how: str) -> Start:
    """What starts a bare granian application that has the answers of the mix ready."""
    made = compiled(workload.policy(rules))
    answers = folder / f"answers-{rules}.json"
    questions = workload.actions(ACTIONS, rules)
    ready = [[question[:2], json.loads(made.evaluate_json(*question))] for question in questions]
    answers.write_text(json.dumps(ready))
    return lambda port: [
        sys.executable, "-m", "benchmarks.bare", str(port), str(answers), *how,
    ]  # fmt: skip


def beside_bare(
    folder: Path, rules: int, rounds: int, seconds: float, tick: Callable[[], None]
) -> dict[str, Any]:
    """Single evaluates, beside the least that a server on granian could do, as it comes and with
    threads that take turns, and beside our application by granian's other interface.

    Tails are taken at half the rate of the faster bare one as it comes, of all of them.
    """  # noqa: D205 - what it measures is one sentence
    starts = {
        "aegis": ours(folder, rules),
        "bare ASGI": bare(folder, rules, "asgi"),
        "bare RSGI": bare(folder, rules, "rsgi"),
        "bare RSGI in turns": bare(folder, rules, "rsgi", "in-turns"),
        "aegis by ASGI": ours_by_asgi(folder, rules),
    }
    bodies = [workload.body(question) for question in workload.actions(ACTIONS, rules)]
    found = _measured(starts, bodies, BARE, rounds, seconds, tick)
    faster = max(
        BARE,
        key=lambda name: float(found["servers"][name]["requests_per_s"]["median"]),
    )
    for what in http.RATIOS:
        of = found["ratios"][f"aegis {what} over {faster}"]
        found["ratios"][f"aegis {what} over the faster bare"] = of
    return {"rules": rules, **found}


def executing(
    folder: Path,
    rules: int,
    connections: int,
    rounds: int,
    seconds: float,
    tick: Callable[[], None],
) -> dict[str, Any]:
    """Durable executes without effects, and evaluates that are recorded, beside plain evaluates.

    Tails are taken at half the rate of the executes, of all of them.
    """
    start = ours(folder, rules)
    starts: dict[str, Callable[[int], list[str]]] = {
        "execute": start,
        "evaluate": start,
        "noted": lambda port: [*start(port), "--audit-decisions", "all"],
    }
    bodies = [workload.body(question) for question in workload.actions(ACTIONS, rules)]
    found = http.servers(
        starts,
        dict.fromkeys(starts, bodies),
        rounds=rounds,
        seconds=seconds,
        per_s=("execute",),
        tick=tick,
        paths={"execute": EXECUTE},
        connections=connections,
    )
    rates = found["servers"]["noted"]["requests_per_s"]["rounds"]
    plain = found["servers"]["evaluate"]["requests_per_s"]["rounds"]
    found["ratios"] = {
        "execute rate over evaluate": found["ratios"]["execute rate over evaluate"],
        "execute CPU over evaluate": found["ratios"]["execute CPU over evaluate"],
        "noted rate over evaluate": ratio(rates, plain),
    }
    return {"rules": rules, "connections": connections, **found}


def beside_agent_aegis(
    folder: Path, rounds: int, seconds: float, tick: Callable[[], None]
) -> dict[str, dict[str, Any]]:
    """Evaluates beside agent-aegis, one by one and in batches: over HTTP, by what they were."""
    python = agent_aegis.installed(Path(sys.prefix) / "agent-aegis")
    start = ours(folder, AGENT_AEGIS_RULES)
    policy = folder / f"policy-{AGENT_AEGIS_RULES}.json"
    starts = {
        "aegis": start,
        "agent-aegis": lambda port: agent_aegis.command(
            python, policy, port, folder / f"{port}.db"
        ),
    }
    single = [workload.body(one) for one in workload.actions(ACTIONS, AGENT_AEGIS_RULES)]
    batches = [
        b'{"actions":[%b]}' % b",".join(single[first : first + BATCH])
        for first in range(0, ACTIONS, BATCH)
    ]
    return {
        "singles": _both(starts, single, AGENT_AEGIS_PER_S, rounds, seconds, tick),
        "executes": _both(starts, single, AGENT_AEGIS_PER_S, rounds, seconds, tick, EXECUTE),
        "batches": _both(starts, batches, AGENT_AEGIS_PER_S / BATCH, rounds, seconds, tick),
    }


def _both(
    starts: Mapping[str, Start],
    bodies: list[bytes],
    per_s: float,
    rounds: int,
    seconds: float,
    tick: Callable[[], None],
    path: str = EVALUATE,
) -> dict[str, Any]:
    found = _measured(starts, bodies, per_s, rounds, seconds, tick, path)
    del found["ratios"]["aegis p99 over agent-aegis"]  # at a rate at which nothing waits
    return {"rules": AGENT_AEGIS_RULES, **found}


def _measured(
    starts: Mapping[str, Start],
    bodies: list[bytes],
    per_s: float | Collection[str],
    rounds: int,
    seconds: float,
    tick: Callable[[], None],
    path: str = EVALUATE,
) -> dict[str, Any]:
    return http.servers(
        starts,
        dict.fromkeys(starts, bodies),
        rounds=rounds,
        seconds=seconds,
        per_s=per_s,
        tick=tick,
        paths=dict.fromkeys(starts, path),
    )


def agent_aegis_deciding(folder: Path, sizes: list[int], rounds: int) -> dict[str, Any]:
    """Its `Policy.evaluate` beside our engine, by number of rules."""
    python = agent_aegis.installed(Path(sys.prefix) / "agent-aegis")
    result: dict[str, Any] = {"ratios": {}}
    for rules in sizes:
        policy = workload.policy(rules)
        path = folder / f"theirs-{rules}.json"
        path.write_text(workload.as_text(policy))
        questions: list[wire.Question] = workload.actions(ACTIONS, rules)
        few = AGENT_AEGIS_ASKED[rules]
        pairs = [(kind, target) for kind, target, _, _ in questions[:few]]
        with agent_aegis.in_process(python, path, pairs) as measure:
            found = turns(
                {
                    "single": timed(singles(compiled(policy)), questions),
                    "agent-aegis": lambda: measure(few),  # noqa: B023 - is called in this turn of the loop
                },
                rounds,
                lambda: None,
            )
        for name, values in found.items():
            result[f"{name}, {rules} rules_ns"] = figures(values)
        result["ratios"][f"{rules} rules, agent-aegis over single"] = ratio(
            found["agent-aegis"], found["single"]
        )
    return result
