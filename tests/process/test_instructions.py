"""A decision takes no more instructions than are stored."""

from __future__ import annotations

import json

import pytest

from benchmarks import instructions
from benchmarks.instructions import grown


@pytest.mark.slow
def test_no_decision_takes_over_three_percent_more_instructions_than_stored() -> None:
    lacking = instructions.missing()
    if lacking is not None:
        pytest.skip(lacking)
    stored = json.loads(instructions.STORED.read_text(encoding="utf-8"))
    now = instructions.comparable()
    if other := [
        f"{name} is `{said}`, not `{stored[name]}`"
        for name, said in now.items()
        if said != stored[name]
    ]:
        pytest.skip(f"not comparable with what is stored: {'; '.join(other)}")
    assert grown(stored["instructions"], instructions.counted()) == [], (
        "if it is meant, `make instructions` renews what is stored"
    )


def test_growth_of_over_three_percent_is_told() -> None:
    stored = {"a": 1_000.0, "b": 1_000.0, "c": 1_000.0}
    assert grown(stored, {"a": 1_029.0, "b": 1_031.0, "c": 500.0}) == ["b: 1,000 to 1,031, +3.1%"]


def test_counts_that_only_one_side_has_are_told() -> None:
    assert grown({"a": 1.0}, {"b": 1.0}) == ["a: was not counted", "b: is not stored"]
