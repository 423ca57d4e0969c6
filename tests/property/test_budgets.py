"""A request's work is counted: the engine and the reference stop at the same rule, pauses or not."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis.policy.comparisons import json_equal
from aegis.policy.conditions import compile_conditions, compiler
from aegis_core import Approval, Decision, Policy, PolicyRule, RiskLevel, Work, reference
from aegis_core.engine import Batch, Engine, compile_policy

NOW = 1_700_000_000.0

leaves: st.SearchStrategy[Any] = (
    st.booleans()
    | st.sampled_from([0, 1, 2, 1.0, -0.0, 0.5, 2**53, 2.0**53, 2**70, 1e21, "", "1", "a", "ab" * 50])
)  # fmt: skip
values: st.SearchStrategy[Any] = st.recursive(
    st.none() | leaves,
    lambda inner: (
        st.lists(inner, max_size=6) | st.dictionaries(st.sampled_from("ab1"), inner, max_size=3)
    ),
    max_leaves=12,
)
names = st.sampled_from("pqr")
conditions: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {},
    optional={
        "param_eq": st.dictionaries(names, values.filter(lambda value: value is not None)),
        "param_gt": st.dictionaries(names, st.sampled_from([0, 1.5, "a", "b" * 200])),
        "param_contains": st.dictionaries(names, values.filter(lambda value: value is not None)),
        "param_matches": st.dictionaries(names, st.sampled_from(["a", "(ab)+$", "^1", "x{20}"])),
        "time_after": st.sampled_from(["00:00", "23:59"]),
    },
)
rules = st.builds(
    PolicyRule,
    match_type=st.sampled_from(["*", "a*", "ab"]),
    approval=st.sampled_from(Approval),
    risk_level=st.sampled_from(RiskLevel),
    conditions=conditions,
)
rows = st.tuples(
    st.sampled_from(["a", "ab", "b"]), st.just(""), st.just(""), st.dictionaries(names, values)
)


def policy_of(written: list[PolicyRule]) -> Policy:
    return Policy(
        tuple(
            PolicyRule(
                rule.match_type,
                approval=rule.approval,
                risk_level=rule.risk_level,
                name=f"rule_{index}",
                conditions=rule.conditions,
            )
            for index, rule in enumerate(written)
        )
    )


def decided(batch: Batch[list[Decision]], units: list[int]) -> list[Decision]:
    """What a batch decides with pauses before actions that take more than these units."""
    pauses = iter(units)
    while not batch.proceed(0.0, next(pauses, -1)):
        pass
    return batch.result


def expected(policy: Policy, actions: list[Any], budget: int) -> list[Decision]:
    work = Work(budget)
    return [
        reference.evaluate(policy, *row, condition=compile_conditions, now=NOW, work=work)
        for row in actions
    ]


@given(
    st.lists(rules, max_size=6),
    st.lists(rows, max_size=6),
    st.integers(0, 300),
    st.lists(st.integers(0, 60), max_size=6),
)
def test_engine_spends_a_budget_as_the_reference_does(
    written: list[PolicyRule], actions: list[Any], budget: int, pauses: list[int]
) -> None:
    policy = policy_of(written)
    engine = compile_policy(policy, condition=compiler(), clock=lambda: NOW)
    wanted = expected(policy, actions, budget)
    assert decided(engine.begin(actions, Work(budget)), pauses) == wanted


@given(st.lists(rules, max_size=6), st.lists(rows, max_size=6), st.integers(0, 300))
def test_nothing_that_a_smaller_budget_decides_otherwise_is_allowed(
    written: list[PolicyRule], actions: list[Any], budget: int
) -> None:
    policy = policy_of(written)
    engine = compile_policy(policy, condition=compiler(), clock=lambda: NOW)
    for row, whole in zip(actions, engine.evaluate_many(actions), strict=True):
        [some] = decided(engine.begin([row], Work(budget)), [])
        if some != whole:
            assert some.error is not None
            assert (some.is_allowed, some.risk_level) == (False, RiskLevel.CRITICAL)


class Forgetful:
    """An engine that gives each action of a batch the whole budget: it must be caught."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def decide(self, actions: list[Any], budget: int) -> list[Decision]:
        return [decided(self.engine.begin([row], Work(budget)), [])[0] for row in actions]


def test_engine_that_gives_each_action_a_budget_is_caught() -> None:
    policy = policy_of([PolicyRule(conditions={"param_eq": {"p": 1}})] * 3)
    engine = compile_policy(policy, condition=compiler(), clock=lambda: NOW)
    actions: list[Any] = [("a", "", "", {"p": 2})] * 3
    assert Forgetful(engine).decide(actions, 5) != expected(policy, actions, 5)


@given(st.lists(values, max_size=8), values.filter(lambda value: value is not None))
def test_member_of_a_list_is_what_json_says_is_equal(listed: list[Any], wanted: Any) -> None:
    holds = compile_conditions({"param_contains": {"p": wanted}})
    assert holds is not None
    found = any(json_equal(member, wanted) for member in listed)
    assert holds({"p": listed}, NOW, Work()) is found


@pytest.mark.parametrize("size", [10, 1_000])
def test_list_is_looked_at_once_for_all_rules(size: int) -> None:
    policy = policy_of([PolicyRule(conditions={"param_contains": {"p": "x"}})] * 20)
    engine = compile_policy(policy, condition=compiler(), clock=lambda: NOW)
    work = Work()
    decided(engine.begin([("a", "", "", {"p": ["y"] * size})], work), [])
    assert work.budget - work.left == 20 + 2 * size
