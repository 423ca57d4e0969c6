"""JSON in and out: bodies to values, values to bytes. The only JSON of the server.

Decisions are written by the engine itself, which has each rule's fragment ready.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any

import msgspec
import orjson

from aegis.errors import InvalidBody
from aegis.messages import quote
from aegis_core import may_exceed_64_bits

__all__ = [
    "MAX_FOREIGN_DEPTH",
    "UNWRITABLE",
    "dumps",
    "dumps_foreign",
    "encodable",
    "exact",
    "is_deeper",
    "loads",
    "loads_inexact",
    "loads_own",
    "refuse_repeated",
    "written",
]

UNWRITABLE = "[UNWRITABLE]"
"""Stands for the parts of a value that JSON has no form for, and that have no text either."""
MAX_FOREIGN_DEPTH = 200
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
        around: The collections that it is in, by `id`.
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
    if id(value) in around or len(around) == MAX_FOREIGN_DEPTH:
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


def loads(body: bytes, max_depth: int) -> Any:
    """A body's value.

    Args:
        body: JSON in UTF-8.
        max_depth: How many objects and lists may be nested in each other.

    Raises:
        InvalidBody: It is not JSON (code `invalid_json`), or nested too deeply.
    """
    try:
        value = _parsed_exactly(body) if may_exceed_64_bits(body) else orjson.loads(body)
    except ValueError as error:
        if not body.strip():
            raise InvalidBody("the body is empty; send JSON", "invalid_json") from None
        if "number is infinity" in str(error):
            error = _TooLarge()
        raise InvalidBody(f"the body is not JSON: {error}", "invalid_json") from None
    if len(body) > 2 * max_depth and body.count(b"{") + body.count(b"[") > max_depth:
        _refuse_deeper(value, max_depth)
    return value


def loads_inexact(body: bytes, max_depth: int) -> Any:
    """As `loads`, and quicker; integers of over 64 bits may become floats: `exact` mends that."""
    try:
        value = orjson.loads(body)
    except ValueError:  # an integer may be too large for a float
        return loads(body, max_depth)
    # Nothing can be nested deeper than it opens brackets, and counting those is quick.
    if len(body) > 2 * max_depth and body.count(b"{") + body.count(b"[") > max_depth:
        _refuse_deeper(value, max_depth)
    return value


def _refuse_deeper(value: object, max_depth: int) -> None:
    if is_deeper(value, max_depth):
        raise InvalidBody(f"the body is nested deeper than {max_depth} levels")


def exact(value: Any, body: bytes) -> Any:
    """What `loads_inexact` gave of a body, with integers of over 64 bits that are exact."""
    return _parsed_exactly(body) if may_exceed_64_bits(body) else value


def refuse_repeated(body: bytes) -> None:
    """Check that no member of a body that `loads` has read appears twice.

    Raises:
        InvalidBody: One does.

    Cost: as much as to read it several times.
    """
    json.loads(body, object_pairs_hook=_without_repeated)


def _without_repeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members: dict[str, Any] = {}
    for name, value in pairs:
        if name in members:
            raise InvalidBody(f"{quote(name)} stands twice; send it once")
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


def is_deeper(value: object, max_depth: int) -> bool:
    """Whether more objects and lists are nested in each other in a JSON value."""
    level = [value]
    for _ in range(max_depth):
        level = [
            member
            for container in level
            if isinstance(container, dict | list)
            for member in (container.values() if isinstance(container, dict) else container)
        ]
    return any(isinstance(value, dict | list) for value in level)
