"""Patterns that no trie can file: beside the realistic mix, and beside Python's `re`.

Run in process by benchmarks.in_process.
"""

from __future__ import annotations

import fnmatch
import itertools
import random
import re
from string import ascii_lowercase
from typing import Any

from aegis.bench import shapes, workload
from aegis.bench.deciding import Ask, compiled, singles, timed
from aegis.bench.measure import figures, ratio, turns
from aegis.wire import Question
from aegis_core import Policy, PolicyRule

SHAPES = ("infixes", "one type", "sets", "single characters")
LENGTHS = {"short": 0, "4 KiB": 4_096}
ACTIONS = {"short": 4_000, "4 KiB": 400}
LETTERS_IN_A_TEXT = 20


def beside_the_mix(rules: int, rounds: int) -> dict[str, Any]:
    """What a decision costs by each shape, beside the mix with strings of the same lengths.

    "Length" is that of type and target together. Short ones of the mix are as they come, and those
    of a shape are padded to the same lengths, one by one; long ones are all padded to 4 KiB. The
    padding is random text in place of a `*`: inside the target for the mix, around or behind the
    literal for a shape (see `aegis.bench.workload.actions` and `aegis.bench.shapes.adversarial`).
    """
    mix = compiled(workload.policy(rules))
    contestants = {}
    for size, length in LENGTHS.items():
        asked = workload.actions(ACTIONS[size], rules, length=length)
        lengths = [len(kind) + len(target) for kind, target, _, _ in asked]
        contestants[f"mix, {size}"] = timed(singles(mix), asked)
        for shape in SHAPES:
            policy, questions = shapes.adversarial(
                shape, rules, actions=ACTIONS[size], lengths=lengths
            )
            contestants[f"{shape}, {size}"] = timed(singles(compiled(policy)), questions)
    found = turns(contestants, rounds, lambda: None)
    return {
        "rules": rules,
        **{f"{name}_ns": figures(values) for name, values in found.items()},
        "ratios": {
            f"{shape} over mix, {size}": ratio(found[f"{shape}, {size}"], found[f"mix, {size}"])
            for size in LENGTHS
            for shape in SHAPES
        },
    }


def letters_policy(rules: int, *, seed: int = 7) -> tuple[Policy, list[Question]]:
    """Rules as `*q*w*e*r*`, and actions that none of them matches though most of their letters occur.

    There is an order of the alphabet in which no rule has its letters, and in which each text has
    its twenty. So no letter that is missing, and no early match, spares anybody a rule.
    """
    pick = random.Random(seed)
    alphabet = pick.sample(ascii_lowercase, 26)
    patterns: list[str] = []
    while len(patterns) < rules:
        places = [pick.randrange(26) for _ in range(pick.randint(3, 6))]
        if any(place >= after for place, after in itertools.pairwise(places)):
            patterns.append("".join(f"*{alphabet[place]}" for place in places) + "*")
    texts = {
        "".join(alphabet[place] for place in sorted(pick.sample(range(26), LETTERS_IN_A_TEXT)))
        for _ in range(1_000)
    }
    return Policy(
        tuple(PolicyRule(pattern, name=f"rule_{index}") for index, pattern in enumerate(patterns))
    ), [(text, "", "", None) for text in sorted(texts)]


def by_re(policy: Policy) -> Ask:
    """Ask Python's `re`: the first compiled pattern that matches."""
    patterns = [re.compile(fnmatch.translate(rule.match_type)).match for rule in policy.rules]

    def ask(asked: list[Question]) -> None:
        for kind, _, _, _ in asked:
            next((index for index, match in enumerate(patterns) if match(kind)), None)

    return ask


def letters(rules: int, rounds: int) -> dict[str, Any]:
    """What infixes of single letters cost, beside Python's `re`."""
    policy, questions = letters_policy(rules)
    found = turns(
        {
            "single": timed(singles(compiled(policy)), questions),
            "re": timed(by_re(policy), questions),
        },
        rounds,
        lambda: None,
    )
    return {
        "rules": rules,
        **{f"{name}_ns": figures(values) for name, values in found.items()},
        "ratios": {"re over single": ratio(found["re"], found["single"])},
    }
