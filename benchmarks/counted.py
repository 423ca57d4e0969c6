"""What is counted, inside valgrind: benchmarks.instructions starts it.

Run: python -m benchmarks.counted LIBRARY
"""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Callable, Iterator

from aegis.bench import shapes, workload
from aegis.bench.deciding import Ask, batches, compiled, singles
from aegis.wire import Question
from aegis_core import Policy
from benchmarks import hard

RULES = 10_000
SIZES = (10, 1_000, RULES)
OF_THE_MIX = 1_000
OF_A_SHAPE = 50


def cases() -> Iterator[tuple[str, Ask, list[Question]]]:
    """What is counted: its name, what decides, and what it is asked."""
    for rules in SIZES:
        made = compiled(workload.policy(rules))
        questions = workload.actions(OF_THE_MIX, rules)
        yield f"mix, {rules} rules, single", singles(made), questions
        yield f"mix, {rules} rules, batch", batches(made), questions
    for shape in hard.SHAPES:
        yield from _hard(shape, *shapes.adversarial(shape, RULES, actions=OF_A_SHAPE))
    yield from _hard("letters", *hard.letters_policy(RULES))


def _hard(
    name: str, policy: Policy, questions: list[Question]
) -> Iterator[tuple[str, Ask, list[Question]]]:
    yield f"{name}, {RULES} rules, single", singles(compiled(policy)), questions[:OF_A_SHAPE]


def main() -> None:
    library = ctypes.CDLL(sys.argv[1])
    begin: Callable[[], None] = library.begin
    end: Callable[[bytes], None] = library.end
    gc.disable()
    for name, ask, questions in cases():
        ask(workload.fresh(questions))
        for times in (1, 2):
            asked = [one for _ in range(times) for one in workload.fresh(questions)]
            begin()
            ask(asked)
            end(f"{len(asked)} {name}".encode())


if __name__ == "__main__":
    main()
