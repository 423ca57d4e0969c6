"""A request's budget: what conditions cost, and what comes of it where it is spent."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

import pytest

from aegis.policy.conditions import compile_conditions, compiler
from aegis.policy.explain import explain
from aegis.policy.loader import load_document
from aegis_core import (
    DEFAULT_BUDGET,
    Action,
    Approval,
    Decision,
    Engine,
    Policy,
    PolicyRule,
    RiskLevel,
    Work,
    compile_policy,
)

SPENT = "the request's budget of 10 units for conditions is spent"


def engine_of(*conditions: Mapping[str, Any]) -> Engine:
    rules = tuple(
        PolicyRule(name=f"r{index}", approval=Approval.AUTO, conditions=written)
        for index, written in enumerate(conditions)
    )
    return compile_policy(Policy(rules), condition=compiler())


def decided(engine: Engine, params: dict[str, Any], budget: int = DEFAULT_BUDGET) -> Decision:
    batch = engine.begin([("a", "", "", params)], Work(budget))
    assert batch.proceed(60.0)
    return batch.result[0]


def spent(written: Mapping[str, Any], params: dict[str, Any]) -> int:
    """The units that a condition takes besides its rule's."""
    work = Work()
    holds = compile_conditions(written)
    assert holds is not None
    holds(params, 0.0, work)
    return work.budget - work.left


def test_rule_that_the_budget_does_not_suffice_for_blocks_and_says_so() -> None:
    engine = engine_of(*[{"param_gt": {"n": 5}}] * 11)
    decision = decided(engine, {"n": 1}, budget=10)
    assert decision == Decision("r10", RiskLevel.CRITICAL, Approval.BLOCK, SPENT)
    assert decided(engine, {"n": 1}, budget=11).matched_rule == "<default>"


def test_budget_is_that_of_a_whole_batch() -> None:
    engine = engine_of(*[{"param_gt": {"n": 5}}] * 4)
    batch = engine.begin([("a", "", "", {"n": 1})] * 4, Work(10))
    assert batch.proceed(60.0)
    assert [decision.matched_rule for decision in batch.result] == [
        "<default>", "<default>", "r2", "r0",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("written", "value", "units"),
    [
        ({"param_gt": {"p": 1}}, 5, 0),
        ({"param_eq": {"p": "a" * 640}}, "a", 10),
        ({"param_eq": {"p": [1, [2, 3]]}}, [1], 16),
        ({"param_contains": {"p": "b"}}, "a" * 800, 100),
        ({"param_contains": {"p": "b"}}, ["a"] * 800, 1_600),
        ({"param_contains": {"p": "b"}}, {"a": 1}, 0),
        ({"param_contains": {"p": [1]}}, [[1, 2]] * 10, 104),
        ({"param_gt": {"p": 1}, "param_lt": {"p": 9}}, 5, 1),
    ],
)
def test_work_is_counted(written: dict[str, Any], value: Any, units: int) -> None:
    assert spent(written, {"p": value}) == units


def test_search_costs_by_the_text_and_the_expression() -> None:
    cost = {
        (size, length): spent({"param_matches": {"p": f"a{{{size}}}"}}, {"p": "b" * length})
        for size in (10, 500)
        for length in (0, 1_000)
    }
    assert cost[10, 0] == cost[500, 0] < cost[10, 1_000] < cost[500, 1_000] / 10


def test_what_plainly_fails_is_asked_before_what_costs() -> None:
    text = {"p": "x" * 60_000, "kind": "other"}
    written = {"param_matches": {"p": "a[ab]{900}c"}, "param_eq": {"kind": "mail"}}
    assert spent(written, text) == 1
    assert decided(engine_of(written), text, budget=2).matched_rule == "<default>"


def test_what_is_not_afforded_is_not_charged() -> None:
    engine = engine_of({"param_matches": {"long": "a"}}, {"param_gt": {"n": 0}})
    long = ("a", "", "", {"long": "x" * 60_000})
    batch = engine.begin([long, ("a", "", "", {"n": 1})], Work(1_000))
    assert batch.proceed(60.0)
    assert [decision.is_allowed for decision in batch.result] == [False, True]


HOSTILE: list[tuple[list[dict[str, Any]], dict[str, Any]]] = [
    (
        [{"param_contains": {"p": f"x{index}"}} for index in range(200)],
        {"p": [str(index % 1_000) for index in range(200_000)]},
    ),
    (
        [{"param_contains": {"p": 2**70 + index}} for index in range(20)],
        {"p": [index * (2**61 - 1) + 2**64 for index in range(50_000)]},
    ),
    (
        [{"param_matches": {f"p{index}": "a[ab]{900}c"}} for index in range(16)],
        {f"p{index}": "ab" * 32_000 for index in range(16)},
    ),
    (
        [{"param_contains": {"p": "a" * 99 + str(index)}} for index in range(500)],
        {"p": "a" * 1_000_000},
    ),
    ([{"param_eq": {"p": [[]] * 50_000}}] * 40, {"p": [[]] * 49_999 + [[0]]}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("conditions", "params"), HOSTILE)
def test_hostile_request_takes_a_bounded_time(
    conditions: list[dict[str, Any]], params: dict[str, Any]
) -> None:
    engine = engine_of(*conditions)
    began = time.process_time()
    decision = decided(engine, params)
    assert time.process_time() - began < 2.0  # a few tenths; some took minutes
    assert decision.matched_rule == "<default>" or "budget" in str(decision.error)


def test_explanation_and_engine_agree_where_the_budget_is_spent() -> None:
    rules = [{"conditions": {"param_gt": {"n": 5}}}] * 11
    explanation = explain(
        load_document({"rules": rules}), Action("a", params={"n": 1}), 0, budget=10
    )
    assert explanation.decision.error == SPENT


def test_single_action_that_takes_more_than_it_may_is_left_to_be_decided_with_care() -> None:
    engine = engine_of(*[{"param_gt": {"n": 5}}] * 3)
    asked = {"action_type": "a", "params": {"n": 1}}
    assert engine.evaluate_object_json(asked, budget=2) is None
    assert (
        json.loads(engine.evaluate_object_json(asked, budget=3) or b"")["matched_rule"]
        == "<default>"
    )


def test_batch_pauses_and_goes_on_where_it_was() -> None:
    engine = engine_of(*[{"param_gt": {"n": 5}}] * 200)
    rows = [("a", str(index), "", {"n": index % 9}) for index in range(100)]
    batch, pauses = engine.begin_json(rows, Work()), 0
    while not batch.proceed(0.0):
        pauses += 1
    assert pauses > 2
    assert batch.result == engine.evaluate_many_json(rows)


def test_batch_pauses_before_an_action_that_takes_long() -> None:
    engine = engine_of({"param_contains": {"l": "x"}})
    rows = [("a", "", "", {"l": ["y"] * size}) for size in (1, 1_000, 1)]
    batch = engine.begin(rows, Work())
    assert not batch.proceed(60.0, 100)
    assert not batch.proceed(60.0, 100)
    assert batch.proceed(60.0)
    assert batch.result == engine.evaluate_many(rows)


def test_objects_that_are_no_plain_actions_are_said_to_be_odd() -> None:
    batch = engine_of().begin_objects_json([{"action_type": "a"}, {"type": "a"}])
    assert batch.proceed(60.0)
    assert batch.result is None
