"""Values that JSON has: which ones a document may hold, read from a text or made in Python."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping

from aegis.messages import json_type, quote

__all__ = [
    "HALF_A_PAIR",
    "MAX_EXPANDED_NODES",
    "MAX_NESTING",
    "NO_NUMBER",
    "TOO_DEEP",
    "check_value",
    "is_encodable",
    "is_number_of_json",
]

MAX_NESTING = 64
MAX_EXPANDED_NODES = 100_000
"""How many nodes aliases, or objects used more than once, may add to those that are written."""

HALF_A_PAIR = "holds half of a surrogate pair, which is not a character"
NO_NUMBER = f"is not a number that JSON has, of at most {sys.get_int_max_str_digits()} digits"
TOO_DEEP = f"nested deeper than {MAX_NESTING} levels"


def is_number_of_json(value: object) -> bool:
    """Whether a value is a number that can be written as JSON and read again as it was."""
    if isinstance(value, float):
        return math.isfinite(value)
    if not isinstance(value, int):
        return False
    try:
        str(value)
    except ValueError:  # Python writes and reads integers of some thousand digits only
        return False
    return True


def is_encodable(text: str) -> bool:
    """Whether a text has only whole characters."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_value(value: object, key: str) -> list[tuple[str, str]]:
    """What of a value cannot be written as JSON.

    Args:
        value: Anything; it may hold itself, or the same part many times.
        key: What the value is called.

    Returns:
        The key of each problem, and the problem.

    Cost: grows with the parts that there are, not with how often each of them is used.
    """
    check = _Check()
    check.visit(value, key, 0)
    return check.problems


class _Check:
    """Visits each container once, and knows its size when it meets it again."""

    def __init__(self) -> None:
        self.problems: list[tuple[str, str]] = []
        self._expanded = 0
        # By `id`: the container, so that the id stays taken, its nodes and its height; None while
        # it is being visited.
        self._visited: dict[int, tuple[object, int, int] | None] = {}

    def visit(self, value: object, key: str, depth: int) -> tuple[int, int]:
        """Check a value; how many nodes it has, and how many levels."""
        if depth > MAX_NESTING:
            self.problems.append((key, TOO_DEEP))
        elif not isinstance(value, Mapping | list | tuple):
            message = _problem_of_scalar(value)
            if message is not None:
                self.problems.append((key, message))
        elif id(value) in self._visited:
            return self._visit_again(self._visited[id(value)], key, depth)
        else:
            return self._visit_container(value, key, depth)
        return 1, 0

    def _visit_container(
        self,
        value: Mapping[object, object] | list[object] | tuple[object, ...],
        key: str,
        depth: int,
    ) -> tuple[int, int]:
        self._visited[id(value)] = None
        nodes, height = 1, 0
        for member_key, member in self._members(value, key):
            member_nodes, member_height = self.visit(member, member_key, depth + 1)
            nodes += member_nodes
            height = max(height, member_height + 1)
        self._visited[id(value)] = value, nodes, height
        return nodes, height

    def _members(
        self, value: Mapping[object, object] | list[object] | tuple[object, ...], key: str
    ) -> Iterator[tuple[str, object]]:
        if not isinstance(value, Mapping):
            for index, member in enumerate(value):
                yield f"{key}[{index}]", member
            return
        for name, member in value.items():
            if not isinstance(name, str):
                self.problems.append((key, f"key {quote(name)} is not text; put it in quotes"))
            elif not is_encodable(name):
                self.problems.append((key, HALF_A_PAIR))
            yield f"{key}.{name}", member

    def _visit_again(
        self, known: tuple[object, int, int] | None, key: str, depth: int
    ) -> tuple[int, int]:
        if known is None:
            self.problems.append((key, "holds itself, so that it cannot be written as JSON"))
            return 1, 0
        _, nodes, height = known
        if depth + height > MAX_NESTING:
            self.problems.append((key, TOO_DEEP))
        was_within = self._expanded <= MAX_EXPANDED_NODES
        self._expanded += nodes
        if was_within and self._expanded > MAX_EXPANDED_NODES:
            message = f"values used more than once expand to over {MAX_EXPANDED_NODES} nodes"
            self.problems.append((key, message))
        return nodes, height


def _problem_of_scalar(value: object) -> str | None:
    if isinstance(value, str):
        return None if is_encodable(value) else HALF_A_PAIR
    if value is None or is_number_of_json(value):
        return None
    if isinstance(value, int | float):
        return f"{quote(value)} {NO_NUMBER}"
    return f"must be a value that JSON has, not {json_type(value)}"
