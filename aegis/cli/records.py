"""Records as people and programs read them: a table, JSON lines, CSV."""

from __future__ import annotations

import json
import re
import shutil
import sys
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any, TextIO

import click

from aegis.audit import MEMBERS
from aegis.cli.terminal import paint, printable

__all__ = ["Page", "record_writer"]

Page = list[dict[str, Any]]

_COLORS = {"success": "green", "failed": "red", "blocked": "yellow", "interrupted": "red"}

_QUOTED = re.compile(r'[,"\r\n]')  # SOURCE: RFC 4180 section 2
# SOURCE: OWASP, "CSV Injection", and ASVS 5.0, 1.2.10: by these a spreadsheet knows a formula, or it
# passes over them and finds one.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\0", "＝", "＋", "－", "＠")  # noqa: RUF001 - meant


def record_writer(form: str, file: TextIO | None = None) -> Callable[[Page], None]:
    """What prints pages of records.

    Args:
        form: `jsonl`, `csv` or `table`.
        file: Where to; None: standard output.
    """
    match form:
        case "jsonl":
            return lambda page: click.echo(
                "\n".join(json.dumps(record, ensure_ascii=False) for record in page), file=file
            )
        case "csv":
            return _Csv(file)
        case _:
            return _Table()


class _Csv:
    """Records as CSV with a head."""

    def __init__(self, file: TextIO | None) -> None:
        self._file = file
        click.echo(",".join(MEMBERS), file=file)

    def __call__(self, page: Page) -> None:
        lines = (",".join(map(_cell, record.values())) for record in page)
        click.echo("\n".join(lines), file=self._file)


def _cell(value: str | int | None) -> str:
    """A cell of CSV. A text is none that a spreadsheet would calculate; a number is as it is."""
    if not isinstance(value, str):
        return "" if value is None else str(value)
    text = f"'{value}" if value.startswith(_FORMULA) else value
    return '"' + text.replace('"', '""') + '"' if _QUOTED.search(text) else text


class _Table:
    """Records as lines for people, each on one line of the terminal.

    Columns are as wide as what they have held so far. On a terminal, the widest of the last four give
    way until all fit; elsewhere nothing is cut off.
    """

    _HEAD = ("ID", "TIME", "RESULT", "RISK", "AGENT", "TYPE", "TARGET", "RULE")
    _RESULT = 2
    _FLEXIBLE = range(4, 8)
    _GAP = 2

    def __init__(self) -> None:
        self._widest = [0] * len(self._HEAD)
        self._widths = self._widest
        self._columns = _columns_of_terminal()

    def __call__(self, page: Page) -> None:
        rows = [_row(record) for record in page]
        is_first = not any(self._widest)
        self._fit(rows)
        if is_first:
            self._print(self._HEAD, None)
        for record, row in zip(page, rows, strict=True):
            self._print(row, _COLORS.get(record["result_status"]))

    def _fit(self, rows: Sequence[Sequence[str]]) -> None:
        columns = zip(self._widest, self._HEAD, *rows, strict=True)
        self._widest = [max(widest, *map(_width, texts)) for widest, *texts in columns]
        self._widths = widths = self._widest.copy()
        if self._columns is not None:
            for _ in range(sum(widths) + self._GAP * (len(widths) - 1) - self._columns):
                widest = max(self._FLEXIBLE, key=widths.__getitem__)
                widths[widest] -= widths[widest] > 1

    def _print(self, row: Sequence[str], color: str | None) -> None:
        cells = []
        for column, (text, width) in enumerate(zip(row, self._widths, strict=True)):
            shown = text if self._columns is None else _cut(text, width)
            blanks = " " * (width - _width(shown))
            if column == self._RESULT and color is not None:
                shown = paint(shown, color)
            cells.append(blanks + shown if column == 0 else shown + blanks)
        click.echo((" " * self._GAP).join(cells).rstrip())


def _row(record: dict[str, Any]) -> tuple[str, ...]:
    return (
        str(record["id"]),
        f"{record['timestamp'][:19].replace('T', ' ')}Z",
        record["result_status"],
        record["risk_level"],
        printable(record["agent_id"] or "-"),
        printable(record["action_type"]),
        printable(record["action_target"] or "-"),
        printable(record["matched_rule"]),
    )


def _columns_of_terminal() -> int | None:
    """How wide the terminal is; None: standard output is none."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def _cut(text: str, most: int) -> str:
    """A text in at most so many columns."""
    if _width(text) <= most:
        return text
    kept, width = "", 1
    for char in text:
        width += _width(char)
        if width > most:
            break
        kept += char
    return f"{kept}…"


def _width(text: str) -> int:
    """How many columns of a terminal a text takes."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1
        for char in text
    )
