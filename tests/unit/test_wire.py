"""Bodies to checked actions."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis import Action
from aegis.errors import InvalidBody
from aegis.wire import action, batch, question

TOOL_CALLS: list[dict[str, Any]] = [
    {"type": "function", "id": "c", "function": {"name": "rm", "arguments": '{"table":"t"}'}},
    {"type": "function_call", "call_id": "c", "name": "rm", "arguments": '{"table":"t"}'},
    {"type": "custom_tool_call", "name": "rm", "input": "t"},
    {"type": "mcp_call", "server_label": "db", "name": "rm", "arguments": "{}"},
    {"type": "tool_use", "id": "t", "name": "rm", "input": {"table": "t"}},
    {"type": "server_tool_use", "id": "t", "name": "rm", "input": {}},
    {"type": "mcp_tool_use", "id": "t", "name": "rm", "server_name": "db", "input": {}},
    {"type": "tool_call", "id": "t", "name": "rm", "args": {"table": "t"}},
]


@pytest.mark.parametrize("read", [action, question])
@pytest.mark.parametrize("item", TOOL_CALLS, ids=lambda item: item["type"])
def test_tool_call_as_a_model_gives_it_is_refused_with_a_hint(
    read: Callable[..., object], item: dict[str, Any]
) -> None:
    with pytest.raises(InvalidBody) as refused:
        read(item, 3)
    assert re.fullmatch(
        r"`actions\[3\]\.type` `[a-z_]+` is a model's tool call; send its `(function\.)?name` as"
        r" `action_type`, and its `[a-z.]+` as the object `params`",
        str(refused.value),
    )


@pytest.mark.parametrize(
    "item",
    [
        *({"type": item["type"], "target": "t", "params": {"name": "x"}} for item in TOOL_CALLS),
        *({"action_type": "rm"} | item for item in TOOL_CALLS),
        {"type": "function", "function": "f"},
        {"type": "function", "name": "f", "arguments": "x"},
        {"type": "tool_use", "name": "f"},
        {"type": "tool_use", "input": {}},
        {"type": "call", "name": "f", "input": {}, "arguments": {}},
    ],
    ids=str,
)
def test_action_whose_type_is_only_called_like_a_tool_call_is_taken(item: dict[str, Any]) -> None:
    assert action(item).type == item.get("action_type", item["type"])


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
