"""JSON to plain values, and the line of each: all of JSON is taken, and means what JSON means by it."""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn

from aegis.documents.reader import Document, Reader, repeated_key
from aegis.documents.values import (
    HALF_A_PAIR,
    MAX_NESTING,
    NO_NUMBER,
    TOO_DEEP,
    is_encodable,
    is_number_of_json,
)
from aegis.errors import Problems
from aegis.messages import quote

__all__ = ["read_json"]

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\]\n]|[^\s{}\[\]:,"]+')
"""Strings, brackets, other scalars, and ends of lines; what is between them says no more."""


def read_json(source: str) -> Document | None:
    """Read a text as JSON; None: it is not JSON.

    Raises:
        PolicyError: It cannot be read on.
    """
    document = _read_line(source)
    if document is not None:
        return document
    return _JsonReader(source).read() if _is_json(source) else None


def _is_json(source: str) -> bool:
    try:
        json.loads(source, parse_int=str)
    except (ValueError, RecursionError):
        return False
    return True


_HALF_OF_A_PAIR = re.compile(r"\\u[dD][89a-fA-F]")
"""What may be half of a pair, written as an escape."""


class _Doubtful(Exception):
    """Something that the reader of tokens has to look at."""


class _First(dict[Any, int]):
    """The lines of the parts of a container in the first line."""

    def __missing__(self, _key: object) -> int:
        return 1


class _FirstLine(dict[int, dict[Any, int]]):
    """The lines of a text that has but one."""

    def __missing__(self, _key: object) -> dict[Any, int]:
        return _First()

    def get(self, _key: object, _default: object = None) -> Any:
        return _First()


def _read_line(source: str) -> Document | None:
    """Read JSON written in one line, as programs send it; None: it must be read with more care.

    Cost: a sixth of that of the reader of tokens.
    """
    if "\n" in source.rstrip() or _HALF_OF_A_PAIR.search(source):
        return None
    try:
        value = json.loads(
            source,
            object_pairs_hook=_members,
            parse_float=_float,
            parse_constant=_refuse,
        )
    except (ValueError, RecursionError, _Doubtful):
        return None
    return None if _is_deep(value) else Document(value, _FirstLine(), Problems())


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):  # a repeated key
        raise _Doubtful
    return members


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise _Doubtful
    return value


def _refuse(_text: str) -> NoReturn:
    raise _Doubtful


def _is_deep(value: Any) -> bool:
    """Whether containers are nested deeper than they may be."""
    level = [value]
    for _ in range(MAX_NESTING):
        level = [
            member
            for container in level
            for member in (container.values() if isinstance(container, dict) else container)
            if isinstance(member, dict | list)
        ]
        if not level:
            return False
    return True


class _JsonReader(Reader):
    """Builds plain values from the tokens of a text that is known to be JSON."""

    def __init__(self, source: str) -> None:
        super().__init__(source)
        self.root: Any = None

    def read(self) -> Document:
        line = 1
        for match in _TOKEN.finditer(self.source):
            token = match[0]
            if token == "\n":
                line += 1
            else:
                self._take(token, line)
        self._name_rules()
        return Document(self.root, self.lines, self.problems)

    def _take(self, token: str, line: int) -> None:
        if token in "}]":
            self.open.pop()
            self.keys.pop()
            self._go_on()
        elif token in "{[":
            container: Any = {} if token == "{" else []
            self._add(container, line)
            self.lines[id(container)] = {None: line}
            self.open.append(container)
            self.keys.append(None if token == "{" else 0)
            if len(self.open) > MAX_NESTING:
                raise self._refused(TOO_DEEP, line)
        elif token.startswith('"') and self._expects_key():
            self._take_key(self._scalar(token, line), line)
        else:
            self._add(self._scalar(token, line), line)
            self._go_on()

    def _expects_key(self) -> bool:
        return isinstance(self.open[-1], dict) and self.keys[-1] is None

    def _take_key(self, key: str, line: int) -> None:
        self.keys[-1] = key
        lines = self.lines[id(self.open[-1])]
        if key in lines:
            self._add_problem(repeated_key(key, lines[key]), line)
        else:
            lines[key] = line

    def _add(self, value: Any, line: int) -> None:
        if not self.open:
            self.root = value
        elif isinstance(self.open[-1], list):
            self.lines[id(self.open[-1])][len(self.open[-1])] = line
            self.open[-1].append(value)
        else:
            self.open[-1].setdefault(self.keys[-1], value)

    def _go_on(self) -> None:
        """To the next member or item of what is open."""
        if self.open:
            self.keys[-1] = len(self.open[-1]) if isinstance(self.open[-1], list) else None

    def _scalar(self, token: str, line: int) -> Any:
        try:
            value = json.loads(token)
        except ValueError:  # an integer of thousands of digits
            value = math.inf
        if isinstance(value, str) and not is_encodable(value):
            self._add_problem(f"{quote(token)} {HALF_A_PAIR}", line)
            return ""
        if is_number_of_json(value) or not isinstance(value, int | float):
            return value
        self._add_problem(f"{quote(token)} {NO_NUMBER}", line)
        return 0
