"""What is odd about the rules of a policy: names that repeat, rules that can never match."""

from __future__ import annotations

import bisect
import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from aegis.errors import shown
from aegis_core import DEFAULT_RULE, PolicyRule

__all__ = ["oddities"]


_MOST_LENGTHS = 64
_MOST_COMBINATIONS = 64
"""What bounds the search for covering rules, whatever a policy looks like."""


class _Known:
    """The patterns that rules without conditions have in one field."""

    def __init__(self) -> None:
        self._patterns: set[str] = set()
        self._heads: list[int] = []  # lengths of the literal of `head*`, the shortest ones
        self._tails: list[int] = []  # and of `*tail`

    def add(self, pattern: str) -> None:
        self._patterns.add(pattern)
        if not any(meta in pattern[:-1] for meta in "*?["):
            _keep_shortest(self._heads, len(pattern) - 1)
        if not any(meta in pattern[1:] for meta in "*?["):
            _keep_shortest(self._tails, len(pattern) - 1)

    def covering(self, pattern: str) -> list[str]:
        """Those that surely match all that a pattern matches."""
        head = re.split(r"[*?\[]", pattern, maxsplit=1)[0]
        tail = "" if "[" in pattern else re.split(r"[*?]", pattern)[-1]
        wider = {pattern, "*"}
        wider.update(f"{head[:length]}*" for length in self._heads if length <= len(head))
        wider.update(f"*{tail[-length:]}" for length in self._tails if 0 < length <= len(tail))
        return [each for each in wider if each in self._patterns]


def _keep_shortest(lengths: list[int], length: int) -> None:
    if length not in lengths:
        bisect.insort(lengths, length)
        del lengths[_MOST_LENGTHS:]


def oddities(rules: tuple[PolicyRule, ...]) -> Iterator[tuple[int, str]]:
    """Each rule that is odd, by index, and what is odd about it.

    INVARIANT: a rule that is said never to match never decides. Not every such rule is found.
    """
    names: dict[str, int] = {}
    # The first rule without conditions, and the first with equal conditions, of each patterns.
    unconditional: dict[tuple[str, ...], int] = {}
    same: dict[tuple[str, ...], int] = {}
    fields = (_Known(), _Known(), _Known())
    for index, rule in enumerate(rules):
        if rule.name == DEFAULT_RULE:
            yield index, f"is named {shown(DEFAULT_RULE)}, as what decides where no rule matches"
        if rule.name in names:
            yield (
                index,
                f"has the name of rules[{names[rule.name]}]; records cannot tell them apart",
            )
        names.setdefault(rule.name, index)
        for said in _odd_conditions(rule.conditions):
            yield index, said
        patterns = tuple(
            _plain_runs(pattern)
            for pattern in (rule.match_type, rule.match_target, rule.match_agent)
        )
        conditions = json.dumps(rule.conditions, sort_keys=True, default=repr)
        found = [unconditional[each] for each in _wider(patterns, fields) if each in unconditional]
        if (equal := same.get((*patterns, conditions))) is not None:
            found.append(equal)
        if found:
            first = min(found)
            yield (
                index,
                (
                    f"can never match: rule {shown(rules[first].name)} (rules[{first}]) before it"
                    " matches all that it does"
                ),
            )
        if not rule.conditions:
            unconditional.setdefault(patterns, index)
            for pattern, known in zip(patterns, fields, strict=True):
                known.add(pattern)
        same.setdefault((*patterns, conditions), index)


def _wider(patterns: tuple[str, ...], fields: tuple[_Known, ...]) -> Iterator[tuple[str, ...]]:
    wider = [known.covering(pattern) for pattern, known in zip(patterns, fields, strict=True)]
    if math.prod(map(len, wider)) > _MOST_COMBINATIONS:
        wider = [list({pattern, "*"}) for pattern in patterns]
    return itertools.product(*wider)


def _odd_conditions(conditions: Mapping[str, Any]) -> Iterator[str]:
    for name, value in conditions.items():
        if name.startswith("param_") and not value:
            yield f"has {shown(name)} without a parameter, which always holds"
        if name == "weekdays" and not value:
            yield "has no day in `weekdays`, so it never matches"
    if list(conditions) == ["timezone"]:
        yield "has a `timezone`, but neither a time nor weekdays"


def _plain_runs(pattern: str) -> str:
    return pattern if "[" in pattern else re.sub(r"\*+", "*", pattern)
