"""A batch from bytes to bytes through the real handler, beside parsing its bytes alone."""

from __future__ import annotations

import random
from collections.abc import Callable
from time import perf_counter_ns
from typing import Any, NoReturn

import orjson

from aegis import codec
from aegis.bench import workload
from aegis.bench.measure import figures, quiet, ratio, turns
from aegis.compiled import compiled
from aegis.config import Settings
from aegis.decisions import Snapshot
from aegis.policies import LoadedPolicy, Policy
from aegis.server.api import Api
from aegis.versions import PolicyVersion

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
    policy = Policy(workload.policy(rules).rules)
    ready = compiled(LoadedPolicy(policy, ""))
    snapshot = Snapshot(ready, PolicyVersion(1, ready.sha256, "file", 0))
    return Api(Settings(), lambda: snapshot, _nobody, _nobody, _nobody, _nobody)


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
            "bytes to bytes": timed(lambda body: evaluate(body, NO_HEADERS, "", None)),
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
