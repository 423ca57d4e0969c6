"""What is odd about the rules of a policy: names that repeat, rules that can never match."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator

from aegis.errors import shown
from aegis_core import DEFAULT_RULE, PolicyRule

__all__ = ["oddities"]


def oddities(rules: tuple[PolicyRule, ...]) -> Iterator[tuple[int, str]]:
    """Each rule that is odd, by index, and what is odd about it.

    INVARIANT: a rule that is said never to match never decides.
    """
    names: dict[str, int] = {}
    # The first rule without conditions, and the first with equal conditions, of each patterns.
    unconditional: dict[tuple[str, ...], int] = {}
    same: dict[tuple[str, ...], int] = {}
    # The patterns of the rules without conditions, a set for each of the three fields.
    known: tuple[set[str], ...] = (set(), set(), set())
    for index, rule in enumerate(rules):
        if rule.name == DEFAULT_RULE:
            yield index, f"is named {shown(DEFAULT_RULE)}, as what decides where no rule matches"
        if rule.name in names:
            yield (
                index,
                f"has the name of rules[{names[rule.name]}]; records cannot tell them apart",
            )
        names.setdefault(rule.name, index)
        patterns = tuple(
            _plain_runs(pattern)
            for pattern in (rule.match_type, rule.match_target, rule.match_agent)
        )
        conditions = json.dumps(rule.conditions, sort_keys=True, default=repr)
        wider = itertools.product(*map(_covering, patterns, known))
        found = [unconditional[each] for each in wider if each in unconditional]
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
            for pattern, patterns_known in zip(patterns, known, strict=True):
                patterns_known.add(pattern)
        same.setdefault((*patterns, conditions), index)


def _plain_runs(pattern: str) -> str:
    return pattern if "[" in pattern else re.sub(r"\*+", "*", pattern)


def _covering(pattern: str, known: set[str]) -> list[str]:
    """Those of the known patterns that surely match all that a pattern matches."""
    head = re.split(r"[*?\[]", pattern, maxsplit=1)[0]
    tail = re.split(r"[*?\]]", pattern)[-1] if "[" not in pattern else ""
    wider = {pattern}
    wider.update(f"{head[:length]}*" for length in range(len(head) + 1))
    wider.update(f"*{tail[start:]}" for start in range(len(tail) + 1))
    return [each for each in wider if each in known]
