"""Compiled conditions: time windows, weekdays and comparisons of parameters.

Three answers are possible: they hold (True), they do not (False), they cannot be judged (a text
that says why). False settles a rule whatever the others say; a rule that cannot be judged blocks.

What a condition costs is counted before it is paid, in units of a request's budget (`Work`), so that
no request holds a server. The engine spends one unit for each rule that it asks. Measured, a unit
takes 0.02 to 0.2 microseconds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, tzinfo
from functools import partial
from typing import Any, NoReturn
from zoneinfo import ZoneInfo

from aegis.errors import PolicyError, Problem
from aegis.messages import json_type, quote, suggest
from aegis.policy.comparisons import OPERATORS, InvalidCondition, compile_comparison
from aegis.policy.regexes import Searches
from aegis_core import Condition, Work

__all__ = ["CONDITIONS", "compile_conditions", "compiler", "needs"]

_TIME = re.compile(r"([01]?\d|2[0-3]):([0-5]\d)")
_NO_MAPPING = "must be a mapping from parameter to value, as in `{count: 100}`"

_COSTLY = frozenset(("param_contains", "param_matches"))
"""Conditions whose cost grows with the parameter: asked last, since the others may settle the rule."""


def compiler(
    searches: Searches | None = None,
) -> Callable[[Mapping[str, Any]], Condition | None]:
    """What compiles the conditions of one policy's rules, so that they search together.

    Args:
        searches: Theirs, for who wants to know them; None: new ones.
    """
    return partial(compile_conditions, searches=searches or Searches())


def compile_conditions(
    conditions: Mapping[str, Any], searches: Searches | None = None
) -> Condition | None:
    """Compile a rule's conditions into one function of the params and the time.

    Args:
        conditions: Condition name to its value, as in a policy.
        searches: Those of the policy's rules; None: this rule stands alone.

    Returns:
        The function; None where there are no conditions.

    Raises:
        PolicyError: With a problem for everything that is wrong, its `key` below `conditions`.
    """
    if not conditions:
        return None
    problems: list[Problem] = []
    tests: list[Condition] = []
    costly: list[Condition] = []
    zone: tzinfo = UTC
    try:
        zone = _zone(conditions)
    except InvalidCondition as refused:
        problems.append(Problem(str(refused), key="timezone"))
    for name, value in conditions.items():
        for key, compiled in _parts(str(name), value, zone, searches or Searches()):
            try:
                test = compiled()
            except InvalidCondition as refused:
                problems.append(Problem(str(refused), key=key))
            else:
                if test:
                    (costly if name in _COSTLY else tests).append(test)
    if problems:
        raise PolicyError(problems)
    if any(name in conditions for name in _TIMES):
        tests.insert(0, _window(conditions, zone))
    tests += costly
    return tests[0] if len(tests) == 1 else _all(tests)


def _parts(
    name: str, value: object, zone: tzinfo, searches: Searches
) -> Iterator[tuple[str, Callable[[], Condition | None]]]:
    """What a condition is made of: where each part stands, and what compiles it."""
    has_parameters = name in OPERATORS
    if has_parameters and isinstance(value, Mapping):
        for parameter, wanted in value.items():
            yield (
                f"{name}.{parameter}",
                partial(compile_comparison, name, parameter, wanted, searches),
            )
    elif has_parameters:
        yield name, partial(_refuse, f"{_NO_MAPPING}, not {json_type(value)}")
    elif name == "weekdays":
        yield name, partial(_weekdays, value, zone)
        for index, day in enumerate(value if isinstance(value, list | tuple) else ()):
            if not _is_day(day):
                said = f"{quote(day)} is not a day; write 1 (Monday) to 7 (Sunday)"
                yield f"{name}[{index}]", partial(_refuse, said)
    elif name in _TIMES:
        yield name, partial(_checked_time, value)
    elif name != "timezone":
        yield name, partial(_refuse, f"unknown condition {quote(name)}{_hint(name)}")


def _hint(name: str) -> str:
    folded = name.lower()
    if _NEGATION.search(folded):
        return "; no condition says not: let a rule above this one take what it is not for"
    if folded in _ELSEWHERE:
        return f"; {_ELSEWHERE[folded]}"
    return suggest(name, CONDITIONS, _SYNONYMS)


def _refuse(message: str) -> NoReturn:
    raise InvalidCondition(message)


def _checked_time(value: object) -> None:
    _minute(value)  # both ends of the window are compiled together, in `_window`


def _all(tests: list[Condition]) -> Condition:
    further = len(tests) - 1  # the engine has spent a unit for the first

    def holds(params: Mapping[str, Any], now: float, work: Work) -> bool | str:
        if not work.spend(further):
            return work.reason
        reason: str | None = None
        failure: Exception | None = None
        for test in tests:
            try:
                held = test(params, now, work)
            except Exception as error:  # noqa: BLE001 - a later one may say no, which settles it
                failure = failure or error
                continue
            if held is False:
                return False
            if held is not True and reason is None:
                reason = str(held)
        if failure is not None:
            raise failure
        return True if reason is None else reason

    return holds


def needs(conditions: Mapping[str, Any]) -> frozenset[tuple[str, ...]]:
    """What must all hold for a rule's conditions to hold.

    Args:
        conditions: Condition name to its value, as in a policy that loads.

    Returns:
        Each as texts that are equal only where it says the same of every action at every time: that
        it holds, that it does not, or that it cannot be judged.
    """
    zone = conditions.get("timezone", "UTC")
    found: set[tuple[str, ...]] = set()
    for name, value in conditions.items():
        if name.startswith("param_"):
            found.update(
                (name, parameter, json.dumps(wanted, sort_keys=True))
                for parameter, wanted in value.items()
            )
        elif name == "weekdays":
            found.add((name, json.dumps(sorted(set(value))), zone))
        elif name in _TIMES:
            after = conditions.get("time_after", "00:00")
            found.add(("time", after, conditions.get("time_before", "24:00"), zone))
    return frozenset(found)


# --- time ----------------------------------------------------------------------------------------


def _zone(conditions: Mapping[str, Any]) -> tzinfo:
    if "timezone" not in conditions:
        return UTC
    name = conditions["timezone"]
    if not isinstance(name, str):
        raise InvalidCondition(f"must be text as in `Europe/Paris`, not {json_type(name)}")
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):  # ZoneInfo opens a file of that name
        raise InvalidCondition(
            f"unknown time zone {quote(name)}; write one as in `Europe/Paris`"
        ) from None


def _minute(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        raise InvalidCondition(
            f"must be text, not the number {quote(value)}: write the time in quotes, as in"
            ' `"18:00"`'
        )
    if not isinstance(value, str):
        raise InvalidCondition(f'must be a time as in `"18:00"`, not {json_type(value)}')
    match = _TIME.fullmatch(value)
    if match is None or not value.isascii():
        raise InvalidCondition(
            f'{quote(value)} is not a time; write hours and minutes as in `"18:00"`'
        )
    return int(match[1]) * 60 + int(match[2])


def _window(conditions: Mapping[str, Any], zone: tzinfo) -> Condition:
    after = _minute(conditions.get("time_after", "00:00"))
    before = _minute(conditions["time_before"]) if "time_before" in conditions else 24 * 60

    def is_within(moment: datetime) -> bool:
        minute = moment.hour * 60 + moment.minute
        if after > before:  # the window crosses midnight
            return minute >= after or minute < before
        return after <= minute < before

    return _at_moment(is_within, zone)


def _at_moment(is_met: Callable[[datetime], bool], zone: tzinfo) -> Condition:
    def holds(_: Mapping[str, Any], now: float, work: Work) -> bool:
        moment = work.memo.get(zone)
        if moment is None:
            moment = work.memo[zone] = datetime.fromtimestamp(now, zone)
        return is_met(moment)

    return holds


def _is_day(day: object) -> bool:
    return isinstance(day, int) and not isinstance(day, bool) and 1 <= day <= 7


def _weekdays(value: object, zone: tzinfo) -> Condition:
    if not isinstance(value, list | tuple):
        raise InvalidCondition(
            f"must be a list of days from 1 (Monday) to 7, not {json_type(value)}"
        )
    days = frozenset(day for day in value if _is_day(day))
    return _at_moment(lambda moment: moment.isoweekday() in days, zone)


_TIMES = ("time_after", "time_before")

CONDITIONS = frozenset([*OPERATORS, *_TIMES, "weekdays", "timezone"])
"""The names of all conditions."""

_NEGATION = re.compile(r"(^|_)(not?|ne|neq|nin|except|unless)(_|$)|^!")

_SYNONYMS = {
    "param_equals": "param_eq",
    "param_equal": "param_eq",
    "param_is": "param_eq",
    "param_ge": "param_gte",
    "param_geq": "param_gte",
    "param_min": "param_gte",
    "param_le": "param_lte",
    "param_leq": "param_lte",
    "param_max": "param_lte",
    "param_greater_than": "param_gt",
    "param_less_than": "param_lt",
    "param_has": "param_contains",
    "param_regex": "param_matches",
    "param_regexp": "param_matches",
    "param_like": "param_matches",
    "after": "time_after",
    "before": "time_before",
    "days": "weekdays",
    "day": "weekdays",
    "day_of_week": "weekdays",
    "tz": "timezone",
    "zone": "timezone",
}
"""Other names for conditions, where likeness alone would lead to another condition, or to none."""

_ELSEWHERE = {
    "param_in": "write a regular expression: `param_matches: {to: '^(ann|bob)$'}`",
    "param_one_of": "write a regular expression: `param_matches: {to: '^(ann|bob)$'}`",
    "param_starts_with": "write a regular expression: `param_matches: {to: '^ann'}`",
    "param_ends_with": "write a regular expression: `param_matches: {to: '@example\\.com$'}`",
    "param_between": "write `param_gte` and `param_lte`",
    "time_between": "write `time_after` and `time_before`",
    "hours": "write `time_after` and `time_before`",
    "time": "write `time_after` and `time_before`",
    "type": "it belongs under `match`",
    "target": "it belongs under `match`",
    "agent": "it belongs under `match`",
}
"""What to write for conditions of other policy languages that have no counterpart here."""
