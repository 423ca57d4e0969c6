"""What options and arguments take: text, files, times, numbers. What cannot be is wrong usage."""

from __future__ import annotations

import errno
import math
import os
import time
from collections.abc import Callable
from typing import Any

import click

from aegis import timestamps
from aegis.errors import shown

__all__ = [
    "DASH",
    "FILE",
    "FILE_OR_DASH",
    "FORMAT",
    "TEXT",
    "TIME",
    "TIME_AHEAD",
    "Number",
    "database_option",
    "number_from",
]

DASH = "-"
"""What is written for standard input, or output, where a file could be."""

_LARGEST = 2**63 - 1  # what the database can hold


class _Text(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.4
    """Text of Unicode, in UTF-8 whatever the locale is."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(value)
        if not _is_unicode(text):  # bytes that the locale cannot read
            try:
                return os.fsencode(text).decode()
            except UnicodeError:
                self.fail(f"{shown(text)} is not UTF-8", param, ctx)
        return text


class _File(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.4
    """The name of a file; any bytes but the one that ends it.

    Args:
        takes_dash: Whether `-` is one, and means standard input or output.
    """

    name = "file"

    def __init__(self, *, takes_dash: bool = False) -> None:
        self._takes_dash = takes_dash

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        path = str(value)
        if not path:
            self.fail("the name of the file is empty", param, ctx)
        if path == DASH and not self._takes_dash:
            self.fail("`-` must be a file here; write `./-` for one of that name", param, ctx)
        try:
            os.lstat(path)
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                self.fail(f"{shown(path)} is too long for the name of a file", param, ctx)
        except ValueError:  # NUL, or letters that the locale cannot write
            self.fail(f"{shown(path)} cannot be the name of a file", param, ctx)
        return path

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[click.shell_completion.CompletionItem]:
        return [click.shell_completion.CompletionItem(incomplete, type="file")]


class _Time(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.4
    """A time, a day or a span, as microseconds since the epoch.

    Args:
        is_ahead: Whether spans lie ahead of now, not behind it.
    """

    name = "time"

    def __init__(self, *, is_ahead: bool) -> None:
        self._is_ahead = is_ahead

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return timestamps.parse_time(
                str(value), time.time_ns() // 1000, is_ahead=self._is_ahead
            )
        except ValueError:
            self.fail(f"{shown(value)} must be {timestamps.HOW}", param, ctx)


class Number(click.FloatRange):
    """A number within limits; `nan` is neither below nor above any."""

    name = "number"

    def convert(  # noqa: D102 - click's
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        number = float(super().convert(value, param, ctx))
        if math.isnan(number):
            self.fail(f"{shown(value)} is not a number", param, ctx)
        return number


def number_from(least: int, most: int = _LARGEST) -> click.IntRange:
    """A whole number; by default one that the database can hold."""
    return click.IntRange(least, most)


TEXT = _Text()
FILE = _File()
FILE_OR_DASH = _File(takes_dash=True)
TIME = _Time(is_ahead=False)
TIME_AHEAD = _Time(is_ahead=True)

FORMAT = click.option(
    "--format",
    "form",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="How to print it.",
)


def database_option(said: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The option that names the database."""
    return click.option(
        "--audit-db",
        "database",
        type=FILE,
        metavar="FILE",
        default="aegis_audit.db",
        envvar="AEGIS_AUDIT_DB",
        show_envvar=True,
        show_default=True,
        help=said,
    )


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
