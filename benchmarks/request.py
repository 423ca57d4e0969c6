"""Requests from bytes to bytes through the real handler: a batch, and what versions cost each one."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable
from time import perf_counter_ns
from typing import Any, NoReturn

import orjson

from aegis import codec
from aegis.bench import workload
from aegis.bench.measure import figures, quiet, ratio, turns
from aegis.config import Settings
from aegis.execution.decide import ActionService
from aegis.host.workers import Workers
from aegis.policy.compiled_cache import compile_policy
from aegis.policy.decision_point import Decider, DecisionPoint, Snapshot
from aegis.policy.history import PolicyVersion
from aegis.policy.loader import LoadedPolicy, Policy
from aegis.server.api.agents import Api
from aegis.server.http.messages import Handler, Request
from aegis_core import DEFAULT_BUDGET

ACTIONS = 1_000
REPEATS = 3


class _NoHeaders:
    def get_all(self, _name: str, /) -> list[str]:
        return []

    def __contains__(self, _name: str, /) -> bool:
        return False


NO_HEADERS = _NoHeaders()


def body(rules: int) -> bytes:
    """A request of a thousand actions of about 150 bytes, with three parameters each."""
    pick = random.Random(8)
    return codec.dumps(
        {
            "actions": [
                {
                    "action_type": kind,
                    "target": target,
                    "params": {
                        "account": f"acc-{pick.randrange(10**8):08}",
                        "amount": pick.randrange(10**5),
                        "note": f"order {pick.randrange(10**6)} of the day",
                    },
                }
                for kind, target, _, _ in workload.actions(ACTIONS, rules)
            ]
        }
    )


def api(rules: int) -> Api:
    """The handlers over a policy, without what evaluating does not touch."""
    snapshot = _snapshot(rules)
    return _api(lambda: snapshot)


def _snapshot(rules: int) -> Snapshot:
    policy = Policy(workload.policy(rules).rules)
    ready = compile_policy(LoadedPolicy(policy, ""))
    return Snapshot(ready, PolicyVersion(1, ready.sha256, "file", 0))


def _api(snapshot: Callable[[], Snapshot]) -> Api:
    settings = Settings()
    actions = ActionService(snapshot, Decider(DEFAULT_BUDGET), _nobody, settings.audit_decisions)
    return Api(settings, actions, _nobody, _nobody, _nobody)


def _nobody() -> NoReturn:
    raise AssertionError("evaluating executes and records nothing")


def whole(rules: int, rounds: int) -> dict[str, Any]:
    """Nanoseconds an action of a batch: parsed by orjson alone, and answered by the handler."""
    asked = body(rules)
    evaluate = api(rules).evaluate

    def timed(do: Callable[[bytes], object]) -> Callable[[], float]:
        def once() -> float:
            with quiet():
                begun = perf_counter_ns()
                for _ in range(REPEATS):
                    do(asked)
                return (perf_counter_ns() - begun) / ACTIONS / REPEATS

        return once

    found = turns(
        {
            "orjson loads": timed(orjson.loads),
            "bytes to bytes": timed(lambda body: evaluate(Request("evaluate", body, NO_HEADERS))),
        },
        rounds,
        lambda: None,
    )
    return {
        "rules": rules,
        "bytes_an_action": len(asked) / ACTIONS,
        **{f"{name}_ns": figures(values) for name, values in found.items()},
        "ratios": {
            "bytes to bytes over orjson loads": ratio(
                found["bytes to bytes"], found["orjson loads"]
            )
        },
    }


def switching(rules: int, rounds: int) -> dict[str, Any]:
    """Nanoseconds a request of one action: by the policy in force everywhere, and by a fixed one."""
    snapshot = _snapshot(rules)
    bodies = [workload.body(question) for question in workload.actions(ACTIONS, rules)]
    with tempfile.TemporaryDirectory() as folder:
        workers = Workers(f"{folder}/audit.db")
        point = DecisionPoint()
        point.begin(snapshot, workers.newest, _nobody)
        in_force, fixed = _api(point.snapshot).evaluate, _api(lambda: snapshot).evaluate

        def timed(evaluate: Handler) -> Callable[[], float]:
            def once() -> float:
                with quiet():
                    begun = perf_counter_ns()
                    for _ in range(10 * REPEATS):
                        for body in bodies:
                            evaluate(Request("evaluate", body, NO_HEADERS))
                    return (perf_counter_ns() - begun) / ACTIONS / REPEATS / 10

            return once

        found = turns({"in force": timed(in_force), "fixed": timed(fixed)}, rounds, lambda: None)
        point.end()
        workers.close()
    return {
        "rules": rules,
        **{f"{name}_ns".replace(" ", "_"): figures(values) for name, values in found.items()},
        "ratios": {"in force over fixed": ratio(found["in force"], found["fixed"])},
    }
