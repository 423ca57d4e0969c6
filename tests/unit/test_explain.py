"""Explanations: who decided, what the conditions saw, what came near."""

from __future__ import annotations

from datetime import datetime

import pytest

from aegis.errors import Defect
from aegis.policy.conditions import compile_conditions
from aegis.policy.explain import ConditionSeen, Explanation, explain
from aegis.policy.loader import load_text
from aegis_core import Action, Approval, compile_policy

MONDAY_10_UTC = 1_795_428_000.0  # 2026-11-23T10:00:00Z

POLICY = """\
rules:
  - name: no_deletes
    match: {type: "delete*", target: "prod-*"}
    approval: block
  - name: office
    match: {type: update, agent: "sales-*"}
    conditions:
      weekdays: [1, 2]
      time_after: "11:00"
      time_before: "12:00"
      timezone: Europe/Berlin
    approval: auto
  - name: payments
    match: {type: pay}
    conditions:
      param_lte: {amount: 100}
      param_eq: {currency: EUR, secret_token: x}
    approval: approve
  - {name: reads, match: {type: "read*"}, approval: auto}
"""


def explained(action: Action, now: float = MONDAY_10_UTC, policy: str = POLICY) -> Explanation:
    return explain(load_text(policy), action, now)


def nearest(explanation: Explanation) -> list[str]:
    return [seen.rule.name for seen in explanation.nearest]


def test_decider_is_named_with_its_line() -> None:
    decider = explained(Action("delete_row", "prod-db")).decider
    assert decider is not None
    assert (decider.rule.name, decider.line, decider.mismatch) == ("no_deletes", 2, None)


def test_without_a_matching_rule_nobody_is_the_decider() -> None:
    explanation = explained(Action("write"))
    assert (explanation.decider, explanation.decision.matched_rule) == (None, "<default>")
    assert explanation.passed_over == 4


def test_rule_of_a_policy_without_a_text_has_no_line() -> None:
    loaded = load_text(POLICY)
    bare = type(loaded)(loaded.policy, loaded.source)
    decider = explain(bare, Action("read"), 0).decider
    assert decider is not None
    assert decider.line is None


def test_conditions_tell_what_they_saw() -> None:
    decider = explained(Action("update", agent_id="sales-1")).decider
    assert decider is not None
    assert decider.conditions == (
        ConditionSeen("time_after time_before", "11:00 to 12:00", "11:00 Europe/Berlin", True),
        ConditionSeen("weekdays", [1, 2], 1, True),
    )


def test_conditions_are_judged_at_the_moment_that_is_asked_for() -> None:
    explanation = explained(Action("update", agent_id="sales-1"), MONDAY_10_UTC + 3600)
    assert explanation.decider is None
    window, weekdays = explanation.nearest[0].conditions
    assert (window.held, window.seen, weekdays.held) == (False, "12:00 Europe/Berlin", True)


def test_missing_parameter_is_seen_as_none() -> None:
    explanation = explained(Action("pay", params={"amount": 5}))
    assert [(seen.name, seen.seen, seen.held) for seen in explanation.nearest[0].conditions] == [
        ("param_lte.amount", 5, True),
        ("param_eq.currency", None, False),
        ("param_eq.secret_token", None, False),
    ]


def test_secrets_are_not_shown() -> None:
    explanation = explained(Action("pay", params={"secret_token": "hush"}))
    assert explanation.nearest[0].conditions[2].seen == "[REDACTED]"
    assert "hush" not in repr(explanation)


def test_condition_that_cannot_be_judged_says_why() -> None:
    params = {"amount": "1", "currency": "EUR", "secret_token": "x"}
    explanation = explained(Action("pay", params=params))
    assert explanation.decision.approval is Approval.BLOCK
    assert explanation.decider is not None
    assert explanation.decider.conditions[0].held == (
        "`param_lte.amount`: text cannot be compared with a number"
    )


@pytest.mark.parametrize(
    ("action", "names"),
    [
        (Action("pay"), "payments"),
        (Action("update", agent_id="hr-1"), "office"),
        (Action("delete", "dev"), "no_deletes"),
        (Action("raed"), "reads"),
        (Action("delte", "prod-db"), "no_deletes"),
    ],
)
def test_nearest_is_the_rule_that_got_furthest(action: Action, names: str) -> None:
    assert nearest(explained(action))[0] == names


def test_mismatch_names_the_pattern_and_the_value() -> None:
    seen = explained(Action("update", agent_id="hr-1")).nearest[0]
    assert (seen.mismatch, seen.pattern, seen.value) == ("agent", "sales-*", "hr-1")


def test_nearest_are_few_and_the_rest_is_counted() -> None:
    rules = "".join(f"  - {{name: r{n}, match: {{type: x, target: t{n}}}}}\n" for n in range(30))
    explanation = explained(Action("x"), policy=f"rules:\n{rules}")
    assert nearest(explanation) == ["r0", "r1", "r2", "r3", "r4"]
    assert explanation.passed_over == 30


def test_engine_that_decides_otherwise_is_a_defect() -> None:
    other = load_text(POLICY.replace("approval: block", "approval: auto")).policy
    engine = compile_policy(other, condition=compile_conditions)
    with pytest.raises(Defect, match="the engine decides auto MEDIUM by `no_deletes`") as found:
        explain(load_text(POLICY), Action("delete", "prod-db"), 0, engine=engine)
    assert found.value.exit_code == 70


FRIDAY_NIGHT = """\
rules:
  - name: hit
    conditions: {weekdays: [5], time_after: "22:00", time_before: "06:00"}
    approval: auto
"""


@pytest.mark.parametrize(
    ("moment", "holds"),
    [
        ("2026-01-29T23:00", False),  # Thursday
        ("2026-01-30T00:00", True),
        ("2026-01-30T05:59", True),
        ("2026-01-30T06:00", False),
        ("2026-01-30T22:00", True),
        ("2026-01-30T23:59", True),
        ("2026-01-31T01:00", False),  # Saturday
    ],
)
def test_weekday_of_a_window_over_midnight_is_that_of_the_moment(moment: str, holds: bool) -> None:
    now = datetime.fromisoformat(f"{moment}+00:00").timestamp()
    explanation = explained(Action("x"), now, FRIDAY_NIGHT)  # engine and reference agree
    assert explanation.decision.matched_rule == ("hit" if holds else "<default>")
    seen = explanation.decider or explanation.nearest[0]
    assert all(condition.held is True for condition in seen.conditions) is holds
