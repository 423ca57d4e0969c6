"""Policies and actions to measure with: like what companies write, seeded, of any size."""

from __future__ import annotations

import random

import orjson

from aegis_core import Approval, Policy, PolicyRule, RiskLevel

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


def actions(count: int, rules: int, *, seed: int = 2) -> list[tuple[str, str]]:
    """Distinct (type, target) pairs; about two thirds of them are near some rule's patterns."""
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
    return list(pairs)


def fresh(pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The same pairs as new string objects, whose hashes are not known yet, as from a request."""
    return [(kind, target) for kind, target in orjson.loads(orjson.dumps(pairs))]
