"""The specification keeps the way to its decisions, and stops where the rules say it must."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from aegis_core import (
    DEFAULT_RULE,
    Approval,
    Condition,
    Decision,
    Policy,
    PolicyRule,
    RiskLevel,
    Work,
    reference,
)
from aegis_core.reference import Step, Trace

HELD = PolicyRule(name="held", conditions={"says": True})
FAILED = PolicyRule(name="failed", conditions={"says": False})
UNCLEAR = PolicyRule(name="unclear", conditions={"says": "`count` is no number"})


def says(written: Mapping[str, Any]) -> Condition | None:
    """Compiles `{"says": x}` to a condition that says x."""
    return (lambda params, now, work: written["says"]) if written else None


def traced(*rules: PolicyRule, target: str = "", agent: str = "") -> Trace:
    """The trace of one `read` through these rules."""
    return reference.trace(Policy(rules), "read", target, agent, condition=says, now=0.0)


def test_policy_without_rules_has_a_trace_without_steps() -> None:
    assert traced() == Trace(Decision(DEFAULT_RULE, RiskLevel.MEDIUM, Approval.BLOCK), ())


def test_default_of_the_policy_decides_where_no_rule_matches() -> None:
    policy = Policy((PolicyRule(match_type="write"),), RiskLevel.LOW, Approval.AUTO)
    decision = reference.evaluate(policy, "read", condition=says, now=0.0)
    assert decision == Decision(DEFAULT_RULE, RiskLevel.LOW, Approval.AUTO)


def test_first_matching_rule_decides() -> None:
    assert traced(PolicyRule(name="first"), PolicyRule(name="second")).decision == Decision(
        "first", RiskLevel.MEDIUM, Approval.APPROVE
    )


def test_trace_ends_at_the_deciding_rule() -> None:
    assert traced(FAILED, HELD, PolicyRule(name="behind")).steps == (
        Step(0, None, False),
        Step(1, None, True),
    )


def test_trace_keeps_every_rule_on_the_way_to_the_default() -> None:
    assert traced(PolicyRule(match_type="write"), FAILED).steps == (
        Step(0, "type", None),
        Step(1, None, False),
    )


@pytest.mark.parametrize(
    ("rule", "mismatch"),
    [
        (PolicyRule("write", "b*", "c*"), "type"),
        (PolicyRule("read", "b*", "c*"), "target"),
        (PolicyRule("read", "t*", "c*"), "agent"),
        (PolicyRule("read", "t*", "a*"), None),
    ],
)
def test_step_names_the_first_pattern_that_does_not_match(
    rule: PolicyRule, mismatch: str | None
) -> None:
    assert traced(rule, target="t1", agent="a1").steps[0].mismatch == mismatch


def test_rule_without_conditions_holds() -> None:
    assert traced(PolicyRule()).steps == (Step(0, None, True),)


def test_condition_is_not_asked_where_a_pattern_does_not_match() -> None:
    unasked = PolicyRule("write", conditions={"neither": "asked nor read"})
    assert traced(unasked).steps == (Step(0, "type", None),)


def test_indeterminate_condition_decides_with_a_block() -> None:
    decision = traced(UNCLEAR, PolicyRule(approval=Approval.AUTO)).decision
    assert decision == Decision(
        "unclear", RiskLevel.CRITICAL, Approval.BLOCK, "`count` is no number"
    )


def test_step_of_an_indeterminate_condition_says_why() -> None:
    assert traced(UNCLEAR, PolicyRule()).steps == (Step(0, None, "`count` is no number"),)


def test_raising_condition_is_indeterminate() -> None:
    def raises(params: Mapping[str, Any], now: float, work: Work) -> bool:
        raise LookupError("no such column")

    policy = Policy((PolicyRule(name="broken", conditions={"any": 1}),))
    decision = reference.evaluate(policy, "read", condition=lambda written: raises, now=0.0)
    assert decision == Decision.indeterminate("broken", "the conditions failed: no such column")


def test_condition_gets_the_params_and_the_time() -> None:
    def judges(params: Mapping[str, Any], now: float, work: Work) -> bool:
        return (params, now) == ({"count": 1}, 7.0)

    policy = Policy((PolicyRule(name="judged", conditions={"any": 1}),))
    decision = reference.evaluate(
        policy, "read", params={"count": 1}, condition=lambda written: judges, now=7.0
    )
    assert decision.matched_rule == "judged"


def test_missing_params_are_empty_for_a_condition() -> None:
    policy = Policy((PolicyRule(name="judged", conditions={"any": 1}),))
    decision = reference.evaluate(
        policy, "read", condition=lambda written: lambda params, now, work: params == {}, now=0.0
    )
    assert decision.matched_rule == "judged"


@pytest.mark.parametrize("rules", [(), (HELD,), (FAILED, HELD), (FAILED,), (UNCLEAR, HELD)])
def test_evaluate_says_what_trace_says(rules: tuple[PolicyRule, ...]) -> None:
    evaluated = reference.evaluate(Policy(rules), "read", condition=says, now=0.0)
    assert evaluated == traced(*rules).decision
