"""Patterns that are hard to decide by, each shape alone, and actions near them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from aegis.bench.workload import filled, padding
from aegis.wire import Question
from aegis_core import Policy, PolicyRule

__all__ = ["SHAPES", "adversarial"]

ACTIONS = 4_000
CONSONANTS, VOWELS = "bcdfghjklmnprstvwxyz", "aeiou"
SYLLABLES = [f"{consonant}{vowel}" for consonant in CONSONANTS for vowel in VOWELS]


def _word(index: int) -> str:
    """A word of three syllables; a million distinct ones, neighbours unlike each other."""
    scattered = index * 386_179 % 10**6
    return "".join(SYLLABLES[scattered // part % 100] for part in (1, 100, 10_000))


def _nested_prefixes(index: int) -> tuple[str, str]:
    return "a" * (1 + index % 500) + "*", f"t{index}*"


def _long_shared_prefix(index: int) -> tuple[str, str]:
    return f"{'organisation.department.team.system.'}{index}.*", "*"


def _infixes(index: int) -> tuple[str, str]:
    return f"*{_word(index)}*", "*"


def _single_characters(index: int) -> tuple[str, str]:
    return f"?{index:05}?*", "*"


def _sets(index: int) -> tuple[str, str]:
    return f"[a-m]{index:05}[!x]*", "*"


def _targets_only(index: int) -> tuple[str, str]:
    return "*", f"place-{index:05}/*"


def _one_type(index: int) -> tuple[str, str]:
    return "update", f"*-{index:05}"


SHAPES: dict[str, Callable[[int], tuple[str, str]]] = {
    "nested prefixes": _nested_prefixes,
    "long shared prefix": _long_shared_prefix,
    "infixes": _infixes,
    "single characters": _single_characters,
    "sets": _sets,
    "targets only": _targets_only,
    "one type": _one_type,
}


def adversarial(
    shape: str, count: int, *, actions: int = ACTIONS, lengths: Sequence[int] = (0,)
) -> tuple[Policy, list[Question]]:
    """A policy of `count` rules of one shape, and distinct actions.

    Of every two actions one is near a rule of the later half, and one near a pattern of the same
    shape that the policy does not have.

    Args:
        shape: One of SHAPES.
        count: How many rules.
        actions: How many actions.
        lengths: Of type and target together, at least, one action after the other and then again
            from the first. What is missing stands in place of the `*` around or behind the literal
            of the pattern that has one.
    """
    rules = [PolicyRule(*SHAPES[shape](index), name=f"rule_{index}") for index in range(count)]
    pick = random.Random(3)
    asked: dict[tuple[str, str], None] = {}
    while len(asked) < actions:
        index = pick.randrange(count // 2, count) + count * (len(asked) % 2)
        kind, target = SHAPES[shape](index)
        length = lengths[len(asked) % len(lengths)]
        if kind.strip("*") and "*" in kind:
            target = filled(target, pick)
            kind = _padded(kind, length - len(target), pick)
        else:
            kind = filled(kind, pick)
            target = _padded(target, length - len(kind), pick)
        asked[kind, target] = None
    return Policy(tuple(rules)), [(kind, target, "", None) for kind, target in asked]


def _padded(pattern: str, length: int, pick: random.Random) -> str:
    """A text that matches a pattern; its stars share what is missing to its length."""
    first, *parts = [filled(part, pick) for part in pattern.split("*")]
    missing = max(0, length - len(first) - sum(map(len, parts)))
    made = [first]
    for number, part in enumerate(parts):
        share = missing * (number + 1) // len(parts) - missing * number // len(parts)
        made += [padding(share, pick) if share else filled("*", pick), part]
    return "".join(made)
