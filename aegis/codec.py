"""JSON in and out: bodies to checked actions, values to bytes. The only JSON of the server.

Decisions are written by the engine itself, which has each rule's fragment ready.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Annotated, Any

import msgspec
import orjson

from aegis.errors import InvalidBody, named, shown
from aegis_core import Action, Decision, brackets_in, brackets_in_object

__all__ = [
    "PLAIN_BATCH",
    "Question",
    "action",
    "batch",
    "decision",
    "dumps",
    "dumps_foreign",
    "loads",
    "loads_own",
    "plain_batch",
    "plain_params",
    "question",
    "redacted_json",
    "redacted_json_text",
]

Question = tuple[str, str, str, dict[str, Any] | None]
"""What is needed to decide: action type, target, agent, params."""

_TEXTS = ("description", "agent_id", "session_id", "parent_agent_id", "chain_id")
_SECRET_WORDS = (
    "password|passwd|pwd|secret|token|api_key|api-key|authorization|cookie|credential"
    "|private_key|access_key"
)
_SECRET = re.compile(_SECRET_WORDS, re.IGNORECASE)
_IN_SECRETS = (b"pass", b"pwd", b"secret", b"token", b"key", b"auth", b"cookie", b"credential")
"""Each of those words has one of these in it, which are quicker to look for."""
_REDACTED = "[REDACTED]"
_INT64 = range(-(2**63), 2**63)


def dumps(value: object) -> bytes:
    """A value as JSON.

    Raises:
        TypeError: It holds something that JSON has not.
    """
    return orjson.dumps(value)


def dumps_foreign(value: object) -> bytes | None:
    """A value that others made, as JSON; None: it cannot be written.

    Collections that JSON has not become the ones that it has, other values their text.
    """
    try:
        return orjson.dumps(value, default=_plain, option=orjson.OPT_NON_STR_KEYS)
    except (TypeError, ValueError, RecursionError):
        return None


def _plain(value: Any) -> object:
    # As an object, so that secrets in it are found by their names.
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return value._asdict()
    if isinstance(value, Collection) and not isinstance(
        value, str | bytes | bytearray | memoryview
    ):
        return list(value)
    return str(value)


def loads(body: bytes, deepest: int) -> Any:
    """A body's value.

    Args:
        body: JSON in UTF-8.
        deepest: How many objects and lists may stand inside each other.

    Raises:
        InvalidBody: It is no JSON (code `invalid_json`), or nested too deeply.
    """
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        if not body.strip():
            raise InvalidBody("the body is empty; send JSON", "invalid_json") from None
        raise InvalidBody(f"the body is not JSON: {error}", "invalid_json") from None
    # Nothing can be nested deeper than it opens brackets, and counting those is quick.
    if (
        len(body) > 2 * deepest
        and body.count(b"{") + body.count(b"[") > deepest
        and _is_deeper(value, deepest)
    ):
        raise InvalidBody(f"the body is nested deeper than {deepest} levels")
    return value


def loads_own(text: str | bytes) -> Any:
    """The value of JSON that was written here."""
    return orjson.loads(text)


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
    return orjson.loads(memoryview(params))


def _is_utf8(body: bytes) -> bool:
    try:
        body.decode()
    except UnicodeDecodeError:
        return False
    return True


def _is_deeper(value: object, deepest: int) -> bool:
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
        # The parser makes a float of an integer that is too large: which one was sent is unknown.
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


def redacted_json(text: bytes) -> bytes:
    """JSON without the values of keys that are named like secrets, at any depth.

    Args:
        text: JSON as `dumps` writes it: it escapes no letter, so a secret's name shows in it.
    """
    if not _may_name_secrets(text):
        return text
    return orjson.dumps(_redacted(orjson.loads(text)))


def _may_name_secrets(text: bytes) -> bool:
    if text.isascii():  # else there are letters that only the regular expression takes for others
        small = text.lower()
        for part in _IN_SECRETS:
            if part in small:
                break
        else:
            return False
    return _SECRET.search(text.decode()) is not None


def redacted_json_text(text: str) -> str:
    """JSON that others wrote, as `redacted_json` gives it; what is no JSON becomes one of its strings."""
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        value = text
    return orjson.dumps(_redacted(value)).decode()


def _redacted(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: _REDACTED if _SECRET.search(key) else _redacted(member)
            for key, member in value.items()
        }
    if isinstance(value, list):
        return [_redacted(member) for member in value]
    return value
