"""JSON in and out: bodies to checked actions, values to bytes. The only JSON of the server.

Decisions are written by the engine itself, which has each rule's fragment ready.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Annotated, Any

import msgspec
import orjson

from aegis.errors import InvalidBody, named, shown
from aegis_core import Action, Decision, brackets_in, brackets_in_object, may_exceed_64_bits

__all__ = [
    "DEEPEST_FOREIGN",
    "PLAIN_BATCH",
    "UNWRITABLE",
    "Question",
    "action",
    "batch",
    "decision",
    "dumps",
    "dumps_foreign",
    "encodable",
    "exact",
    "is_deeper",
    "loads",
    "loads_own",
    "plain_batch",
    "plain_params",
    "question",
    "refuse_repeated",
    "written",
]

Question = tuple[str, str, str, dict[str, Any] | None]
"""What is needed to decide: action type, target, agent, params."""

_TEXTS = ("description", "agent_id", "session_id", "parent_agent_id", "chain_id")
_INT64 = range(-(2**63), 2**63)


UNWRITABLE = "[UNWRITABLE]"
"""Stands for the parts of a value that JSON has no form for, and that have no text either."""
DEEPEST_FOREIGN = 200
"""Values of others that are nested deeper could not be written again."""


def dumps(value: object) -> bytes:
    """A value as JSON.

    Raises:
        TypeError: It holds something that JSON has not.
    """
    try:
        return orjson.dumps(value)
    except TypeError:
        return orjson.dumps(_with_integers(value))


def written(text: str | bytes) -> object:
    """What `dumps` writes as this JSON."""
    return orjson.Fragment(text)


def _with_integers(value: object) -> object:
    """A value whose integers of over 64 bits are written already."""
    if isinstance(value, dict):
        return {key: _with_integers(member) for key, member in value.items()}
    if isinstance(value, list | tuple):
        return [_with_integers(member) for member in value]
    return _integer(value) if type(value) is int else value


def _integer(value: int) -> object:
    try:
        return written(str(value))
    except ValueError:  # Python writes integers of some thousand digits only
        return UNWRITABLE


def dumps_foreign(value: object) -> bytes:
    """A value that others made, as JSON.

    Collections that JSON has not become the ones that it has, other values their text. Only the
    parts that cannot be written are replaced.
    """
    try:
        return orjson.dumps(value, default=_plain, option=orjson.OPT_NON_STR_KEYS)
    except (TypeError, ValueError, RecursionError):
        pass
    try:
        return orjson.dumps(_writable(value, ()))
    except Exception:  # noqa: BLE001 - foreign code, and values that change meanwhile
        return orjson.dumps(UNWRITABLE)


def encodable(text: str) -> str:
    """Text that can be stored: halves of surrogate pairs are written as escapes.

    The name of a file that is no Unicode has some, and stays different from other names.
    """
    return str.encode(text, "utf-8", "backslashreplace").decode()


def _writable(value: Any, around: tuple[int, ...]) -> object:
    """A value of what `orjson` can write only.

    Args:
        value: Anything.
        around: What it stands in, by `id`.
    """
    if isinstance(value, Enum):
        return _writable(value.value, around)
    if isinstance(value, str):
        return encodable(value)
    if isinstance(value, int):
        return value if isinstance(value, bool) else _integer(int(value))
    parts = _parts(value)
    if parts is None:
        return _leaf(value)
    if id(value) in around or len(around) == DEEPEST_FOREIGN:
        return UNWRITABLE
    inside = (*around, id(value))
    if isinstance(parts, dict):
        return {_key(key): _writable(member, inside) for key, member in parts.items()}
    return [_writable(member, inside) for member in parts]


def _parts(value: Any) -> dict[Any, Any] | list[Any] | None:
    """What a collection holds; None: it is none."""
    if is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in fields(value) if not field.name.startswith("_")]
        return {name: getattr(value, name) for name in names}
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return dict(value._asdict())
    if isinstance(value, Collection) and not isinstance(
        value, str | bytes | bytearray | memoryview
    ):
        return list(value)
    return None


def _leaf(value: object) -> object:
    try:
        return written(orjson.dumps(value))
    except TypeError:
        return _text(value)


def _key(key: object) -> str:
    if not isinstance(key, str):
        try:
            (key,) = orjson.loads(orjson.dumps({key: None}, option=orjson.OPT_NON_STR_KEYS))
        except TypeError:
            return _text(key)
    return encodable(str(key))


def _text(value: object) -> str:
    try:
        return encodable(str(value))
    except BaseException:  # noqa: BLE001 - foreign code
        return UNWRITABLE


def _plain(value: Any) -> object:
    # As an object, so that secrets in it are found by their names.
    parts = _parts(value)
    return str(value) if parts is None else parts


def loads(body: bytes, deepest: int, *, is_exact: bool = True) -> Any:
    """A body's value.

    Args:
        body: JSON in UTF-8.
        deepest: How many objects and lists may stand inside each other.
        is_exact: False: integers of over 64 bits may become floats, which is quicker; `exact`
            mends that.

    Raises:
        InvalidBody: It is no JSON (code `invalid_json`), or nested too deeply.
    """
    try:
        if is_exact and may_exceed_64_bits(body):
            value = _parsed_exactly(body)
        else:
            value = orjson.loads(body)
    except ValueError as error:
        if not is_exact:  # an integer may be too large for a float
            return loads(body, deepest)
        if not body.strip():
            raise InvalidBody("the body is empty; send JSON", "invalid_json") from None
        if "number is infinity" in str(error):
            error = _TooLarge()
        raise InvalidBody(f"the body is not JSON: {error}", "invalid_json") from None
    # Nothing can be nested deeper than it opens brackets, and counting those is quick.
    if (
        len(body) > 2 * deepest
        and body.count(b"{") + body.count(b"[") > deepest
        and is_deeper(value, deepest)
    ):
        raise InvalidBody(f"the body is nested deeper than {deepest} levels")
    return value


def exact(value: Any, body: bytes) -> Any:
    """What `loads` gave of a body, with integers of over 64 bits that are exact."""
    return _parsed_exactly(body) if may_exceed_64_bits(body) else value


def refuse_repeated(body: bytes) -> None:
    """See that no member of a body that `loads` has read stands twice.

    Raises:
        InvalidBody: One does.

    Cost: as much as to read it several times.
    """
    json.loads(body, object_pairs_hook=_without_repeated)


def _without_repeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members: dict[str, Any] = {}
    for name, value in pairs:
        if name in members:
            raise InvalidBody(f"{shown(name)} stands twice; send it once")
        members[name] = value
    return members


def loads_own(text: str | bytes) -> Any:
    """The value of JSON that was written here."""
    if isinstance(text, str):
        text = text.encode()
    return _parsed_exactly(text) if may_exceed_64_bits(text) else orjson.loads(text)


class _TooLarge(ValueError):
    """A number that would not be what was sent."""

    def __str__(self) -> str:
        digits = sys.get_int_max_str_digits()
        return (
            f"it has a number that is too large; integers have at most {digits} digits,"
            " other numbers are below 1.8e308"
        )


# orjson makes floats of integers of over 64 bits.
_decoded = msgspec.json.Decoder().decode


def _parsed_exactly(text: bytes) -> Any:
    """The value of some JSON, its integers exact whatever their size.

    Raises:
        ValueError: It is no JSON.
    """
    try:
        text.decode()  # which msgspec does not look at
        return _decoded(text)
    except msgspec.ValidationError:  # it is JSON
        raise _TooLarge from None
    except (UnicodeDecodeError, msgspec.DecodeError, RecursionError) as error:
        orjson.loads(text)  # has the better words
        raise ValueError(str(error)) from None


PLAIN_BATCH = b'{"actions"'
"""What the body of a batch of plain actions begins with."""

_NO_PARAMS = msgspec.Raw(b"{}")


class _PlainAction(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    """An action as most are; its params stay as they were sent."""

    action_type: Annotated[str, msgspec.Meta(min_length=1)]
    target: str = ""
    agent_id: str = ""
    params: msgspec.Raw = _NO_PARAMS


class _PlainBatch(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    actions: list[_PlainAction]


_PLAIN = msgspec.json.Decoder(_PlainBatch)


def plain_batch(
    body: bytes, largest: int, deepest: int
) -> list[tuple[str, str, str, msgspec.Raw]] | None:
    """The questions of a batch of plain actions: `{"actions": […]}` with nothing odd in it.

    Args:
        body: JSON in UTF-8.
        largest: How many actions it may have.
        deepest: How many objects and lists may stand inside each other.

    Returns:
        Action type, target, agent and params of each, these as JSON for `plain_params`. None:
        something in it must be read with more care, which also finds the words for what is wrong.
    """
    if not body.startswith(PLAIN_BATCH):
        return None
    try:
        actions = _PLAIN.decode(body).actions
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    brackets = brackets_in(body)
    if brackets < 0 or len(actions) > largest or not (body.isascii() or _is_utf8(body)):
        return None
    # A thousand times each: no loop of our own.
    params = [action.params for action in actions]
    in_params = list(map(brackets_in_object, params))
    counts = set(in_params)
    if min(counts, default=1) <= 0 or max(counts, default=1) > deepest - 3:
        return None
    # Brackets that are left over stand in strings, or in a member that stands twice and was not
    # looked at; those of params that were left out do not stand there.
    left_over = brackets - 2 - len(actions) - sum(in_params)
    if left_over and left_over + sum(one is _NO_PARAMS for one in params):
        return None
    return list(map(msgspec.structs.astuple, actions))  # as its fields stand


def plain_params(params: msgspec.Raw) -> Any:
    """The params of a plain action."""
    return _decoded(params)


def _is_utf8(body: bytes) -> bool:
    try:
        body.decode()
    except UnicodeDecodeError:
        return False
    return True


def is_deeper(value: object, deepest: int) -> bool:
    """Whether more objects and lists stand inside each other in a JSON value."""
    level = [value]
    for _ in range(deepest):
        level = [
            member
            for container in level
            if isinstance(container, dict | list)
            for member in (container.values() if isinstance(container, dict) else container)
        ]
    return any(isinstance(value, dict | list) for value in level)


def batch(value: Any, largest: int) -> list[Any]:
    """The items of a body that is not one action: a list, or an object with `actions`.

    Raises:
        InvalidBody: It is neither, or has too many.
    """
    if type(value) is dict:
        value = value["actions"]
        if type(value) is not list:
            raise InvalidBody(f"`actions` must be a list of actions, not {named(value)}")
    elif type(value) is not list:
        raise InvalidBody(f"the body must be an action or a list of actions, not {named(value)}")
    if len(value) > largest:
        raise InvalidBody(f"{len(value)} actions are too many; send at most {largest} at once")
    return value


def question(item: Any, index: int | None = None) -> Question:
    """An action, as far as it is needed to decide.

    Args:
        item: Its JSON.
        index: Its place in a batch.

    Raises:
        InvalidBody: Something is wrong; the message says where, as in `actions[3].target`.
    """
    if type(item) is not dict:
        raise _wrong(index, "", f"must be an object, not {named(item)}")
    get = item.get
    action_type = get("action_type")
    if action_type is None:
        action_type = get("type")
        _refuse_tool_call(item, index)
    if type(action_type) is not str or not action_type:
        raise _wrong(index, "action_type", _wrong_type(action_type))
    target = get("target", "")
    if type(target) is not str:
        raise _wrong(index, "target", f"must be text, not {named(target)}")
    params = get("params")
    if params is not None and type(params) is not dict:
        raise _wrong(index, "params", f"must be an object, not {named(params)}")
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
"""What models call a tool call, and the member that has its arguments beside `name`."""


def _refuse_tool_call(item: dict[str, Any], index: int | None) -> None:
    """Refuse a tool call as a model gives it: its `type` says nothing of what it does.

    SOURCE: the messages of OpenAI (chat completions, responses), Anthropic and LangChain.
    """
    kind, function = item.get("type"), item.get("function")
    if kind == "function" and type(function) is dict and "name" in function:
        name, arguments = "function.name", "function.arguments"
    elif type(kind) is str and kind in _TOOL_CALLS and "name" in item:
        found = [member for member in _TOOL_CALLS[kind] if member in item]
        if not found:
            return
        name, arguments = "name", found[0]
    else:
        return
    raise _wrong(
        index,
        "type",
        f"{shown(kind)} is a model's tool call; send its `{name}` as `action_type`, and its"
        f" `{arguments}` as the object `params`",
    )


def _check_others(item: dict[str, Any], index: int | None) -> None:
    for name in _TEXTS:
        text = item.get(name)
        if text is not None and type(text) is not str:
            raise _wrong(index, name, f"must be text, not {named(text)}")
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
        raise _wrong(index, "chain_depth", f"must be an integer, not {named(value)}")
    if value not in _INT64:
        raise _wrong(index, "chain_depth", f"{shown(value)} does not fit into 64 bits")
    return value


def _wrong_type(value: object) -> str:
    if value is None:
        return "is missing; say what kind of action it is"
    return "is empty" if value == "" else f"must be text, not {named(value)}"


def _wrong(index: int | None, member: str, message: str) -> InvalidBody:
    place = (
        member if index is None else f"actions[{index}].{member}" if member else f"actions[{index}]"
    )
    return InvalidBody(f"`{place}` {message}" if place else f"the body {message}")


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
    return orjson.dumps(answer)
