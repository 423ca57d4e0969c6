"""Actions whose strings never come again: what they cost, and that nothing remembers them.

Run: python -m benchmarks.endless DECISIONS    (prints the resident memory as JSON)
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter_ns
from typing import Any

from aegis import codec, wire
from aegis.bench import workload
from aegis.bench.deciding import BATCH, compiled, singles, timed
from aegis.bench.measure import figures, quiet, ratio, turns

RULES = 10_000
TAKEN_IN_A_ROUND = 5_000
WARM_UP = 500_000
PLACE = b"@@@@@@@@"


def batches(rules: int, count: int) -> Iterator[list[wire.Question]]:
    """Batches of the realistic mix in which every type and every target is new.

    A number that never comes again stands where most patterns have their `*`: behind `crm17.read`
    and `send_mail`, before `.crm17_read`, behind `prod-crm-1700/` and inside `host5.17.eu`. So the
    rules for exactly `crm17.read` match none of them, and the others what they did.
    """
    place = PLACE.decode()
    template = codec.dumps(
        [
            (_new(kind, f"{index}{place}"), _new(target, f"{index}{place}"), "", None)
            for index, (kind, target, _, _) in enumerate(workload.actions(count, rules))
        ]
    )
    for number in range(10**8):
        # Neighbours differ in all of their digits.
        yield [
            (kind, target, "", None)
            for kind, target, _, _ in codec.loads(
                template.replace(PLACE, b"%08d" % (number * 38_617_789 % 10**8)), 64
            )
        ]


def _new(text: str, number: str) -> str:
    head, _, tail = text.partition(".")
    return f"{head}{number}.{tail}" if text.startswith(("x.", "host")) else f"{text}{number}"


def beside_the_mix(rules: int, rounds: int) -> dict[str, Any]:
    """What a decision costs about strings that never come again, beside the mix."""
    made = compiled(workload.policy(rules))
    ask = singles(made)
    endless = batches(rules, TAKEN_IN_A_ROUND)

    def once() -> float:
        asked = next(endless)
        with quiet():
            begun = perf_counter_ns()
            ask(asked)
            return (perf_counter_ns() - begun) / len(asked)

    mix = timed(ask, workload.actions(TAKEN_IN_A_ROUND, rules))
    found = turns({"mix": mix, "endless": once}, rounds, lambda: None)
    return {
        "rules": rules,
        **{f"{name}_ns": figures(values) for name, values in found.items()},
        "ratios": {"endless over mix": ratio(found["endless"], found["mix"])},
    }


def resident_bytes() -> int:
    """Resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def watched(decisions: int) -> dict[str, int]:
    """Resident memory before and after so many decisions in all ways there are, warm-up apart."""
    made = compiled(workload.policy(RULES))
    endless = batches(RULES, BATCH)

    def decide(count: int) -> None:
        for number in range(count // BATCH):
            asked = next(endless)
            match number % 8:
                case 0:
                    for question in asked:
                        made.evaluate(*question)
                case 1:
                    made.evaluate_many_json(asked)
                case _:
                    made.evaluate_many(asked)

    decide(min(WARM_UP, decisions))
    before = resident_bytes()
    decide(decisions)
    after = resident_bytes()
    return {
        "decisions": decisions,
        "before_bytes": before,
        "after_bytes": after,
        "grown_bytes": after - before,
    }


def memory(decisions: int) -> dict[str, int]:
    """`watched`, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.endless", str(decisions)],
        check=True,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[1],
    )
    found: dict[str, int] = json.loads(done.stdout)
    return found


if __name__ == "__main__":
    print(json.dumps(watched(int(sys.argv[1]))))
