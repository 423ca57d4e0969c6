"""Policies and actions to measure with: like what companies write, seeded, of any size."""

from __future__ import annotations

import json
import random
import string
from collections.abc import Iterable, Iterator
from typing import Any

from aegis import codec, wire
from aegis.errors import ConfigError, InvalidBody
from aegis_core import Action, Approval, Policy, PolicyRule, RiskLevel

__all__ = [
    "actions",
    "actions_for",
    "as_text",
    "body",
    "filled",
    "fresh",
    "padding",
    "policy",
    "read_actions",
]

Question = wire.Question

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


def actions(count: int, rules: int, *, seed: int = 2, length: int = 0) -> list[Question]:
    """Distinct actions for `policy`; about two thirds of them are near some rule's patterns.

    Args:
        count: How many.
        rules: How many the policy has.
        seed: Of the random numbers.
        length: Of type and target together, at least. What is missing is put inside the target,
            behind its literal head and before its tail, where the patterns have their `*`: the same
            rules match.
    """
    pick = random.Random(seed)
    pads = random.Random(seed + 1)
    pairs: dict[tuple[str, str], None] = {}
    while len(pairs) < count:
        system, verb, zone = pick.choice(SYSTEMS), pick.choice(VERBS), pick.choice(ZONES)
        index = pick.randrange(max(1, rules))
        kind = pick.choice(
            (f"{system}{index % 97}.{verb}", f"{verb}_{system}", f"x.{system}{index % 97}_{verb}")
        )
        head, tail = pick.choice(
            (
                (f"{zone}-{system}-{index}/", f"{pick.randrange(10**6)}"),
                (f"{zone}-{system}-", f"{pick.randrange(10**6)}"),
                ("host", f"{pick.randrange(10**6)}.{index}.{zone}"),
            )
        )
        missing = length - len(kind) - len(head) - len(tail)
        pad = padding(missing, pads) if missing > 0 else ""
        pairs[kind, f"{head}{pad}{tail}"] = None
    return [(kind, target, "", None) for kind, target in pairs]


def fresh(questions: list[Question]) -> list[Question]:
    """The same questions as new objects, whose hashes are not known yet, as from a request."""
    return [
        (kind, target, agent, params)
        for kind, target, agent, params in codec.loads(codec.dumps(questions), 1_000)
    ]


def padding(count: int, pick: random.Random) -> str:
    """Text of `count` characters with nothing in it that a pattern looks for."""
    start = pick.randrange(len(_PADDING) // 2)
    return _PADDING[start : start + count]


def _padding() -> str:
    return "".join(random.Random(6).choices(f"{string.ascii_letters}{string.digits}/._", k=65_536))


_PADDING = _padding()


def filled(pattern: str, pick: random.Random) -> str:
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
        kind = filled(rule.match_type, pick) if pick.random() < 0.9 else f"unknown_{index}"
        target = filled(rule.match_target, pick)
        key = (kind or "x", target, filled(rule.match_agent, pick))
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
            read.append(wire.action(codec.loads(line, 64)))
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
