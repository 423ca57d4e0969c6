"""Rules that are read quickly are read as those that are read with care."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from aegis import Policy, PolicyError
from aegis.policy.loader import load_document
from aegis_core import plain_rules

TEXTS = st.sampled_from(["", "*", "read", "re*", "é", "\ud800", "a" * 300])
ODD: st.SearchStrategy[Any] = st.sampled_from(
    [None, True, 1, 1.5, [], ["read"], {}, {"type": "x"}, b"read", "LOW", "Low", "auto", "Auto"]
)
KEYS = st.sampled_from(
    ["name", "description", "match", "risk_level", "approval", "conditions", "Match", "x-note", 1]
)
MATCHES = st.dictionaries(
    st.sampled_from(["type", "target", "agent", "tool"]), TEXTS | TEXTS | ODD, max_size=4
)
RULES = st.dictionaries(KEYS, ODD, max_size=2).flatmap(
    lambda odd: st.fixed_dictionaries(
        {"approval": st.sampled_from(["auto", "approve", "block"])},
        optional={
            "name": TEXTS,
            "description": TEXTS,
            "match": MATCHES,
            "risk_level": st.sampled_from(["low", "HIGH", "Medium", "severe"]),
            "conditions": st.sampled_from([{}, {"param_eq": {"a": 1}}, {"weekdays": [8]}]),
        },
    ).map(lambda rule: rule | odd)
)


def problems_or_policy(load: Any, document: Any) -> object:
    try:
        return load(document)
    except PolicyError as error:
        return error.problems


@given(st.lists(RULES | ODD, max_size=5))
def test_both_ways_give_the_same_rules_or_the_same_problems(rules: list[Any]) -> None:
    document = {"rules": rules}
    quickly = problems_or_policy(Policy.from_dict, document)
    carefully = problems_or_policy(lambda of: load_document(of).policy, document)
    assert quickly == carefully


def test_usual_rules_are_read_quickly() -> None:
    rule = {"name": "reads", "match": {"type": "read*"}, "risk_level": "LOW", "approval": "auto"}
    made, careful, unnamed = plain_rules([rule, rule | {"approval": None}, {"approval": "block"}])
    assert made is not None
    assert careful is None
    assert unnamed is not None
    assert (made.name, unnamed.name) == ("reads", "rule_2")
