"""Bodies to checked actions, and decisions to bodies: what is the same for every protocol of ours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from aegis.codec import dumps
from aegis.errors import InvalidBody
from aegis.messages import json_type, quote
from aegis_core import Action, Decision

__all__ = [
    "Actions",
    "Question",
    "Questions",
    "action",
    "batch",
    "decision",
    "question",
    "read_actions",
    "read_questions",
]

Question = tuple[str, str, str, dict[str, Any] | None]
"""What is needed to decide: action type, target, agent, params."""


class Questions(NamedTuple):
    """What a request asks to decide.

    Attributes:
        items: Action type, target, agent and params of each action.
        is_batch: Whether a list is to be answered.
        read_params: Makes a mapping of an item's params; None: they are mappings.
    """

    items: Sequence[tuple[str, str, str, Any]]
    is_batch: bool
    read_params: Callable[[Any], Any] | None = None


class Actions(NamedTuple):
    """What a request asks to decide and record, or to execute.

    Attributes:
        items: The actions.
        is_batch: Whether a list is to be answered.
    """

    items: Sequence[Action]
    is_batch: bool


_TEXTS = ("description", "agent_id", "session_id", "parent_agent_id", "chain_id")
_INT64 = range(-(2**63), 2**63)


def read_questions(value: Any, max_actions: int) -> Questions:
    """What the value of a body asks to decide: about one action, or a batch.

    Raises:
        InvalidBody: Something is wrong; the message says where, as in `actions[3].target`.
    """
    if _is_single(value):
        return Questions([question(value)], False)
    items = batch(value, max_actions)
    return Questions([question(item, index) for index, item in enumerate(items)], True)


def read_actions(value: Any, max_actions: int) -> Actions:
    """As `read_questions`: the actions, whole."""
    if _is_single(value):
        return Actions([action(value)], False)
    items = batch(value, max_actions)
    return Actions([action(item, index) for index, item in enumerate(items)], True)


def _is_single(value: Any) -> bool:
    return type(value) is dict and "actions" not in value


def batch(value: Any, max_actions: int) -> list[Any]:
    """The items of a body that is not one action: a list, or an object with `actions`.

    Raises:
        InvalidBody: It is neither, or has too many.
    """
    if type(value) is dict:
        value = value["actions"]
        if type(value) is not list:
            raise InvalidBody(f"`actions` must be a list of actions, not {json_type(value)}")
    elif type(value) is not list:
        raise InvalidBody(
            f"the body must be an action or a list of actions, not {json_type(value)}"
        )
    if len(value) > max_actions:
        raise InvalidBody(f"{len(value)} actions are too many; send at most {max_actions} at once")
    return value


def question(item: Any, index: int | None = None) -> Question:
    """An action, as far as it is needed to decide.

    Args:
        item: Its JSON.
        index: Its position in a batch.

    Raises:
        InvalidBody: Something is wrong; the message says where, as in `actions[3].target`.
    """
    if type(item) is not dict:
        raise _wrong(index, "", f"must be an object, not {json_type(item)}")
    get = item.get
    action_type = get("action_type")
    if action_type is None:
        action_type = get("type")
        _refuse_tool_call(item, index)
    if type(action_type) is not str or not action_type:
        raise _wrong(index, "action_type", _wrong_type(action_type))
    target = get("target", "")
    if type(target) is not str:
        raise _wrong(index, "target", f"must be text, not {json_type(target)}")
    params = get("params")
    if params is not None and type(params) is not dict:
        raise _wrong(index, "params", f"must be an object, not {json_type(params)}")
    _check_others(item, index)
    return action_type, target, get("agent_id") or "", params


def action(item: Any, index: int | None = None) -> Action:
    """An action, whole; as `question` otherwise."""
    action_type, target, agent_id, params = question(item, index)
    get = item.get
    return Action(
        action_type,
        target,
        params or {},
        get("description") or "",
        agent_id,
        get("session_id") or "",
        get("parent_agent_id") or "",
        get("chain_id") or "",
        _depth(get("chain_depth") or 0, index),
    )


_TOOL_CALLS = {
    "tool_use": ("input",),
    "server_tool_use": ("input",),
    "mcp_tool_use": ("input",),
    "custom_tool_call": ("input",),
    "function_call": ("arguments",),
    "mcp_call": ("arguments",),
    "tool_call": ("args", "arguments"),
}
"""What models call a tool call, and the member that has its arguments next to `name`."""


def _refuse_tool_call(item: dict[str, Any], index: int | None) -> None:
    """Refuse a tool call as a model gives it: its `type` says nothing of what it does.

    SOURCE: the messages of OpenAI (chat completions, responses), Anthropic and LangChain.
    """
    kind, function = item.get("type"), item.get("function")
    if kind == "function" and type(function) is dict and "name" in function:
        name, arguments = "function.name", "function.arguments"
    elif type(kind) is str and kind in _TOOL_CALLS and "name" in item:
        members = [member for member in _TOOL_CALLS[kind] if member in item]
        if not members:
            return
        name, arguments = "name", members[0]
    else:
        return
    raise _wrong(
        index,
        "type",
        f"{quote(kind)} is a model's tool call; send its `{name}` as `action_type`, and its"
        f" `{arguments}` as the object `params`",
    )


def _check_others(item: dict[str, Any], index: int | None) -> None:
    for name in _TEXTS:
        text = item.get(name)
        if text is not None and type(text) is not str:
            raise _wrong(index, name, f"must be text, not {json_type(text)}")
    depth = item.get("chain_depth")
    if depth is not None:
        _depth(depth, index)


def _depth(value: Any, index: int | None) -> int:
    # 3.0 is an integer too: JSON has but one kind of number.
    if isinstance(value, float) and value.is_integer():
        # From there on not every integer is a float: which one was sent is unknown.
        if abs(value) >= 2**53:
            raise _wrong(index, "chain_depth", "does not fit into 64 bits")
        value = int(value)
    if type(value) is not int:
        raise _wrong(index, "chain_depth", f"must be an integer, not {json_type(value)}")
    if value not in _INT64:
        raise _wrong(index, "chain_depth", f"{quote(value)} does not fit into 64 bits")
    return value


def _wrong_type(value: object) -> str:
    if value is None:
        return "is missing; say what kind of action it is"
    return "is empty" if value == "" else f"must be text, not {json_type(value)}"


def _wrong(index: int | None, member: str, message: str) -> InvalidBody:
    path = (
        member if index is None else f"actions[{index}].{member}" if member else f"actions[{index}]"
    )
    return InvalidBody(f"`{path}` {message}" if path else f"the body {message}")


def decision(action: Action, decided: Decision) -> bytes:
    """A decision about an action as JSON, just as the engine writes it."""
    answer = {
        "action_type": action.type,
        "target": action.target,
        "risk_level": decided.risk_level.name,
        "approval": decided.approval.value,
        "is_allowed": decided.is_allowed,
        "matched_rule": decided.matched_rule,
    }
    if decided.error is not None:
        answer["error"] = decided.error
    return dumps(answer)
