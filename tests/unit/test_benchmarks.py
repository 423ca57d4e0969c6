"""The full benchmark: that its workloads are what they are said to be, and its bars."""

from __future__ import annotations

import os
import sys
from itertools import islice
from typing import Any

import pytest

from aegis.bench import deciding, shapes, workload
from aegis.bench.http import running
from aegis.errors import ConfigError
from aegis.server.http.messages import Request, Response
from aegis_core import DEFAULT_RULE
from benchmarks import bars, endless, hard, request
from benchmarks.__main__ import merged

ROUNDS = 2


def lengths(questions: list[workload.Question]) -> list[int]:
    """Of type and target together."""
    return [len(kind) + len(target) for kind, target, _, _ in questions]


@pytest.mark.slow
def test_dict_has_as_many_entries_as_there_are_rules() -> None:
    known = workload.actions(300, 200)
    found = deciding.engine(workload.policy(200), known[:100], others=known[100:], rounds=ROUNDS)
    assert found["dict_entries"] == 200


def test_padded_actions_of_the_mix_meet_the_same_rules() -> None:
    engine = deciding.compiled(workload.policy(1_000))
    short, long = (workload.actions(2_000, 1_000, length=length) for length in (0, 4_096))
    assert set(lengths(long)) == {4_096}
    same = [
        engine.evaluate(*one) is engine.evaluate(*other)
        for one, other in zip(short, long, strict=True)
    ]
    # An exact target that a random number happened to hit is hit no more.
    assert sum(same) > 1_990


@pytest.mark.parametrize("shape", hard.SHAPES)
def test_padded_actions_of_a_shape_have_the_lengths_asked_for_and_reach_it(shape: str) -> None:
    wanted = [4_096, 100]
    policy, questions = shapes.adversarial(shape, 200, actions=100, lengths=wanted)
    assert lengths(questions) == wanted * 50
    engine = deciding.compiled(policy)
    matched = [engine.evaluate(*question).matched_rule != DEFAULT_RULE for question in questions]
    assert 40 <= sum(matched) <= 60


def test_letters_are_in_the_texts_and_match_no_rule() -> None:
    policy, questions = hard.letters_policy(500)
    engine = deciding.compiled(policy)
    assert {engine.evaluate(*question).matched_rule for question in questions} == {DEFAULT_RULE}
    assert {len(kind) for kind, _, _, _ in questions} == {20}
    occurring = [
        set(rule.match_type) - {"*"} <= set(kind)
        for rule in policy.rules
        for kind, _, _, _ in questions[:20]
    ]
    assert sum(occurring) / len(occurring) > 0.2


def test_every_string_of_the_endless_ones_is_new() -> None:
    asked = [one for batch in islice(endless.batches(1_000, 500), 4) for one in batch]
    for field in (0, 1):
        assert len({one[field] for one in asked}) == 2_000
    engine = deciding.compiled(workload.policy(1_000))
    matched = [engine.evaluate(*one).matched_rule != DEFAULT_RULE for one in asked]
    assert sum(matched) / len(matched) > 0.3


def test_whole_request_is_one_of_150_bytes_an_action_that_is_answered() -> None:
    body = request.body(100)
    assert 140 < len(body) / request.ACTIONS < 160
    response = request.api(100).evaluate(Request("evaluate", body, request.NO_HEADERS))
    assert isinstance(response, Response)
    assert response.status == 200
    assert isinstance(response.body, bytes)
    assert response.body.count(b'"matched_rule"') == request.ACTIONS


def result(rules: int, **ratios: float) -> dict[str, Any]:
    """A run that measured only these of its hard parts."""
    return {"engine": [], "shapes": [], "letters": {
        "rules": rules, "single_ns": {"median": 20_000.0}, "ratios": ratios,
    }}  # fmt: skip


def test_bars_are_met_or_not_or_not_measured() -> None:
    found = {
        bar["of"]: bar["is_met"] for bar in bars.judged(result(10_000, **{"re over single": 149.0}))
    }
    assert found["letters: µs a decision"] is True
    assert found["letters: re over single"] is False
    assert found["endless: endless over mix"] is None


@pytest.mark.parametrize(("p99_ms", "is_met"), [(15.0, True), (15.1, False)])
def test_tails_of_executes_have_a_bar(p99_ms: float, is_met: bool) -> None:
    tails = {"p99": {"median": p99_ms}}
    run = result(1_000) | {
        "executing, 128 connections": {"servers": {"execute": {"tails_ms": tails}}, "ratios": {}}
    }
    judged = {bar["of"]: bar["is_met"] for bar in bars.judged(run)}
    assert judged["executing, 128 connections: execute p99 at half its rate, ms"] is is_met
    assert judged["executing, 32 connections: execute p99 at half its rate, ms"] is None


def test_bars_of_ten_thousand_rules_say_nothing_about_a_smaller_run() -> None:
    found = bars.judged(result(1_000, **{"re over single": 200.0}))
    assert [bar["of"] for bar in found if bar["of"].startswith("letters") and bar["is_met"]] == []


def test_processes_are_merged_round_by_round() -> None:
    one, other = (
        {"part": [{"name": "x", "rules": 10, "ns": {"rounds": [value]}, "ratios": {"of": value}}]}
        for value in (1.0, 3.0)
    )
    (part,) = merged([one, other])["part"]
    assert part["ns"]["rounds"] == [1.0, 3.0]
    assert part["ratios"] == {"of": 2.0}
    assert (part["name"], str(part["rules"])) == ("x", "10")


def test_server_that_does_not_start_is_said_and_every_core_given_back() -> None:
    before = os.sched_getaffinity(0)
    with (
        pytest.raises(ConfigError, match="did not start: no such thing"),
        running([sys.executable, "-c", "raise SystemExit('no such thing')"], 1),
    ):
        pass
    assert os.sched_getaffinity(0) == before
