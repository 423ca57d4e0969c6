"""What every statement needs: transactions, many rows at once, the numbers of words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import chain
from typing import Any

import apsw

__all__ = [
    "STATEMENTS",
    "Connection",
    "Value",
    "has_table",
    "insert_many",
    "is_constraint",
    "read_pragma",
    "transacted",
    "word_ids",
]

Connection = apsw.Connection
Value = str | int | bytes | None

STATEMENTS = 200
"""Prepared and kept by each connection."""

_MAX_BINDINGS = 30_000  # below SQLite's 32,766
_MAX_WORDS = 500


@contextmanager
def transacted(connection: Connection) -> Iterator[None]:
    """Commit what is done inside together, or not at all; within a turn."""
    try:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def insert_many(
    connection: Connection,
    into: str,
    rows: Sequence[tuple[Value, ...]],
    max_exact: int = 0,
    *,
    conflict: str = "ABORT",
) -> None:
    """Insert rows with one statement for many of them, so that the GIL is taken once, not per row.

    Args:
        connection: In a transaction, unless there are few rows.
        into: Table and columns, as in `word (text)`.
        rows: Of equal length.
        max_exact: So many rows or fewer are inserted by one statement.
        conflict: What to do where a row of that key is there: `ABORT`, `REPLACE` it, or `IGNORE`.
    """
    width = len(rows[0])
    start = 0
    while start < len(rows):
        count = min(_MAX_BINDINGS // width, len(rows) - start)
        if count > max_exact:
            # Powers of two, so that few different statements are prepared.
            count = 1 << (count.bit_length() - 1)
        values = list(chain.from_iterable(rows[start : start + count]))
        connection.execute(_insertion(into, conflict, width, count), values)
        start += count


@lru_cache(4 * STATEMENTS)
def _insertion(into: str, conflict: str, width: int, rows: int) -> str:
    row = f"({', '.join('?' * width)})"
    return f"INSERT OR {conflict} INTO {into} VALUES {', '.join([row] * rows)}"


def has_table(connection: Connection, name: str) -> bool:
    """Whether there is a table now; what SQLite remembers of the schema may be another process's past."""
    return bool(
        connection.execute(
            "SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = ?)", (name,)
        ).get
    )


def is_constraint(error: BaseException) -> bool:
    """Whether it says that a row may not be in its table, such as a second one of its key."""
    return isinstance(error, apsw.ConstraintError)


def word_ids(connection: Connection, texts: Iterable[str]) -> dict[str | None, int | None]:
    """The numbers of words; unknown ones are added.

    Args:
        connection: In a transaction.
        texts: The words.
    """
    wanted = sorted(texts)
    found: dict[str | None, int | None] = {}
    for start in range(0, len(wanted), _MAX_WORDS):
        part = wanted[start : start + _MAX_WORDS]
        connection.execute(
            f"INSERT INTO word (text) VALUES {', '.join(['(?)'] * len(part))} ON CONFLICT DO NOTHING",
            part,
        )
        known: list[Any] = connection.execute(
            f"SELECT text, id FROM word WHERE text IN ({', '.join('?' * len(part))})", part
        ).fetchall()
        found.update(known)
    return found


def read_pragma(connection: Connection, name: str) -> Any:
    """What a setting of a database is."""
    return connection.pragma(name)
