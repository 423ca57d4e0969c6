"""What a decision costs: alone, in batches, beside a dict of ready answers."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable, Sequence
from time import perf_counter, perf_counter_ns
from typing import Any, TypeAlias

from aegis.bench import workload
from aegis.bench.measure import figures, quiet, ratio, turns
from aegis.policy.conditions import compiler
from aegis.wire import Question
from aegis_core import Action, Engine, Evaluator, Policy, compile_policy

__all__ = ["BATCH", "Ask", "batches", "compiled", "engine", "singles", "timed"]

BATCH = 1_000
LEAST = 5
COMPILES = 3
MANY_RULES = 50_000

# Each turn is short, and about as long for all: else a slow moment of the machine would fall on
# those that take long, and a fast one would hardly be missed by them.
TURN_NS = 3_000_000

Ask: TypeAlias = Callable[[list[Any]], object]
"""Decides about actions."""


class _Compiled(Evaluator):
    """What `aegis.Policy` inherits its `evaluate` from, without its rules."""

    def __init__(self, made: Engine) -> None:
        self._made = made

    @property
    def engine(self) -> Engine:
        return self._made


def compiled(policy: Policy) -> Engine:
    """A policy, compiled with its conditions."""
    return compile_policy(policy, condition=compiler())


def singles(made: Engine) -> Ask:
    """Ask one by one."""

    def ask(asked: list[Question]) -> None:
        evaluate = made.evaluate
        for kind, target, agent, params in asked:
            evaluate(kind, target, agent, params)

    return ask


def batches(made: Engine) -> Ask:
    """Ask a thousand in a call."""

    def ask(asked: list[Question]) -> None:
        for first in range(0, len(asked), BATCH):
            made.evaluate_many(asked[first : first + BATCH])

    return ask


def one_by_one(policy: Evaluator) -> Ask:
    """Ask the public API, action by action."""

    def ask(asked: list[Action]) -> None:
        evaluate = policy.evaluate
        for action in asked:
            evaluate(action)

    return ask


def many(policy: Evaluator) -> Ask:
    """Ask the public API about a thousand actions in a call."""

    def ask(asked: list[Action]) -> None:
        for first in range(0, len(asked), BATCH):
            policy.evaluate_many(asked[first : first + BATCH])

    return ask


def constructing(policy: Evaluator) -> Ask:
    """Construct each action, and ask the public API about it."""

    def ask(asked: list[Question]) -> None:
        evaluate = policy.evaluate
        for kind, target, agent, params in asked:
            evaluate(Action(kind, target, params or {}, agent_id=agent))

    return ask


def fresh_actions(questions: list[Question]) -> list[Action]:
    """New actions, of new strings."""
    return [
        Action(kind, target, params or {}, agent_id=agent)
        for kind, target, agent, params in workload.fresh(questions)
    ]


def timed(
    ask: Ask,
    questions: list[Question],
    fresh: Callable[[list[Question]], list[Any]] = workload.fresh,
) -> Callable[[], float]:
    """A contestant that asks new objects of as many of the questions as fit into a turn.

    Args:
        ask: Asks.
        questions: What it asks about.
        fresh: Makes new objects of them, which is not measured.

    Returns:
        What measures itself once: nanoseconds a decision.
    """
    count, took_ns = 1, 0
    while took_ns < TURN_NS / 8 and count < len(questions):
        count = min(2 * count, len(questions))
        asked = fresh(questions[:count])
        begun = perf_counter_ns()
        ask(asked)
        took_ns = perf_counter_ns() - begun
    fitting = max(LEAST, int(TURN_NS * count / max(1, took_ns)))

    def once() -> float:
        asked = fresh(questions[:fitting])
        with quiet():
            begun = perf_counter_ns()
            ask(asked)
            return (perf_counter_ns() - begun) / len(asked)

    return once


def engine(
    policy: Policy,
    questions: list[Question],
    *,
    others: Sequence[Question] = (),
    rounds: int = 15,
    tick: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """What a decision costs, alone and in batches, beside a dict of ready answers.

    `single` and `batch` ask the engine, `policy` and `policy_batch` the public API about actions
    that are there; `constructed` makes each action first.

    The dict has as many entries as the policy has rules, each under the tuple of a type and a
    target: those of the first distinct questions, then of `others`. Where there are fewer rules
    than questions the rest of these are not in it, which costs it less than finding them. Its keys
    are other objects than the strings that are asked, as they would be. They were made in the order
    in which they are asked for, so that its memory is read in order: the best that a dict can meet,
    while the rules are met in no order.

    Args:
        policy: What decides.
        questions: Distinct actions; each round asks them as new objects.
        others: Further actions that are ready in the dict, and are not asked.
        rounds: How often.
        tick: Called after each round.

    Returns:
        Nanoseconds a decision, ratios, milliseconds to compile.
    """
    made, compile_ms = _compiled(policy)
    pairs = dict.fromkeys(question[:2] for question in (*questions, *others))
    answers = {pair: made.evaluate(*pair) for pair in itertools.islice(pairs, len(policy.rules))}

    public = _Compiled(made)

    def looked_up(asked: list[Question]) -> None:
        answer = answers.get
        for kind, target, _, _ in asked:
            answer((kind, target))

    found = turns(
        {
            "dict": timed(looked_up, questions),
            "single": timed(singles(made), questions),
            "batch": timed(batches(made), questions),
            "policy": timed(one_by_one(public), questions, fresh_actions),
            "policy_batch": timed(many(public), questions, fresh_actions),
            "constructed": timed(constructing(public), questions),
        },
        rounds,
        tick,
    )
    return {
        "rules": len(policy.rules),
        "actions": len(questions),
        "dict_entries": len(answers),
        "compile_ms": figures(compile_ms),
        "image_bytes": made.image_bytes,
        **{f"{name}_ns": figures(values) for name, values in found.items()},
        "ratios": {
            "single over dict": ratio(found["single"], found["dict"]),
            "batch over dict": ratio(found["batch"], found["dict"]),
            "batch over single": ratio(found["batch"], found["single"]),
            "policy over single": ratio(found["policy"], found["single"]),
            "policy over dict": ratio(found["policy"], found["dict"]),
            "policy batch over policy": ratio(found["policy_batch"], found["policy"]),
            "constructed and decided over dict": ratio(found["constructed"], found["dict"]),
        },
    }


def _compiled(policy: Policy) -> tuple[Engine, list[float]]:
    """A policy, compiled several times, and the milliseconds of each."""
    took_ms: list[float] = []
    while True:
        gc.collect()
        begun = perf_counter()
        made = compiled(policy)
        took_ms.append((perf_counter() - begun) * 1_000)
        if len(policy.rules) > MANY_RULES or len(took_ms) == COMPILES:
            return made, took_ms
