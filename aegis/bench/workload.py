"""Policies and actions to measure with: like what companies write, seeded, of any size."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from aegis import codec
from aegis.errors import ConfigError, InvalidBody
from aegis_core import Action, Approval, Policy, PolicyRule, RiskLevel

__all__ = [
    "SHAPES",
    "actions",
    "actions_for",
    "adversarial",
    "as_text",
    "body",
    "fresh",
    "policy",
    "read_actions",
]

Question = codec.Question

VERBS = (
    "read",
    "list",
    "create",
    "update",
    "delete",
    "send",
    "export",
    "deploy",
    "refund",
    "grant",
)
SYSTEMS = ("crm", "mail", "billing", "repo", "warehouse", "browser", "calendar", "vault", "tickets")
ZONES = ("prod", "staging", "dev", "eu", "us")


def policy(count: int, *, seed: int = 1) -> Policy:
    """A policy of `count` rules with exact, prefix, suffix and infix patterns on type and target."""
    pick = random.Random(seed)
    rules = [_rule(pick, index) for index in range(count)]
    return Policy(tuple(rules))


def _rule(pick: random.Random, index: int) -> PolicyRule:
    system, verb, zone = pick.choice(SYSTEMS), pick.choice(VERBS), pick.choice(ZONES)
    name = f"{system}{index % 97}"
    match_type = pick.choices(
        (f"{name}.{verb}", f"{name}.{verb}*", f"{name}.*", f"*.{name}_{verb}", f"{verb}*", "*"),
        (30, 25, 20, 10, 10, 5),
    )[0]
    place = f"{zone}-{system}-{index}"
    match_target = pick.choices(
        (place, f"{place}/*", f"*.{index}.{zone}", f"{zone}*{index}", f"{zone}-*"),
        (25, 40, 15, 10, 10) if not match_type.startswith(name) else (10, 35, 10, 5, 40),
    )[0]
    return PolicyRule(
        match_type,
        match_target,
        risk_level=pick.choice(list(RiskLevel)),
        approval=pick.choice(list(Approval)),
        name=f"rule_{index}",
    )


def actions(count: int, rules: int, *, seed: int = 2) -> list[Question]:
    """Distinct actions for `policy`; about two thirds of them are near some rule's patterns."""
    pick = random.Random(seed)
    pairs: dict[tuple[str, str], None] = {}
    while len(pairs) < count:
        system, verb, zone = pick.choice(SYSTEMS), pick.choice(VERBS), pick.choice(ZONES)
        index = pick.randrange(max(1, rules))
        kind = pick.choice(
            (f"{system}{index % 97}.{verb}", f"{verb}_{system}", f"x.{system}{index % 97}_{verb}")
        )
        target = pick.choice(
            (
                f"{zone}-{system}-{index}/{pick.randrange(10**6)}",
                f"{zone}-{system}-{pick.randrange(10**6)}",
                f"host{pick.randrange(10**6)}.{index}.{zone}",
            )
        )
        pairs[kind, target] = None
    return [(kind, target, "", None) for kind, target in pairs]


def fresh(questions: list[Question]) -> list[Question]:
    """The same questions as new objects, whose hashes are not known yet, as from a request."""
    return [
        (kind, target, agent, params)
        for kind, target, agent, params in codec.loads(codec.dumps(questions), 1_000)
    ]


# --- shapes that are hard ------------------------------------------------------------------------


def _nested_prefixes(index: int) -> tuple[str, str]:
    return "a" * (1 + index % 500) + "*", f"t{index}*"


def _long_shared_prefix(index: int) -> tuple[str, str]:
    return f"{'organisation.department.team.system.'}{index}.*", "*"


def _infixes(index: int) -> tuple[str, str]:
    return f"*{index:05}*x*", "*"


def _single_characters(index: int) -> tuple[str, str]:
    return f"?{index:05}?", "*"


def _sets(index: int) -> tuple[str, str]:
    return f"[a-m]{index:05}[!x]", "*"


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
"""Policies that a trie has trouble with: the patterns of the rule at an index."""


def adversarial(shape: str, count: int) -> tuple[Policy, list[Question]]:
    """A policy of one shape, and distinct actions of which about half match late in it."""
    patterns = [SHAPES[shape](index) for index in range(count)]
    rules = [
        PolicyRule(kind, target, name=f"rule_{index}")
        for index, (kind, target) in enumerate(patterns)
    ]
    pick = random.Random(3)
    asked: dict[tuple[str, str], None] = {}
    while len(asked) < ACTIONS_OF_A_SHAPE:
        kind, target = pick.choice(patterns[len(patterns) // 2 :])
        asked[_filled(kind, pick), _filled(target, pick)] = None
        asked[_filled(kind, pick) + "~", f"{pick.random()}"] = None
    return Policy(tuple(rules)), [(kind, target, "", None) for kind, target in asked]


ACTIONS_OF_A_SHAPE = 2_000


def _filled(pattern: str, pick: random.Random) -> str:
    """A text that matches a pattern of this module, or of a policy, in most cases."""
    made, index = [], 0
    while index < len(pattern):
        letter = pattern[index]
        end = pattern.find("]", index + 2)
        if letter == "*":
            made.append(f"{pick.randrange(10**6)}")
        elif letter == "?":
            made.append(pick.choice("abcxyz"))
        elif letter == "[" and end > 0:
            inside = pattern[index + 1 : end]
            made.append("q" if inside.startswith("!") else inside[0])
            index = end
        else:
            made.append(letter)
        index += 1
    return "".join(made)


# --- a policy of one's own -----------------------------------------------------------------------


def actions_for(of: Policy, count: int, *, seed: int = 4) -> list[Question]:
    """Distinct actions near a policy's own patterns, with parameters near its conditions.

    Args:
        of: The policy.
        count: How many.
        seed: Of the random numbers.
    """
    pick = random.Random(seed)
    rules = of.rules or (PolicyRule(),)
    made: dict[tuple[str, str, str], dict[str, Any] | None] = {}
    for index in range(count):
        rule = pick.choice(rules)
        kind = _filled(rule.match_type, pick) if pick.random() < 0.9 else f"unknown_{index}"
        target = _filled(rule.match_target, pick)
        key = (kind or "x", target, _filled(rule.match_agent, pick))
        if key in made:
            key = (key[0], f"{target}~{index}", key[2])
        made[key] = dict(_params_near(rule, pick)) or None
    return [(*key, params) for key, params in made.items()]


def _params_near(rule: PolicyRule, pick: random.Random) -> Iterator[tuple[str, Any]]:
    for name, wanted in rule.conditions.items():
        if not name.startswith("param_") or pick.random() < 0.1:
            continue
        for parameter, value in wanted.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                yield parameter, value + pick.choice((-1, 0, 1))
            else:
                yield parameter, [value] if name == "param_contains" else value


def read_actions(lines: Iterable[bytes], name: str) -> list[Action]:
    """Actions of a file with one JSON object a line.

    Raises:
        ConfigError: A line is none, and which; or there is no line.
    """
    read = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            read.append(codec.action(codec.loads(line, 64)))
        except InvalidBody as error:
            raise ConfigError(f"{name}:{number}: {error}") from None
    if not read:
        raise ConfigError(f"{name} has no actions; write one JSON object a line")
    return read


def body(question: Question) -> bytes:
    """A request of one action."""
    kind, target, agent, params = question
    members: dict[str, Any] = {"action_type": kind, "target": target}
    if agent:
        members["agent_id"] = agent
    if params:
        members["params"] = params
    return codec.dumps(members)


def as_text(of: Policy) -> str:
    """A policy as a file has it."""
    rules = [
        {
            "name": rule.name,
            "match": {
                "type": rule.match_type,
                "target": rule.match_target,
                "agent": rule.match_agent,
            },
            "risk_level": rule.risk_level.name,
            "approval": rule.approval.value,
            "conditions": rule.conditions,
        }
        for rule in of.rules
    ]
    return json.dumps({"rules": rules})
