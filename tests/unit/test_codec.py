"""Bodies to checked actions, values to bytes, and secrets kept out of what is stored."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis import Action
from aegis.codec import (
    action,
    batch,
    dumps,
    dumps_foreign,
    loads,
    question,
    redacted_json,
)
from aegis.errors import InvalidBody


def refusal(body: bytes, deepest: int = 64) -> InvalidBody:
    """How a body is refused."""
    with pytest.raises(InvalidBody) as refused:
        loads(body, deepest)
    return refused.value


# --- JSON ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [None, True, 0, -1, 1.5, "", "ä😀", [], {}, [{"a": [None]}]])
def test_json_is_read_as_it_was_written(value: Any) -> None:
    assert loads(json.dumps(value).encode(), 64) == value
    assert json.loads(dumps(value)) == value


def test_space_around_a_value_is_nothing() -> None:
    assert loads(b' \t\r\n {"a" : 1 } \n', 64) == {"a": 1}


@pytest.mark.parametrize("body", [b"", b" ", b"\n"])
def test_empty_body_is_said_to_be_empty(body: bytes) -> None:
    assert "empty" in str(refusal(body))
    assert refusal(body).code == "invalid_json"


@pytest.mark.parametrize(
    "body", [b"{", b"nul", b"NaN", b"01", b"{'a':1}", b"[1,]", b'"\xff"', rb'"\ud800"', b"1 2"]
)
def test_what_is_no_json_is_refused(body: bytes) -> None:
    assert refusal(body).code == "invalid_json"


@pytest.mark.parametrize("deepest", [1, 2, 5, 64])
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}"), ("[0,", ",1]")])
def test_nesting_is_counted_exactly(deepest: int, opening: str, closing: str) -> None:
    fits = opening * deepest + "0" + closing * deepest
    assert loads(fits.encode(), deepest) == json.loads(fits)
    assert refusal(f"[{fits}]".encode(), deepest).code == "invalid_body"


def test_brackets_within_text_are_not_nesting() -> None:
    assert loads(dumps({"a": "[" * 1_000 + "{" * 1_000}), 2)


def test_text_may_hold_what_ends_lines_elsewhere() -> None:
    assert loads('"\u2028\u0085"'.encode(), 64) == "\u2028\u0085"


# --- actions -------------------------------------------------------------------------------------


def test_whole_action_is_read() -> None:
    item = {
        "action_type": "read",
        "target": "t",
        "params": {"a": 1},
        "description": "d",
        "agent_id": "a",
        "session_id": "s",
        "parent_agent_id": "p",
        "chain_id": "c",
        "chain_depth": 2,
    }
    assert action(item) == Action("read", "t", {"a": 1}, "d", "a", "s", "p", "c", 2)
    assert question(item) == ("read", "t", "a", {"a": 1})


def test_what_is_left_out_has_its_default() -> None:
    assert action({"type": "read"}) == Action("read")
    assert question({"type": "read"}) == ("read", "", "", None)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ([], []),
        ([1], [1]),
        ({"actions": []}, []),
        ({"actions": [1, 2], "type": "a"}, [1, 2]),
    ],
)
def test_list_and_actions_are_batches(value: Any, expected: list[Any]) -> None:
    assert batch(value, 10) == expected


@pytest.mark.parametrize("value", [None, 5, "a", True, {"actions": None}, {"actions": {}}])
def test_what_is_no_batch_is_refused(value: Any) -> None:
    with pytest.raises(InvalidBody, match="list of actions"):
        batch(value, 10)


def test_batch_limit_is_inclusive() -> None:
    assert len(batch([1] * 3, 3)) == 3
    with pytest.raises(InvalidBody, match="4 actions are too many; send at most 3"):
        batch([1] * 4, 3)


@pytest.mark.parametrize("read", [action, question])
@pytest.mark.parametrize(
    ("item", "member", "message"),
    [
        ({}, "action_type", "is missing"),
        ({"action_type": ""}, "action_type", "is empty"),
        ({"action_type": 5}, "action_type", "must be text, not a number"),
        ({"type": "a", "target": None}, "target", "must be text, not null"),
        ({"type": "a", "params": []}, "params", "must be an object, not a list"),
        ({"type": "a", "agent_id": False}, "agent_id", "must be text, not true or false"),
        ({"type": "a", "chain_depth": 1.5}, "chain_depth", "must be an integer"),
        ({"type": "a", "chain_depth": 2**63}, "chain_depth", "does not fit into 64 bits"),
    ],
)
def test_message_says_where_and_what(
    read: Callable[..., object], item: Any, member: str, message: str
) -> None:
    with pytest.raises(InvalidBody) as alone:
        read(item)
    with pytest.raises(InvalidBody) as in_batch:
        read(item, 3)
    assert str(alone.value).startswith(f"`{member}` ")
    assert str(in_batch.value).startswith(f"`actions[3].{member}` ")
    assert message in str(alone.value)
    assert message in str(in_batch.value)


@pytest.mark.parametrize("read", [action, question])
@pytest.mark.parametrize("item", [None, 5, "a", [], True])
def test_what_is_no_object_is_told_its_place(read: Callable[..., object], item: Any) -> None:
    with pytest.raises(InvalidBody, match=r"`actions\[0\]` must be an object"):
        read(item, 0)


members: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([0.0, 1.0, 1.5, 1e300]),
    st.text(max_size=2, alphabet="aé\0"),
    st.just([]),
    st.just({}),
)
NAMES_OF_MEMBERS = ["action_type", "type", "target", "params", "agent_id", "chain_depth", "x"]
items = st.dictionaries(st.sampled_from(NAMES_OF_MEMBERS), members)


@given(items | items.map(lambda item: {"action_type": "a"} | item) | members)
def test_both_routes_take_and_refuse_the_same_actions(item: Any) -> None:
    assert outcome(action, item) == outcome(question, item)


def outcome(read: Callable[..., Any], item: Any) -> object:
    """What is needed to decide, or why it is refused."""
    try:
        found = read(item)
    except InvalidBody as error:
        return str(error)
    if isinstance(found, Action):
        found = (found.type, found.target, found.agent_id, found.params)
    return (*found[:3], dict(found[3] or {}))


# --- what others made ----------------------------------------------------------------------------


class Named:
    """Has a text."""

    def __str__(self) -> str:
        return "its text"


def test_what_json_has_not_becomes_text() -> None:
    assert json.loads(dumps_foreign([Named(), {1: 2}, {"a": {1}}]) or b"") == [
        "its text",
        {"1": 2},
        {"a": [1]},
    ]


def test_what_cannot_be_written_is_none() -> None:
    circular: list[Any] = []
    circular.append(circular)
    for value in (circular, "\ud800", 2**70, {"a": "\udfff"}):
        assert dumps_foreign(value) is None


# --- secrets -------------------------------------------------------------------------------------

NAMES = [
    "password",
    "passwd",
    "pwd",
    "secret",
    "token",
    "api_key",
    "api-key",
    "authorization",
    "cookie",
    "credential",
    "private_key",
    "access_key",
]


def redacted(value: Any) -> Any:
    return json.loads(redacted_json(dumps(value)))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("written", ["{}", "my_{}_1", "{}s", "X-{}"])
@pytest.mark.parametrize("case", [str.lower, str.upper, str.title])
def test_value_of_a_secret_is_replaced(name: str, written: str, case: Any) -> None:
    key = case(written.format(name))
    for value in ("s", 5, None, True, ["s"], {"a": "s"}, ""):
        assert redacted({key: value}) == {key: "[REDACTED]"}
        assert redacted({"a": [[{key: value, "b": 1}]]}) == {"a": [[{key: "[REDACTED]", "b": 1}]]}


@pytest.mark.parametrize(
    "value",
    [
        {"user": "bob"},
        {"text": "my password is s"},
        ["token", "secret"],
        {"pass": "s", "key": "s", "apikey": "s", "private": "s"},
        "password",
        None,
        5,
        {},
        [],
    ],
)
def test_what_is_no_secret_stays(value: Any) -> None:
    assert redacted(value) == value


def test_text_without_a_secret_is_not_written_anew() -> None:
    assert redacted_json(b'{"a":1.0e5, "b":[]}') == b'{"a":1.0e5, "b":[]}'


def test_secret_whose_name_holds_other_letters_is_found() -> None:
    assert redacted({"Passwört_TOKEN_é": 1}) == {"Passwört_TOKEN_é": "[REDACTED]"}


trees = st.recursive(
    st.just("HIDDEN") | st.integers(0, 9),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["a", "b", "Token", "my-PWD"]), inner, max_size=3)
    ),
    max_leaves=12,
)


def naive(value: Any) -> Any:
    if isinstance(value, list):
        return [naive(item) for item in value]
    if isinstance(value, dict):
        secret = ("Token", "my-PWD")
        return {key: "[REDACTED]" if key in secret else naive(item) for key, item in value.items()}
    return value


@given(trees)
def test_redaction_is_that_of_the_naive_walk(value: Any) -> None:
    assert redacted(value) == naive(value)
