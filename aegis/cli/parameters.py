"""What options and arguments take: text, files, times, numbers. What cannot be is wrong usage."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import click

from aegis import timestamps
from aegis.config import OPTIONS
from aegis.messages import quote
from aegis.option_types import DASH, MAX_INTEGER, File, OptionType, Text

__all__ = [
    "DASH",
    "FILE",
    "FILE_OR_DASH",
    "FORMAT",
    "TEXT",
    "TIME",
    "TIME_AHEAD",
    "Number",
    "Parsed",
    "database_option",
    "number_from",
]


class Parsed(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.4
    """What an option of the server takes, as a type of click."""

    def __init__(self, option_type: OptionType[Any]) -> None:
        self._type = option_type
        self.name = option_type.name

    def convert(  # noqa: D102 - click's
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Any:
        try:
            return self._type.parse(value)
        except ValueError as error:
            name = "" if param is None else f"{_name_of(param)} "
            raise click.UsageError(f"{name}{error}", ctx) from None

    def get_metavar(  # noqa: D102 - click's
        self, param: click.Parameter, ctx: click.Context
    ) -> str | None:
        choices = self._type.choices
        return f"[{'|'.join(choices)}]" if choices else None

    def shell_complete(  # noqa: D102 - click's
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[click.shell_completion.CompletionItem]:
        if isinstance(self._type, File):
            return [click.shell_completion.CompletionItem(incomplete, type="file")]
        return [
            click.shell_completion.CompletionItem(choice)
            for choice in self._type.choices
            if choice.startswith(incomplete)
        ]


def _name_of(param: click.Parameter) -> str:
    return param.opts[0] if isinstance(param, click.Option) else param.human_readable_name


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
            self.fail(f"{quote(value)} must be {timestamps.HOW}", param, ctx)


class Number(click.FloatRange):
    """A number within limits; `nan` is neither below nor above any."""

    name = "number"

    def convert(  # noqa: D102 - click's
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        number = float(super().convert(value, param, ctx))
        if math.isnan(number):
            self.fail(f"{quote(value)} is not a number", param, ctx)
        return number


def number_from(least: int, most: int = MAX_INTEGER) -> click.IntRange:
    """A whole number; by default one that the database can hold."""
    return click.IntRange(least, most)


TEXT = Parsed(Text())
FILE = Parsed(File())
FILE_OR_DASH = Parsed(File(takes_dash=True))
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
        default=OPTIONS["audit_db"].default,
        envvar=OPTIONS["audit_db"].variable,
        show_envvar=True,
        show_default=True,
        help=said,
    )
