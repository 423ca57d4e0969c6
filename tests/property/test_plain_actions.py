"""The short way from a JSON object to an answer gives what the careful way gives, or nothing."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from aegis import codec, wire
from aegis.errors import InvalidBody
from aegis.policy.loader import load_text

ENGINE = load_text("""
rules:
  - {name: "a \\"quoted\\" é", match: {type: "a*", target: "*b"}, approval: auto}
  - {name: agents, match: {agent: "bot-*"}, approval: auto}
  - {name: large, conditions: {param_gt: {n: 100000000000000000000}}, approval: block}
  - {name: many, conditions: {param_gt: {n: 3}}, approval: auto}
""").policy.engine

TEXT = st.text(alphabet=st.sampled_from('ab"\\\x00\x1f\n/é漢😀'), max_size=6)
VALUE = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(10**20 - 2, 10**20 + 2),
    TEXT,
    st.just("bot-1"),
    st.lists(TEXT, max_size=2),
)
PARAMS = st.dictionaries(st.sampled_from(["n", "x"]), VALUE, max_size=2)
OBJECT = st.fixed_dictionaries(
    {},
    optional={
        "action_type": st.one_of(TEXT, VALUE),
        "type": VALUE,
        "target": st.one_of(TEXT, VALUE),
        "params": st.one_of(PARAMS, VALUE),
        "agent_id": VALUE,
        "session_id": VALUE,
        "chain_depth": VALUE,
        "unknown": VALUE,
    },
)
ITEM = st.one_of(OBJECT, VALUE)


def _careful(item: object) -> bytes | None:
    try:
        return ENGINE.evaluate_json(*wire.question(item))
    except InvalidBody:
        return None


@given(ITEM)
def test_an_object_is_answered_as_if_it_were_read_with_care(item: object) -> None:
    answer = ENGINE.evaluate_object_json(item)
    assert answer is None or answer == _careful(item)


@given(OBJECT)
def test_an_object_that_was_not_read_exactly_is_answered_as_if_it_were(item: object) -> None:
    body = json.dumps(item).encode()
    answer = ENGINE.evaluate_object_json(codec.loads_inexact(body, 64), body)
    assert answer is None or answer == _careful(codec.loads(body, 64))


@given(st.lists(OBJECT, max_size=4))
def test_objects_are_answered_as_if_they_were_read_with_care(items: list[object]) -> None:
    answer = ENGINE.evaluate_objects_json(items)
    one_by_one = [ENGINE.evaluate_object_json(item) for item in items]
    if None in one_by_one:
        assert answer is None
    else:
        assert answer == b"[%b]" % b",".join([one for one in one_by_one if one is not None])


@given(TEXT.filter(bool), TEXT, PARAMS)
def test_a_plain_action_takes_the_short_way(kind: str, target: str, params: object) -> None:
    item = {"action_type": kind, "target": target, "params": params, "agent_id": "bot-1"}
    answer = ENGINE.evaluate_object_json(item)
    assert answer is not None
    decided = json.loads(answer)
    assert (decided["action_type"], decided["target"]) == (kind, target)
