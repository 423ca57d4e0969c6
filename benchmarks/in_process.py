"""What needs no server, measured once: it runs in several processes, one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aegis.bench import deciding, parts, shapes, workload
from benchmarks import endless, hard, loading, request

ACTIONS = 10_000
JSON_RULES = 1_000


def in_process(sizes: Sequence[int], shape_sizes: Sequence[int], rounds: int) -> dict[str, Any]:
    """The parts that need no server, once; the hard ones at the largest of `shape_sizes`."""
    large = shape_sizes[-1]
    policy, questions = workload.policy(JSON_RULES), workload.actions(ACTIONS, JSON_RULES)
    return {
        "engine": [_mix(size, rounds) for size in sizes],
        "shapes": [_shape(shape, size, rounds) for size in shape_sizes for shape in shapes.SHAPES],
        "hard": hard.beside_the_mix(large, rounds),
        "letters": hard.letters(large, rounds),
        "endless": endless.beside_the_mix(large, rounds),
        "request": request.whole(large, rounds),
        "loading": loading.loading(large, min(rounds, 5)),
        "switching": request.switching(large, rounds),
        "json": parts.json_parts(policy, questions, rounds=rounds),
        "audit": parts.audit(rounds=rounds),
    }


def _mix(size: int, rounds: int) -> dict[str, Any]:
    known = workload.actions(max(ACTIONS, size), size)
    questions, others = known[:ACTIONS], known[ACTIONS:]
    return deciding.engine(workload.policy(size), questions, others=others, rounds=rounds)


def _shape(shape: str, size: int, rounds: int) -> dict[str, Any]:
    policy, questions = shapes.adversarial(shape, size)
    return {"shape": shape, **deciding.engine(policy, questions, rounds=rounds)}
