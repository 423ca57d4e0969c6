"""What is odd about the rules of a policy: names that repeat, rules that can never match."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from aegis.errors import shown
from aegis_core import DEFAULT_RULE, PolicyRule, covered_rules

__all__ = ["oddities"]


def oddities(rules: tuple[PolicyRule, ...]) -> Iterator[tuple[int, str]]:
    """Each rule that is odd, by index, and what is odd about it.

    INVARIANT: a rule that is said never to match never decides. Not every such rule is found.
    """
    names: dict[str, int] = {}
    covered = covered_rules(rules)
    same: dict[tuple[str, ...], int] = {}  # the first rule with equal patterns and conditions
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
        earlier = (covered.get(index), same.get((*patterns, conditions)))
        found = [number for number in earlier if number is not None]
        if found:
            first = min(found)
            yield (
                index,
                (
                    f"can never match: rule {shown(rules[first].name)} (rules[{first}]) before it"
                    " matches all that it does"
                ),
            )
        same.setdefault((*patterns, conditions), index)


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
