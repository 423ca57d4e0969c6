"""The policies that are shipped: `policy.yaml`, `examples/`, and what is expected of them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from aegis import codec
from aegis.conditions import CONDITIONS, compile_conditions
from aegis.policies import LoadedPolicy, load_text
from aegis_core import Decision, compile_policy, reference

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "examples").glob("*/expected.yaml"))
FIELDS = [file.parent.name for file in FILES]
MOMENTS = [
    datetime(2026, 11, day, hour, 30, tzinfo=UTC).timestamp()
    for day in range(23, 30)
    for hour in range(0, 24, 4)
]


@dataclass(frozen=True)
class Case:
    """An action, and the decision that is expected.

    Attributes:
        action: As a client sends it.
        expected: `<approval> <risk level> <rule>`.
        at: When, in seconds since the epoch; None: whenever.
    """

    action: dict[str, Any]
    expected: str
    at: float | None


@cache
def expected_of(field: str) -> tuple[LoadedPolicy, list[Case]]:
    """A field's policy, and what is expected of it."""
    path = ROOT / "examples" / field / "expected.yaml"
    written = yaml.safe_load(path.read_text(encoding="utf-8"))
    loaded = load_text((path.parent / written["policy"]).read_bytes())
    cases = [
        Case(
            case.pop("action"),
            case.pop("is"),
            datetime.fromisoformat(case.pop("at")).timestamp() if "at" in case else None,
        )
        for case in written["cases"]
    ]
    assert not any(written["cases"]), "a case has a member that is not known"
    return loaded, cases


CASES = [(field, case) for field in FIELDS for case in expected_of(field)[1]]


def said(decision: Decision) -> str:
    return f"{decision.approval.value} {decision.risk_level.name} {decision.matched_rule}"


def test_there_are_examples_of_five_fields() -> None:
    assert FIELDS == ["cloud", "company", "hospital", "support", "trading"]


@pytest.mark.parametrize("field", FIELDS)
def test_policy_has_no_warnings(field: str) -> None:
    assert expected_of(field)[0].warnings == ()


@pytest.mark.parametrize("field", FIELDS)
def test_policy_blocks_what_it_does_not_name(field: str) -> None:
    assert expected_of(field)[0].policy.default_approval.value == "block"


@pytest.mark.parametrize("field", FIELDS)
def test_each_rule_is_met_by_a_case(field: str) -> None:
    loaded, cases = expected_of(field)
    met = {case.expected.split()[2] for case in cases}
    assert {rule.name for rule in loaded.policy.rules} - met == set()


def test_policy_of_the_company_has_conditions_of_every_kind() -> None:
    rules = expected_of("company")[0].policy.rules
    assert {name for rule in rules for name in rule.conditions} == CONDITIONS
    assert len(rules) >= 25


@pytest.mark.parametrize(
    ("field", "case"), CASES, ids=[f"{field}-{case.action['action_type']}" for field, case in CASES]
)
def test_decision_is_the_expected_one_at_any_moment_that_it_is_expected_at(
    field: str, case: Case
) -> None:
    policy = expected_of(field)[0].policy
    question = codec.question(case.action)
    for now in MOMENTS if case.at is None else [case.at]:
        engine = compile_policy(policy, condition=compile_conditions, clock=lambda now=now: now)  # type: ignore[misc]
        assert said(engine.evaluate(*question)) == case.expected
        traced = reference.evaluate(policy, *question, condition=compile_conditions, now=now)
        assert said(traced) == case.expected
