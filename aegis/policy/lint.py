"""What is odd about the rules of a policy: names that repeat, rules that can never match."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from aegis.messages import quote
from aegis.policy.conditions import needs
from aegis_core import DEFAULT_RULE, PolicyRule, covered_rules

__all__ = ["oddities"]

_WINDOW = {"time_after": "00:00", "time_before": "24:00"}  # where only one end is written


def oddities(
    rules: tuple[PolicyRule, ...], lines: Sequence[int | None]
) -> Iterator[tuple[int, str]]:
    """Each rule that is odd, by index, and what is odd about it.

    Args:
        rules: The rules, in order.
        lines: The line that each of them stands on; None where there is no text.

    INVARIANT: a rule that is said never to match never decides. Not every such rule is found.
    """
    names: dict[str, int] = {}
    covered = _covered(rules)
    for index, rule in enumerate(rules):
        if rule.name == DEFAULT_RULE:
            yield index, f"is named {quote(DEFAULT_RULE)}, as what decides where no rule matches"
        if rule.name in names:
            first = names[rule.name]
            yield (
                index,
                f"has the name of rules[{first}]{_on(lines[first])}; records cannot tell them apart",
            )
        names.setdefault(rule.name, index)
        for said in _odd_conditions(rule.conditions):
            yield index, said
        if index in covered:
            first = covered[index]
            yield (
                index,
                f"can never match: rule {quote(rules[first].name)} (rules[{first}])"
                f"{_on(lines[first])} {_beside(rules[first], rule)}, and comes first",
            )


def _on(line: int | None) -> str:
    return "" if line is None else f" on line {line}"


def _covered(rules: Sequence[PolicyRule]) -> dict[int, int]:
    """An earlier rule that decides wherever a rule would, by index of the latter.

    Every condition of the earlier one stands in the later one too. Where one of them fails the
    later rule fails as well, and where none of them does the earlier rule decides, be it that they
    hold or that they cannot be judged.
    """
    of_rules = [needs(rule.conditions) for rule in rules]
    covered = covered_rules(rules, of_rules)
    same: dict[object, int] = {}  # the first rule with equal patterns and conditions
    for index, rule in enumerate(rules):
        first = same.setdefault((_patterns(rule), of_rules[index]), index)
        if first < index:
            covered[index] = min(first, covered.get(index, first))
    return covered


def _patterns(rule: PolicyRule) -> tuple[str, ...]:
    return tuple(
        re.sub(r"\*+", "*", pattern) if "**" in pattern and "[" not in pattern else pattern
        for pattern in (rule.match_type, rule.match_target, rule.match_agent)
    )


def _beside(earlier: PolicyRule, later: PolicyRule) -> str:
    """What the earlier of two rules does, of which it covers the later."""
    if _patterns(earlier) != _patterns(later):
        return "matches all that it does"
    if needs(earlier.conditions) != needs(later.conditions):
        return "has the same patterns and needs less"
    if (earlier.approval, earlier.risk_level) != (later.approval, later.risk_level):
        return "has the same patterns and conditions"
    return "is the same"


def _odd_conditions(conditions: Mapping[str, Any]) -> Iterator[str]:
    for name, value in conditions.items():
        if name.startswith("param_") and not value:
            yield f"has {quote(name)} without a parameter, which always holds"
        if name == "weekdays" and not value:
            yield "has no day in `weekdays`, so it never matches"
    if not _WINDOW.keys().isdisjoint(conditions):
        after, before = (str(conditions.get(name, end)) for name, end in _WINDOW.items())
        if after.zfill(5) == before.zfill(5):
            yield f"has a window of no length, at {quote(after)}, so it never matches"
        elif (
            after.zfill(5) > before.zfill(5) > "00:00"
            and 0 < len(set(conditions.get("weekdays", ()))) < 7
        ):
            yield (
                "has `weekdays` and a window over midnight: the day counts at the moment, not when the"
                " window opens; write a rule for each side of midnight"
            )
    if list(conditions) == ["timezone"]:
        yield "has a `timezone`, but neither a time nor weekdays"
