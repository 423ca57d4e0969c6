"""What needs no server, measured once: it runs in several processes, one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aegis.bench import parts, workload

ACTIONS = 10_000
HTTP_RULES = 1_000


def in_process(sizes: Sequence[int], shape_sizes: Sequence[int], rounds: int) -> dict[str, Any]:
    """The parts that need no server, once."""
    engine = [
        parts.engine(workload.policy(size), workload.actions(ACTIONS, size), rounds=rounds)
        for size in sizes
    ]
    shapes = []
    for size in shape_sizes:
        for shape in workload.SHAPES:
            policy, questions = workload.adversarial(shape, size)
            shapes.append({"shape": shape, **parts.engine(policy, questions, rounds=rounds)})
    policy, questions = workload.policy(HTTP_RULES), workload.actions(ACTIONS, HTTP_RULES)
    return {
        "engine": engine,
        "shapes": shapes,
        "json": parts.json_parts(policy, questions, rounds=rounds),
        "audit": parts.audit(rounds=rounds),
    }
