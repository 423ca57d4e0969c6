"""The engine and JSON under pytest-benchmark: `python -m pytest benchmarks`."""

from __future__ import annotations

from typing import Any

import pytest

from aegis import codec, wire
from aegis.bench import workload
from aegis.policy.conditions import compile_conditions
from aegis_core import Engine, compile_policy

SIZES = [10, 1_000, 10_000]


@pytest.fixture(scope="module", params=SIZES)
def engine(request: pytest.FixtureRequest) -> Engine:
    return compile_policy(workload.policy(request.param), condition=compile_conditions)


@pytest.fixture(scope="module")
def questions() -> list[wire.Question]:
    return workload.fresh(workload.actions(1_000, 1_000))


def test_single(benchmark: Any, engine: Engine, questions: list[wire.Question]) -> None:
    benchmark(lambda: [engine.evaluate(*question) for question in questions])


def test_batch(benchmark: Any, engine: Engine, questions: list[wire.Question]) -> None:
    assert len(benchmark(engine.evaluate_many, questions)) == len(questions)


def test_batch_to_json(benchmark: Any, engine: Engine, questions: list[wire.Question]) -> None:
    items = [codec.loads(workload.body(question), 64) for question in questions]
    assert benchmark(engine.evaluate_objects_json, items)


def test_parse_batch(benchmark: Any, questions: list[wire.Question]) -> None:
    body = b"[%b]" % b",".join(map(workload.body, questions))
    assert len(benchmark(codec.loads, body, 64)) == len(questions)
