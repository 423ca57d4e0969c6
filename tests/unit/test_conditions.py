"""What each condition says: that it holds, that it does not, or that it cannot be judged."""

from __future__ import annotations

import contextlib
import math
from datetime import UTC, datetime
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis import Action, Policy, PolicyError, PolicyRule
from aegis.policy.comparisons import MAX_MATCHED_BYTES, json_equal
from aegis.policy.conditions import CONDITIONS, compile_conditions, needs
from aegis_core import Work

UNKNOWN = "cannot be judged"
"""Stands for any text that says why."""

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC).timestamp()


def said(conditions: dict[str, Any], params: dict[str, Any], now: float = NOW) -> object:
    """True, False or `UNKNOWN`."""
    condition = compile_conditions(conditions)
    assert condition is not None
    held = condition(params, now, Work())
    if isinstance(held, str):
        assert held
        return UNKNOWN
    assert type(held) is bool
    return held


def at(moment: str, **conditions: Any) -> object:
    """What conditions on time say at this moment."""
    return said(conditions, {}, datetime.fromisoformat(moment).timestamp())


# --- operators -----------------------------------------------------------------------------------

EQUAL: list[tuple[Any, Any, object]] = [
    (1, 1, True),
    (1, 1.0, True),
    (1.0, 1, True),
    (0, -0.0, True),
    (1, 2, False),
    (1, True, False),
    (True, 1, False),
    (True, True, True),
    (False, False, True),
    (False, 0, False),
    (0, False, False),
    (1, "1", False),
    ("1", 1, False),
    ("a", "a", True),
    ("a", "A", False),
    ("é", "e\u0301", False),
    ("", "", True),
    ("", False, False),
    (2**53 + 1, float(2**53), False),
    (0.1, 0.1, True),
    ([], [], True),
    ([], {}, False),
    ([1, 2], [1, 2.0], True),
    ([1, 2], [2, 1], False),
    ([1], [1, 1], False),
    ([1], [True], False),
    ([None], [None], True),
    ([None], [False], False),
    ({}, {}, True),
    ({"a": 1}, {"a": 1.0}, True),
    ({"a": 1}, {"a": True}, False),
    ({"a": 1}, {"a": 1, "b": 2}, False),
    ({"a": 1, "b": 2}, {"a": 1}, False),
    ({"a": None}, {}, False),
    ({"a": [{"b": 1}]}, {"a": [{"b": 1}]}, True),
    ("a", ["a"], False),
]

# Wanted, value, and what `param_gt`, `param_gte`, `param_lt` and `param_lte` say.
ORDER: list[tuple[Any, Any, tuple[object, object, object, object]]] = [
    (100, 101, (True, True, False, False)),
    (100, 100, (False, True, False, True)),
    (100, 99, (False, False, True, True)),
    (100, 100.5, (True, True, False, False)),
    (100.0, 100, (False, True, False, True)),
    (2**53, 2**53 + 1, (True, True, False, False)),
    (float(2**53), 2**53 + 1, (True, True, False, False)),
    (-1, 0, (True, True, False, False)),
    (0, -0.0, (False, True, False, True)),
    (1, math.inf, (True, True, False, False)),
    ("b", "c", (True, True, False, False)),
    ("b", "b", (False, True, False, True)),
    ("b", "a", (False, False, True, True)),
    ("b", "B", (False, False, True, True)),
    ("10", "9", (True, True, False, False)),
    ("", "a", (True, True, False, False)),
    ("z", "é", (True, True, False, False)),
    ("\uffff", "\U00010000", (True, True, False, False)),
    (1, "2", (UNKNOWN,) * 4),
    ("1", 2, (UNKNOWN,) * 4),
    (1, True, (UNKNOWN,) * 4),
    ("a", True, (UNKNOWN,) * 4),
    (1, [2], (UNKNOWN,) * 4),
    (1, {}, (UNKNOWN,) * 4),
    ("a", ["b"], (UNKNOWN,) * 4),
    (1, math.nan, (UNKNOWN,) * 4),
]

CONTAINS: list[tuple[Any, Any, object]] = [
    ("b", "abc", True),
    ("abc", "abc", True),
    ("", "abc", True),
    ("", "", True),
    ("B", "abc", False),
    ("abcd", "abc", False),
    ("b", ["a", "b"], True),
    ("b", ["abc"], False),
    ("b", [], False),
    (1, [1.0], True),
    (1, [True], False),
    (True, [1], False),
    (True, [True], True),
    ([1], [[1]], True),
    ({"a": 1}, [{"a": 1}], True),
    ({"a": 1}, [{"a": 1, "b": 2}], False),
    ("a", {"a": None}, True),
    ("a", {"b": "a"}, False),
    (1, "123", UNKNOWN),
    (True, "true", UNKNOWN),
    (["a"], "a", UNKNOWN),
    (1, {"1": 1}, UNKNOWN),
    ("1", 123, UNKNOWN),
    ("t", True, UNKNOWN),
    (1, 1, UNKNOWN),
]

MATCHES: list[tuple[str, Any, object]] = [
    ("b", "abc", True),
    ("^b", "abc", False),
    ("^a.*c$", "abc", True),
    ("B", "abc", False),
    ("(?i)B", "abc", True),
    ("", "", True),
    ("^$", "", True),
    (".", "\n", False),
    ("(?s).", "\n", True),
    ("a$", "a\n", False),
    ("^.$", "é", True),
    ("^.$", "\U0001f600", True),
    (r"^\d+$", "\u0661", False),
    ("a\x00b", "xa\x00by", True),
    (r"\.env$", "/home/.env", True),
    ("^12$", 12, True),
    ("^1\\.5$", 1.5, True),
    ("^1\\.0$", 1.0, True),
    ("^-", -1, True),
    ("^true$", True, True),
    ("^false$", False, True),
    ("True", True, False),
    ("a", ["a"], UNKNOWN),
    ("a", {"a": 1}, UNKNOWN),
]


@pytest.mark.parametrize(("wanted", "value", "expected"), EQUAL)
def test_param_eq(wanted: Any, value: Any, expected: object) -> None:
    assert said({"param_eq": {"p": wanted}}, {"p": value}) is expected


@pytest.mark.parametrize(("wanted", "value", "expected"), ORDER)
def test_order(wanted: Any, value: Any, expected: tuple[object, ...]) -> None:
    operators = ("param_gt", "param_gte", "param_lt", "param_lte")
    assert tuple(said({name: {"p": wanted}}, {"p": value}) for name in operators) == expected


@pytest.mark.parametrize(("wanted", "value", "expected"), CONTAINS)
def test_param_contains(wanted: Any, value: Any, expected: object) -> None:
    assert said({"param_contains": {"p": wanted}}, {"p": value}) is expected


@pytest.mark.parametrize(("wanted", "value", "expected"), MATCHES)
def test_param_matches(wanted: str, value: Any, expected: object) -> None:
    assert said({"param_matches": {"p": wanted}}, {"p": value}) is expected


@pytest.mark.parametrize("operator", sorted(name for name in CONDITIONS if "param" in name))
@pytest.mark.parametrize("params", [{}, {"p": None}, {"P": "a"}, {"p ": "a"}, {"x": {"p": "a"}}])
def test_missing_or_null_parameter_does_not_hold(operator: str, params: dict[str, Any]) -> None:
    assert said({operator: {"p": "a"}}, params) is False


@pytest.mark.parametrize("name", ["a.b", "a[0]", "", "ä", "*"])
def test_name_of_a_parameter_is_literal(name: str) -> None:
    assert said({"param_eq": {name: 1}}, {name: 1}) is True
    assert said({"param_eq": {name: 1}}, {"a": {"b": 1}, "b": 1}) is False


def test_every_parameter_of_a_condition_counts() -> None:
    conditions = {"param_eq": {"a": 1, "b": 2}}
    assert said(conditions, {"a": 1, "b": 2}) is True
    assert said(conditions, {"a": 1, "b": 3}) is False
    assert said(conditions, {"a": 1}) is False


def test_every_condition_counts() -> None:
    conditions = {"param_gt": {"n": 1}, "param_lt": {"n": 5}, "param_contains": {"tags": "x"}}
    assert said(conditions, {"n": 3, "tags": ["x"]}) is True
    assert said(conditions, {"n": 3, "tags": []}) is False
    assert said(conditions, {"n": 5, "tags": ["x"]}) is False


def test_no_conditions_are_none() -> None:
    assert compile_conditions({}) is None


# --- the length of what is searched --------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a" * MAX_MATCHED_BYTES, True),
        ("a" * MAX_MATCHED_BYTES + "b", UNKNOWN),
        ("é" * (MAX_MATCHED_BYTES // 2), False),
        ("é" * (MAX_MATCHED_BYTES // 2 + 1), UNKNOWN),
        ("a" + "\U0001f600" * (MAX_MATCHED_BYTES // 4), UNKNOWN),
    ],
    ids=["64 KiB", "over", "64 KiB of two bytes", "over of two bytes", "over of four bytes"],
)
def test_value_over_64_kib_in_utf8_cannot_be_judged(text: str, expected: object) -> None:
    assert MAX_MATCHED_BYTES == 64 * 1024
    assert said({"param_matches": {"p": "a"}}, {"p": text}) is expected


def test_search_takes_linear_time() -> None:
    text = "a" * MAX_MATCHED_BYTES
    assert said({"param_matches": {"p": "(a+)+$b"}}, {"p": text}) is False
    assert said({"param_matches": {"p": "(a|aa)*c"}}, {"p": text}) is False


# --- false, unknown, true ------------------------------------------------------------------------

FALSE, TRUE, DARK = {"f": 2}, {"t": 1}, {"u": "text"}
PARTS: dict[str, tuple[str, dict[str, Any]]] = {
    "false": ("param_eq", {"f": 1}),
    "true": ("param_gte", {"t": 1}),
    "unknown": ("param_gt", {"u": 1}),
    "other unknown": ("param_lt", {"u": 1}),
}
PARAMS = FALSE | TRUE | DARK


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("false", "unknown"), False),
        (("unknown", "false"), False),
        (("unknown", "other unknown", "false"), False),
        (("true", "unknown", "false"), False),
        (("true", "unknown"), UNKNOWN),
        (("unknown", "true"), UNKNOWN),
        (("unknown", "other unknown"), UNKNOWN),
        (("true", "false"), False),
        (("true",), True),
    ],
)
def test_false_settles_before_unknown_in_any_order(
    names: tuple[str, ...], expected: object
) -> None:
    assert said(dict(PARTS[name] for name in names), PARAMS) is expected


@pytest.mark.parametrize("parameters", [{"u": 1, "f": 3}, {"f": 3, "u": 1}])
def test_false_settles_before_unknown_within_a_condition(parameters: dict[str, int]) -> None:
    assert said({"param_gt": parameters}, PARAMS) is False


@pytest.mark.parametrize("first", ["param_matches", "param_eq"])
def test_false_settles_before_a_failure_in_any_order(first: str) -> None:
    both = {"param_matches": {"half": "x"}, "param_eq": {"f": 1}}
    condition = compile_conditions({first: both.pop(first), **both})
    assert condition is not None
    assert condition({"half": "\ud800", "f": 2}, NOW, Work()) is False
    with pytest.raises(UnicodeEncodeError):
        condition({"half": "\ud800", "f": 1}, NOW, Work())


def test_false_time_settles_before_an_unknown_parameter() -> None:
    assert said({"param_gt": {"u": 1}, "time_before": "00:00"}, PARAMS) is False
    assert said({"param_gt": {"u": 1}, "weekdays": []}, PARAMS) is False
    assert said({"param_gt": {"u": 1}, "time_after": "00:00"}, PARAMS) is UNKNOWN


def test_reason_names_the_condition_and_the_parameter() -> None:
    condition = compile_conditions({"param_gt": {"count": 100}})
    assert condition is not None
    reason = condition({"count": "many"}, NOW, Work())
    assert "param_gt.count" in str(reason)
    assert "many" not in str(reason)


@pytest.mark.parametrize("value", ["\ud800", object(), b"bytes", {1, 2}])
def test_value_that_json_has_not_is_never_a_bypass(value: Any) -> None:
    rule = PolicyRule(conditions={"param_matches": {"p": "x"}})
    decision = Policy((rule,)).evaluate(Action("a", params={"p": value}))
    assert decision.is_allowed is False


# --- time ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("clock", "expected"),
    [
        ("17:59:59.999999", False),
        ("18:00:00", True),
        ("23:59:59", True),
        ("00:00:00", False),
        ("12:00:00", False),
    ],
)
def test_time_after_holds_from_its_minute_to_midnight(clock: str, expected: bool) -> None:
    assert at(f"2026-01-31T{clock}+00:00", time_after="18:00") is expected


@pytest.mark.parametrize(
    ("clock", "expected"),
    [("00:00:00", True), ("05:59:59.999999", True), ("06:00:00", False), ("23:59:59", False)],
)
@pytest.mark.parametrize("written", ["06:00", "6:00"])
def test_time_before_holds_from_midnight_to_its_minute(
    clock: str, expected: bool, written: str
) -> None:
    assert at(f"2026-01-31T{clock}+00:00", time_before=written) is expected


@pytest.mark.parametrize(
    ("clock", "expected"),
    [("08:59", False), ("09:00", True), ("16:59", True), ("17:00", False), ("00:00", False)],
)
def test_window_holds_between_its_ends(clock: str, expected: bool) -> None:
    moment = f"2026-01-31T{clock}:00+00:00"
    assert at(moment, time_after="09:00", time_before="17:00") is expected
    assert at(moment, time_before="17:00", time_after="9:00") is expected


@pytest.mark.parametrize(
    ("clock", "expected"),
    [("21:59", False), ("22:00", True), ("00:00", True), ("05:59", True), ("06:00", False)],
)
def test_window_whose_end_is_earlier_crosses_midnight(clock: str, expected: bool) -> None:
    moment = f"2026-01-31T{clock}:00+00:00"
    assert at(moment, time_after="22:00", time_before="06:00") is expected


@pytest.mark.parametrize("clock", ["00:00", "08:59", "09:00", "09:01", "23:59"])
def test_window_without_length_never_holds(clock: str) -> None:
    moment = f"2026-01-31T{clock}:00+00:00"
    assert at(moment, time_after="09:00", time_before="09:00") is False


def test_time_before_midnight_never_holds_alone() -> None:
    assert at("2026-01-31T00:00:00+00:00", time_before="00:00") is False
    assert at("2026-01-31T23:59:00+00:00", time_after="23:00", time_before="00:00") is True


@pytest.mark.parametrize(
    ("moment", "zone", "expected"),
    [
        ("2026-01-31T16:59:00+00:00", "Europe/Paris", False),
        ("2026-01-31T17:00:00+00:00", "Europe/Paris", True),
        ("2026-07-31T15:59:00+00:00", "Europe/Paris", False),
        ("2026-07-31T16:00:00+00:00", "Europe/Paris", True),
        ("2026-01-31T12:29:00+00:00", "Asia/Kolkata", False),
        ("2026-01-31T12:30:00+00:00", "Asia/Kolkata", True),
        ("2026-01-31T18:00:00+00:00", "UTC", True),
        ("2026-01-31T23:00:00+00:00", "America/New_York", True),
        ("2026-07-31T22:00:00+00:00", "America/New_York", True),
        ("2026-07-31T21:59:00+00:00", "America/New_York", False),
    ],
)
def test_time_is_that_of_the_zone_with_its_summer_time(
    moment: str, zone: str, expected: bool
) -> None:
    assert at(moment, time_after="18:00", timezone=zone) is expected


@pytest.mark.parametrize(
    ("moment", "expected"),
    [
        ("2026-03-29T00:59:00+00:00", False),  # 01:59, and the next minute is 03:00
        ("2026-03-29T01:00:00+00:00", False),
        ("2026-10-25T00:30:00+00:00", True),  # 02:30, for the first time
        ("2026-10-25T01:30:00+00:00", True),  # 02:30, for the second time
        ("2026-10-25T02:00:00+00:00", False),
    ],
)
def test_hour_that_summer_time_skips_or_repeats(moment: str, expected: bool) -> None:
    window = {"time_after": "02:00", "time_before": "03:00"}
    assert at(moment, **window, timezone="Europe/Paris") is expected


@pytest.mark.parametrize("day", range(1, 8))
def test_weekdays_count_from_monday(day: int) -> None:
    moment = f"2026-06-{day:02}T12:00:00+00:00"  # the first of June 2026 is a Monday
    assert at(moment, weekdays=[day]) is True
    assert at(moment, weekdays=[other for other in range(1, 8) if other != day]) is False
    assert at(moment, weekdays=list(range(1, 8))) is True
    assert at(moment, weekdays=[]) is False


def test_weekday_is_that_of_the_zone() -> None:
    sunday = "2026-06-07T23:30:00+00:00"
    assert at(sunday, weekdays=[7]) is True
    assert at(sunday, weekdays=[1], timezone="Europe/Paris") is True
    assert at(sunday, weekdays=[7], timezone="America/New_York") is True


def test_zone_alone_asks_for_nothing() -> None:
    assert at("2026-01-31T12:00:00+00:00", timezone="Europe/Paris") is True


# --- what must all hold --------------------------------------------------------------------------

ATOMS: list[dict[str, Any]] = [
    *({"param_matches": {name: pattern}} for name in "nm" for pattern in ("1", "a")),
    *({operator: {"n": wanted}} for operator in ("param_eq", "param_gt") for wanted in (1, 2, "a")),
    {"param_lt": {"n": 2, "m": 2}},
    {"param_contains": {"n": "a"}},
    {"time_after": "06:00"},
    {"time_after": "18:00"},
    {"time_before": "18:00"},
    {"weekdays": [4]},
    {"weekdays": [4, 5]},
    {"timezone": "UTC"},
    {"timezone": "Asia/Tokyo"},
]
VALUES = [None, 1, 2, "a", "b1", [], ["a"], "\ud800"]
MOMENTS = [
    ({"n": n, "m": m}, hour * 3600.0) for n in VALUES for m in VALUES for hour in (5, 17, 30)
]


def never(conditions: dict[str, Any]) -> frozenset[int]:
    """The numbers of the moments at which these conditions definitely fail."""
    condition = compile_conditions(conditions)
    found: set[int] = set()
    for number, (params, now) in enumerate(MOMENTS):
        with contextlib.suppress(UnicodeEncodeError):  # it blocks, as what cannot be judged does
            if condition is not None and condition(params, now, Work()) is False:
                found.add(number)
    return frozenset(found)


def test_what_needs_more_fails_wherever_what_needs_less_does() -> None:
    written = [one | other for one in ATOMS for other in [{}, *ATOMS]]
    known = [(needs(conditions), never(conditions)) for conditions in written]
    more = 0
    for less, fails in known:
        for needed, also_fails in known:
            if less <= needed:
                more += 1
                assert fails <= also_fails
    assert more > 1_000


# --- compiling -----------------------------------------------------------------------------------


def test_every_problem_is_reported_with_its_key() -> None:
    conditions = {
        "time_after": 1080,
        "timezone": "Mars",
        "param_gt": {"a": True, "b": 1, "c": None},
        "param_matches": {"d": "("},
        "nope": 1,
        "weekdays": "monday",
    }
    with pytest.raises(PolicyError) as refused:
        compile_conditions(conditions)
    assert {problem.key for problem in refused.value.problems} == {
        "time_after",
        "timezone",
        "param_gt.a",
        "param_gt.c",
        "param_matches.d",
        "nope",
        "weekdays",
    }


def test_compiled_condition_keeps_nothing_of_what_was_judged() -> None:
    condition = compile_conditions({"param_matches": {"p": "(a)(b)"}})
    assert condition is not None
    assert [condition({"p": text}, NOW, Work()) for text in ("ab", "x", "ab")] == [
        True,
        False,
        True,
    ]


# --- equality ------------------------------------------------------------------------------------


def canonical(value: Any) -> object:
    """A form in which equal JSON values are equal Python values, whatever their types."""
    match value:
        case None:
            return "null"
        case bool():
            return ("truth", str(value))
        case int() | float():
            return ("number", Fraction(value))
        case str():
            return ("text", value)
        case list():
            return ("list", tuple(canonical(item) for item in value))
        case _:
            members = {(name, canonical(member)) for name, member in value.items()}
            return ("object", frozenset(members))


def near(leaf: Any) -> Any:
    """Another value that may look the same."""
    match leaf:
        case bool():
            return int(leaf)
        case int():
            return float(leaf)
        case float() if leaf.is_integer():
            return int(leaf)
        case list():
            return [near(item) for item in leaf]
        case dict():
            return {name: near(member) for name, member in reversed(leaf.items())}
        case _:
            return leaf


leaves = (
    st.none()
    | st.booleans()
    | st.sampled_from([0, 1, -1, 2, 2**53, 2**53 + 1, 0.0, -0.0, 1.0, 0.5, 2.0**53, "", "1", "a"])
)
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab1"), inner),
    max_leaves=6,
)


@given(values, values)
def test_equality_is_that_of_the_canonical_form(left: Any, right: Any) -> None:
    for one, other in ((left, right), (left, near(left)), (near(left), right)):
        expected = canonical(one) == canonical(other)
        assert json_equal(one, other) is expected
        assert json_equal(other, one) is expected


@given(values)
def test_every_value_equals_itself(value: Any) -> None:
    assert json_equal(value, value)


@given(values.filter(lambda value: value is not None), values)
def test_condition_compares_as_json_equal_does(wanted: Any, value: Any) -> None:
    expected = value is not None and json_equal(value, wanted)
    assert said({"param_eq": {"p": wanted}}, {"p": value}) is expected


def test_number_is_searched_by_its_json_text_whatever_its_size() -> None:
    held = compile_conditions({"param_matches": {"id": "^1[0-9]*1$|e"}})
    assert held is not None
    assert held({"id": 10**20 + 1}, 0, Work()) is True
    assert held({"id": 10**20}, 0, Work()) is False
    assert held({"id": 1e20}, 0, Work()) is True


@pytest.mark.parametrize(
    ("operator", "value", "holds"),
    [
        ("param_eq", 10**20, True),
        ("param_eq", 10**20 + 1, False),
        ("param_eq", 1e20, True),
        ("param_gt", 10**20 + 1, True),
        ("param_gt", 10**20, False),
        ("param_lte", 10**20 + 1, False),
        ("param_gte", -(10**400), False),
        ("param_lt", -(10**400), True),
    ],
)
def test_integers_compare_exactly_whatever_their_size(
    operator: str, value: float, holds: bool
) -> None:
    assert said({operator: {"p": 10**20}}, {"p": value}) is holds
