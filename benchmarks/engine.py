"""The engine against a dict of ready answers, in one run: distinct actions, fresh strings.

Run: python -m benchmarks.engine [RULES ...]
"""

from __future__ import annotations

import statistics
import sys
from time import perf_counter_ns

from aegis_core import compile_policy
from benchmarks import workload

ACTIONS = 10_000
ROUNDS = 15


def measure(rules: int) -> dict[str, float]:
    """Nanoseconds an action: median over the rounds, the contestants in turns."""
    engine = compile_policy(workload.policy(rules), condition=lambda _: None)
    pairs = workload.actions(ACTIONS, rules)
    answers = {pair: engine.evaluate(*pair) for pair in pairs}
    evaluate, evaluate_many = engine.evaluate, engine.evaluate_many
    times: dict[str, list[float]] = {"dict": [], "single": [], "batch": []}
    for _ in range(ROUNDS):
        looked_up, single = workload.fresh(pairs), workload.fresh(pairs)
        batch = [(kind, target, "", None) for kind, target in workload.fresh(pairs)]
        start = perf_counter_ns()
        for kind, target in looked_up:
            answers[kind, target]
        dict_end = perf_counter_ns()
        for kind, target in single:
            evaluate(kind, target)
        single_end = perf_counter_ns()
        evaluate_many(batch)
        batch_end = perf_counter_ns()
        times["dict"].append(dict_end - start)
        times["single"].append(single_end - dict_end)
        times["batch"].append(batch_end - single_end)
    return {name: statistics.median(values) / ACTIONS for name, values in times.items()}


def main() -> None:
    """Print one line a size."""
    print(
        f"{'rules':>7} {'dict ns':>8} {'single ns':>10} {'batch ns':>9} {'single/dict':>12} {'batch/dict':>11}"
    )
    for rules in [int(word) for word in sys.argv[1:]] or [10, 100, 1_000, 10_000]:
        row = measure(rules)
        print(
            f"{rules:>7} {row['dict']:>8.0f} {row['single']:>10.0f} {row['batch']:>9.0f}"
            f" {row['single'] / row['dict']:>12.2f} {row['batch'] / row['dict']:>11.2f}"
        )


if __name__ == "__main__":
    main()
