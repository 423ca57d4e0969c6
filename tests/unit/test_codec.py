"""Bodies to values, and values to bytes."""

from __future__ import annotations

import json
import re
from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from types import MappingProxyType
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis.codec import (
    dumps,
    dumps_foreign,
    loads,
    loads_own,
)
from aegis.errors import InvalidBody
from aegis_core import may_exceed_64_bits


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


# --- numbers -------------------------------------------------------------------------------------

integers = st.one_of(
    st.integers(),
    st.integers(-(10**60), 10**60),
    st.sampled_from([0, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**4299, 1 - 10**4299]),
    st.sampled_from([-(2**63), -(2**63) - 1, -(2**64), 10**18, 10**19, -(10**18), -(10**19)]),
)
numbers = integers | st.floats(allow_nan=False, allow_infinity=False)
scalars = numbers | st.booleans() | st.none() | st.text() | st.text("0123456789-", max_size=25)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=22), inner, max_size=4)
    ),
    max_leaves=10,
)


@given(values, st.booleans())
def test_values_are_read_and_written_exactly(value: Any, is_ascii: bool) -> None:
    read = loads(json.dumps(value, ensure_ascii=is_ascii).encode(), 64)
    assert repr(read) == repr(value)  # 1 and 1.0, and 0.0 and -0.0, are different
    for write in (dumps, dumps_foreign):
        assert repr(loads_own(write(value))) == repr(value)


@given(
    st.lists(
        st.text("0123456789:-/a", max_size=24) | st.integers(15, 23).map(lambda n: "7" * n)
    ).map("".join)
)
def test_large_integers_are_found_wherever_they_stand(text: str) -> None:
    assert may_exceed_64_bits(text.encode()) is bool(re.search(r"\d{20}|-\d{19}", text))


@given(st.integers(17, 22), st.integers(0, 40), st.sampled_from(["", "-"]))
def test_integer_is_exact_wherever_it_stands(digits: int, place: int, sign: str) -> None:
    number = f"{sign}{'9' * digits}"
    assert loads(f'{{"{"a" * place}":[{number}]}}'.encode(), 64) == {"a" * place: [int(number)]}


@pytest.mark.parametrize("body", [b"1" * 4301, b"[-" + b"9" * 100_000 + b"]", b"1e400", b"-1e400"])
def test_number_that_is_too_large_is_refused_and_told(body: bytes) -> None:
    assert "a number that is too large; integers have at most 4300 digits" in str(refusal(body))
    assert refusal(body).code == "invalid_json"


@pytest.mark.parametrize(
    "body",
    [b"0" + b"1" * 30, b'["\xff", ' + b"1" * 30 + b"]", rb'["\ud800", ' + b"1" * 30 + b"]"]
    + [b"1" * 30 + end for end in (b"]", b".", b"e", b" 1", b",")],
)
def test_what_is_no_json_is_refused_beside_large_integers(body: bytes) -> None:
    assert refusal(body).code == "invalid_json"


def test_large_integers_do_not_hide_deep_nesting() -> None:
    body = b"[" * 5_000 + b"1" * 30 + b"]" * 5_000
    assert refusal(body).status == 400


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


class Unprintable:
    """A value that cannot be turned into text."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


class Stopping:
    def __str__(self) -> str:
        raise SystemExit(1)


@dataclass
class Point:
    """What `orjson` writes itself, and `dumps_foreign` does where a part is odd."""

    x: Any
    _hidden: int = 0


class Colour(Enum):
    RED = "red"


def circular() -> list[Any]:
    inside: list[Any] = []
    inside.append(inside)
    return inside


def deep(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


MOMENT = datetime(2026, 1, 31, 18, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("odd", "written"),
    [
        ("caf\udce9", "caf\\udce9"),
        ({"caf\udce9": 1}, {"caf\\udce9": 1}),
        ({(1, 2): 3}, {"(1, 2)": 3}),
        ({Named(): 3}, {"its text": 3}),
        ({Unprintable(): 3}, {"[UNWRITABLE]": 3}),
        (2**70, 2**70),
        (-(2**70), -(2**70)),
        (10**4299, 10**4299),
        (10**4300, "[UNWRITABLE]"),
        (float("nan"), None),
        ({1}, [1]),
        (b"x", "b'x'"),
        (Unprintable(), "[UNWRITABLE]"),
        (Stopping(), "[UNWRITABLE]"),
        (circular(), ["[UNWRITABLE]"]),
        (deque([2**70]), [2**70]),
        (MappingProxyType({"a": 2**70}), {"a": 2**70}),
        (Point(2**70), {"x": 2**70}),
        (Point, str(Point)),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("beside", ["\ud800", {2**64: 1}, 2**64, Unprintable(), None], ids=range(5))
def test_odd_parts_are_replaced_and_the_rest_is_kept(odd: Any, written: Any, beside: Any) -> None:
    rest = {
        "a": [1, 1.5, "ä", True, None],
        "b": MOMENT,
        "c": (1,),
        "d": Colour.RED,
        5: UUID(int=0),
        MOMENT: Point(0),
    }
    found = json.loads(dumps_foreign([odd, rest, odd, beside]))
    assert found[:3] == [
        written,
        {
            "a": [1, 1.5, "ä", True, None],
            "b": "2026-01-31T18:00:00+00:00",
            "c": [1],
            "d": "red",
            "5": "00000000-0000-0000-0000-000000000000",
            "2026-01-31T18:00:00+00:00": {"x": 0},
        },
        written,
    ]


def test_what_is_nested_too_deeply_is_cut() -> None:
    value = json.loads(dumps_foreign(["kept", deep(5_000)]))
    assert value[0] == "kept"
    assert dumps_foreign(deep(5_000)).count(b"[") == 201
    assert json.loads(dumps_foreign(deep(150))) == deep(150)


def test_what_stands_twice_is_not_circular() -> None:
    same = [2**70]
    assert json.loads(dumps_foreign([same, same])) == [same, same]
