"""How commands print: colours where a person looks on, JSON, problems with their places."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from typing import Any

import click

from aegis.errors import Problem

__all__ = ["echo_json", "paint", "print_problems", "printable", "wants_no_color"]


def wants_no_color() -> bool:
    """Whether colours are off, also on a terminal."""
    # SOURCE: no-color.org: set and not empty, whatever its value.
    return bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"


def paint(text: str, color: str, *, bold: bool = False) -> str:
    """A text in a colour, which `click.echo` takes away where the output is no terminal."""
    return click.style(text, fg=color, bold=bold or None)


def printable(text: str) -> str:
    """A text on one line of a terminal, and harmless to it."""
    return text if text.isprintable() else text.encode("unicode_escape").decode()


def echo_json(value: Any) -> None:
    """Print a value as JSON for people and programs."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_problems(
    policy: str, problems: Iterable[Problem], *, warning: bool = False, err: bool = False
) -> None:
    """Print problems as compilers do: `file:line: message`."""
    kind = f"{paint('warning:', 'yellow')} " if warning else ""
    for problem in problems:
        place = policy if problem.line is None else f"{policy}:{problem.line}"
        click.echo(f"{paint(place, 'cyan')}: {kind}{problem}", err=err)
