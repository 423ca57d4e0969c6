"""Times: read in one way, and written in one. They are microseconds since the epoch."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime, timedelta

__all__ = [
    "HOW",
    "microseconds",
    "now_us",
    "parse_rfc3339",
    "parse_time",
    "timestamp_text",
]

HOW = "a time as in `2027-01-31T18:00:00Z`, a day as in `2027-01-31`, or a span as in `30d` or `1h`"
"""What `parse_time` takes, for messages."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)

# SOURCE: RFC 3339 section 5.6. A `+` that was not escaped in a query arrives as a space.
_TIME = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(?:([Zz])|([+\- ])(\d\d:\d\d))",
    re.ASCII,
)
_DAY = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
_SPAN = re.compile(r"(\d{1,12})([smhdw])", re.ASCII)
_DAY_US = 86_400_000_000
_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 7 * 86_400}


def parse_rfc3339(text: str) -> int:
    """The moment that a time of RFC 3339 names.

    Args:
        text: Date, time and offset; up to nine digits of a second, of which six count.

    Raises:
        ValueError: It is not such a time, or not one of the years 1 to 9999 in UTC.
    """
    match = _TIME.fullmatch(text)
    if match is None:
        raise ValueError("it is not a time of RFC 3339")
    day, clock, fraction, _, sign, offset = match.groups()
    zone = f"{'-' if sign == '-' else '+'}{offset}" if offset else "+00:00"
    moment = datetime.fromisoformat(f"{day}T{clock}.{(fraction or '0')[:6]:0<6}{zone}")
    return microseconds(moment)


def parse_time(text: str, now_us: int, *, is_ahead: bool = False) -> int:
    """The moment that a person names.

    Args:
        text: A time of RFC 3339; a day, which is its first moment in UTC; or a span: a number and
            one of `s`, `m`, `h`, `d` and `w`.
        now_us: What spans are counted from.
        is_ahead: Whether they lie ahead, not behind.

    Raises:
        ValueError: It is none of them, or not of the years 1 to 9999 in every time zone.
    """
    if (span := _SPAN.fullmatch(text)) is not None:
        distance_us = int(span[1]) * _SECONDS[span[2]] * 1_000_000
        moment_us = now_us + distance_us if is_ahead else now_us - distance_us
    elif _DAY.fullmatch(text) is not None:
        moment_us = microseconds(datetime.fromisoformat(text).replace(tzinfo=UTC))
    else:
        moment_us = parse_rfc3339(text)
    for anywhere_us in (moment_us - _DAY_US, moment_us + _DAY_US):
        timestamp_text(anywhere_us)
    return moment_us


def microseconds(moment: datetime) -> int:
    """A moment with a time zone, in microseconds since the epoch.

    Raises:
        ValueError: It is not of the years 1 to 9999 in UTC.
    """
    moment_us = (moment - _EPOCH) // _MICROSECOND
    timestamp_text(moment_us)  # an offset can lead out of the years that can be written
    return moment_us


def now_us() -> int:
    """The time, in microseconds since the epoch."""
    return time.time_ns() // 1000


def timestamp_text(timestamp_us: int) -> str:
    """A moment as Aegis writes it, wherever a program may read it: HTTP, exports, heads, key files.

    RFC 3339 in UTC, six decimals, and `+00:00` for the zone. `+00:00`, not `Z`: agent-aegis writes
    it, and the clients that were written for it may read nothing else (`datetime.fromisoformat` takes
    `Z` from Python 3.11 on). All have one length, so that they also sort as text.

    Raises:
        ValueError: It is not of the years 1 to 9999.
    """
    try:
        moment = _EPOCH + timedelta(microseconds=timestamp_us)
    except OverflowError:
        raise ValueError("it is not of the years 1 to 9999") from None
    return moment.isoformat(timespec="microseconds")
