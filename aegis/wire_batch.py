"""Batches of plain actions, read without an object of ours for each param.

What is not plain is left to `wire`, which also finds the words for what is wrong.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from aegis.codec import loads
from aegis.wire import Questions
from aegis.wire import read_questions as read_carefully
from aegis_core import brackets_in, brackets_in_object

__all__ = ["PLAIN_BATCH", "plain_batch", "plain_params", "read_plain", "read_questions"]

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
_decode = msgspec.json.Decoder().decode  # keeps integers exact, whatever their size


def read_questions(body: bytes, max_actions: int, max_depth: int) -> Questions:
    """What a body asks to decide, whatever it is.

    Args:
        body: JSON in UTF-8.
        max_actions: How many actions it may have.
        max_depth: How many objects and lists may be nested in each other.

    Raises:
        InvalidBody: Something is wrong.
    """
    return read_plain(body, max_actions, max_depth) or read_carefully(
        loads(body, max_depth), max_actions
    )


def read_plain(body: bytes, max_actions: int, max_depth: int) -> Questions | None:
    """As `read_questions`; None: it is not a batch of plain actions."""
    items = plain_batch(body, max_actions, max_depth)
    return None if items is None else Questions(items, True, plain_params)


def plain_batch(
    body: bytes, max_actions: int, max_depth: int
) -> list[tuple[str, str, str, msgspec.Raw]] | None:
    """The questions of a batch of plain actions: `{"actions": […]}` with nothing odd in it.

    Args:
        body: JSON in UTF-8.
        max_actions: How many actions it may have.
        max_depth: How many objects and lists may be nested in each other.

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
    if brackets < 0 or len(actions) > max_actions or not (body.isascii() or _is_utf8(body)):
        return None
    # A thousand times each: no loop of our own.
    params = [action.params for action in actions]
    in_params = list(map(brackets_in_object, params))
    counts = set(in_params)
    if min(counts, default=1) <= 0 or max(counts, default=1) > max_depth - 3:
        return None
    # Brackets that are left over are in strings, or in a member that appears twice and was not
    # checked; those of params that were left out are not in the body.
    left_over = brackets - 2 - len(actions) - sum(in_params)
    if left_over and left_over + sum(one is _NO_PARAMS for one in params):
        return None
    return list(map(msgspec.structs.astuple, actions))  # as its fields stand


def plain_params(params: msgspec.Raw) -> Any:
    """The params of a plain action."""
    return _decode(params)


def _is_utf8(body: bytes) -> bool:
    try:
        body.decode()
    except UnicodeDecodeError:
        return False
    return True
