"""Comparisons of parameters: each compiled into a function of a value, with what it costs.

A value that an operator cannot judge gets a text that says why, never True or False.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Set
from operator import ge, gt, le, lt
from typing import Any

from aegis.messages import json_type, quote
from aegis.policy.regexes import Searches
from aegis_core import Condition, Work

__all__ = [
    "MAX_MATCHED_BYTES",
    "OPERATORS",
    "InvalidCondition",
    "compile_comparison",
    "json_equal",
]

MAX_MATCHED_BYTES = 64 * 1024
"""The longest text that `param_matches` judges: keeps the time of a decision bounded."""

_EXACT = 2**53  # below, every integer is a float too
_Test = Callable[[Any, Work], "bool | str"]

_SEARCHED_PER_UNIT = 8
"""So many characters of a text are searched for a part of it for a unit."""
_COMPARED_PER_UNIT = 64
"""So many characters are compared for a unit."""
_MEMBER_UNITS = 2
"""What it takes to look at a member of a list; each list is looked at once for all rules."""
_NESTED_UNITS = 4
"""What it takes to look at a member of a list or object within a value."""
_MAX_DEPTH = 200
"""No value that loads is nested deeper."""


class InvalidCondition(Exception):
    """A part of a condition that cannot be compiled, and why."""


def compile_comparison(
    operator: str, parameter: object, wanted: object, searches: Searches
) -> Condition:
    """Compile the comparison of one parameter.

    Args:
        operator: One of `OPERATORS`.
        parameter: Its name.
        wanted: What it is compared with.
        searches: The regular expressions of the policy's rules.

    Raises:
        InvalidCondition: The operator cannot compare that.
    """
    if not isinstance(parameter, str):
        raise InvalidCondition(
            f"{quote(parameter)} is not text; put the parameter's name in quotes"
        )
    if wanted is None:
        raise InvalidCondition(
            "null is never a value to compare with; a null parameter never holds"
        )
    if operator == "param_matches":
        test = _matches(searches, parameter, wanted)
    else:
        test = _OPERATORS[operator](wanted)

    def holds(params: Mapping[str, Any], _: float, work: Work) -> bool | str:
        value = params.get(parameter)
        if value is None:
            return False
        held = test(value, work)
        return held if held is True or held is False else f"`{operator}.{parameter}`: {held}"

    return holds


def json_equal(left: object, right: object) -> bool:
    """Whether two JSON values are equal: `true` is not 1, numbers compare as numbers."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, int | float):
        return isinstance(right, int | float) and left == right
    if isinstance(left, list | tuple):
        return (
            isinstance(right, list | tuple)
            and len(left) == len(right)
            and all(map(json_equal, left, right))
        )
    if isinstance(left, Mapping):
        return (
            isinstance(right, Mapping)
            and left.keys() == right.keys()
            and all(json_equal(value, right[key]) for key, value in left.items())
        )
    if isinstance(left, str):
        return isinstance(right, str) and left == right
    return left is None and right is None


def _equals(wanted: object) -> _Test:
    units = _size(wanted)
    if type(wanted) is str and not units:
        return lambda value, _: value == wanted if type(value) is str else json_equal(value, wanted)

    def test(value: object, work: Work) -> bool | str:
        return json_equal(value, wanted) if work.spend(units) else work.reason

    return test


def _size(value: object, depth: int = 0) -> int:
    """The units that a comparison with a value of a policy takes besides that of its rule."""
    if depth > _MAX_DEPTH:
        return 0
    if isinstance(value, str):
        return len(value) // _COMPARED_PER_UNIT
    if isinstance(value, Mapping):
        members = value.items()
        return _NESTED_UNITS * len(value) + sum(
            _size(name) + _size(each, depth + 1) for name, each in members
        )
    if isinstance(value, list | tuple):
        return _NESTED_UNITS * len(value) + sum(_size(each, depth + 1) for each in value)
    return 0


def _ordered(compare: Callable[[Any, Any], bool]) -> Callable[[Any], _Test]:
    def compiled(wanted: object) -> _Test:
        if isinstance(wanted, bool) or not isinstance(wanted, int | float | str):
            raise InvalidCondition(
                f"must be a number or text to compare with, not {json_type(wanted)}"
            )
        units = _size(wanted)

        def of_text(value: object, work: Work) -> bool | str:
            if not isinstance(value, str):
                return f"{json_type(value)} cannot be compared with {json_type(wanted)}"
            return compare(value, wanted) if work.spend(units) else work.reason

        def of_number(value: object, _: Work) -> bool | str:
            # Not a number (NaN) is unequal to itself and would compare as false with anything.
            if type(value) is int or (
                isinstance(value, int | float) and not isinstance(value, bool) and value == value
            ):
                return compare(value, wanted)
            return f"{json_type(value)} cannot be compared with {json_type(wanted)}"

        return of_text if isinstance(wanted, str) else of_number

    return compiled


def _contains(wanted: object) -> _Test:
    part = wanted if isinstance(wanted, str) else None

    def test(value: object, work: Work) -> bool | str:
        if part is not None and isinstance(value, str):
            units = len(value) // _SEARCHED_PER_UNIT
            return part in value if not units or work.spend(units) else work.reason
        if isinstance(value, list | tuple):
            return _has_member(value, wanted, work)
        if part is not None and isinstance(value, Mapping):
            return wanted in value
        return f"{json_type(value)} cannot contain {json_type(wanted)}"

    return test


class _TooMuch(Exception):
    """The work that is left does not suffice."""


def _has_member(value: list[Any] | tuple[Any, ...], wanted: object, work: Work) -> bool | str:
    """Whether a list has a member that `json_equal` says is equal."""
    members: Set[object] | None = work.memo.get(id(value))  # the action keeps it alive meanwhile
    try:
        if members is None:
            if not work.spend(_MEMBER_UNITS * len(value)):
                return work.reason
            # Most members are texts, for which a call is spared.
            members = work.memo[id(value)] = {
                member if type(member) is str else _hashable(member, work) for member in value
            }
        return _hashable(wanted, work) in members
    except _TooMuch:
        return work.reason


def _hashable(value: object, work: Work) -> object:
    """What is equal, as Python compares, where `json_equal` says that values are.

    Raises:
        _TooMuch: There is more in it than work is left for.
    """
    if isinstance(value, bool):
        return bool, value
    if isinstance(value, int | float):
        if -_EXACT < value < _EXACT or value != value:
            return value
        # The hash of a larger one is known beforehand, so that many of the same could be sent.
        return (int, hex(int(value))) if isinstance(value, int) or value.is_integer() else value
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple):
        _spend(work, _NESTED_UNITS * len(value))
        return list, tuple([_hashable(member, work) for member in value])
    if isinstance(value, Mapping):
        _spend(work, _NESTED_UNITS * len(value))
        return dict, frozenset((name, _hashable(member, work)) for name, member in value.items())
    return None if value is None else (object, id(value))  # what JSON has not equals nothing


def _spend(work: Work, units: int) -> None:
    if not work.spend(units):
        raise _TooMuch


def _matches(searches: Searches, parameter: str, wanted: object) -> _Test:
    if not isinstance(wanted, str):
        quotes = "" if isinstance(wanted, list | tuple | Mapping) else "; put it in quotes"
        raise InvalidCondition(f"must be a regular expression, not {json_type(wanted)}{quotes}")
    try:
        search = searches.add(parameter, wanted)
    except ValueError as error:
        raise InvalidCondition(str(error)) from None

    found_in, units = search.found_in, search.units

    def test(value: object, work: Work) -> bool | str:
        text = value if isinstance(value, str) else _written(value)
        if text is None:
            return f"{json_type(value)} cannot be searched"
        size = len(text) if text.isascii() else len(text.encode())
        if size > MAX_MATCHED_BYTES:
            return f"{size} bytes are too long to be searched; at most {MAX_MATCHED_BYTES}"
        return found_in(text) if work.spend(units(size)) else work.reason

    return test


def _written(value: object) -> str | None:
    """A value that is no text as JSON has it; None: it is not searched."""
    return json.dumps(value) if isinstance(value, bool | int | float) else None


_OPERATORS: dict[str, Callable[[Any], _Test]] = {
    "param_eq": _equals,
    "param_gt": _ordered(gt),
    "param_lt": _ordered(lt),
    "param_gte": _ordered(ge),
    "param_lte": _ordered(le),
    "param_contains": _contains,
}

OPERATORS = frozenset([*_OPERATORS, "param_matches"])
"""The names of the conditions that compare a parameter."""
