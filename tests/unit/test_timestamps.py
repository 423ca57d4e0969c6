"""Times: one way to read them, for programs and for people, and one to write them."""

from __future__ import annotations

import pytest

from aegis.timestamps import parse_rfc3339, parse_time, timestamp_text

NOW_US = 1_800_000_000_000_000  # 2027-01-15T08:00:00Z
SECOND_US = 1_000_000


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2027-01-31T18:00:00Z", "2027-01-31T18:00:00.000000+00:00"),
        ("2027-01-31t18:00:00z", "2027-01-31T18:00:00.000000+00:00"),
        ("2027-01-31 19:00:00+01:00", "2027-01-31T18:00:00.000000+00:00"),
        ("2027-01-31T18:00:00 01:00", "2027-01-31T17:00:00.000000+00:00"),
        ("2027-01-31T18:00:00.5-23:59", "2027-02-01T17:59:00.500000+00:00"),
        ("2027-01-31T18:00:00.123456789Z", "2027-01-31T18:00:00.123456+00:00"),
        ("9999-12-31T23:59:59.999999Z", "9999-12-31T23:59:59.999999+00:00"),
        ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00.000000+00:00"),
    ],
)
def test_time_of_rfc_3339_is_its_moment_in_utc(text: str, moment: str) -> None:
    assert timestamp_text(parse_rfc3339(text)) == moment


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2027-01-31",
        "1h",
        "2027-01-31T18:00:00",
        "2027-01-31T18:00Z",
        "20270131T180000Z",
        "2027-W05-1",
        "2027-02-30T18:00:00Z",
        "2027-01-31T25:00:00Z",
        "2027-01-31T18:00:00+25:00",
        "9999-12-31T23:59:59-12:00",
        "0001-01-01T00:00:00+14:00",
        "٢٠٢٧-01-31T18:00:00Z",
        "2027-01-31T18:00:00Z\n",
        "1800000000",
    ],
)
def test_what_is_no_time_of_rfc_3339_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_rfc3339(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0s", 0),
        ("90s", 90),
        ("15m", 900),
        ("1h", 3_600),
        ("30d", 30 * 86_400),
        ("2w", 14 * 86_400),
    ],
)
def test_span_lies_behind_or_ahead(text: str, seconds: int) -> None:
    assert parse_time(text, NOW_US) == NOW_US - seconds * SECOND_US
    assert parse_time(text, NOW_US, is_ahead=True) == NOW_US + seconds * SECOND_US


def test_day_is_its_first_moment_in_utc() -> None:
    assert timestamp_text(parse_time("2027-01-31", NOW_US)) == "2027-01-31T00:00:00.000000+00:00"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "soon",
        "1",
        "h",
        "1 h",
        "-1h",
        "1.5h",
        "1y",
        "٢h",
        "1h30m",
        "999999999999w",
        "100000d" * 2,
        "2027-13-01",
        "2027-1-1",
        "0001-01-01",
        "9999-12-31",
        "9999-12-31T23:59:59-12:00",
        "0001-01-01T00:00:00+14:00",
        "2027-01-31T18:00:00",
        "\0",
        "\ud800",
    ],
)
def test_what_is_no_time_is_refused(text: str) -> None:
    for is_ahead in (False, True):
        with pytest.raises(ValueError, match=r"."):
            parse_time(text, NOW_US, is_ahead=is_ahead)
