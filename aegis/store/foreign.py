"""Tables of other programs, read as they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import repeat
from typing import Any

import apsw

from aegis.errors import StoreError
from aegis.messages import quote
from aegis.store.connections import distrust_schema, file_uri
from aegis.store.sql import Connection, Value, read_pragma

__all__ = ["UndecodableText", "foreign_rows"]


class UndecodableText(bytes):
    """What another program wrote as text, and is not Unicode."""


def foreign_rows(path: str, table: str, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The rows of another program's table, in the order in which they were added.

    Args:
        path: Its database.
        table: The table.
        columns: What is wanted of it; those that it has not are None.

    Yields:
        Each row by its columns: text, `UndecodableText`, bytes, integers, floats or None, whatever the
        columns were declared as.

    Raises:
        StoreError: It cannot be read, or has no such table.
    """
    try:
        connection = Connection(
            file_uri(path), flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI
        )
        distrust_schema(connection)
        known = {
            name
            for (name,) in connection.execute("SELECT name FROM pragma_table_info(?)", (table,))
        }
        if not known:
            raise StoreError(f"{quote(path)} has no table {quote(table)}")
        encoding = read_pragma(connection, "encoding")
        wanted = ", ".join(
            f"typeof({name}), iif(typeof({name}) = 'text', CAST({name} AS BLOB), {name})"
            if name in known
            else "'null', NULL"
            for name in columns
        )
        for row in connection.execute(f"SELECT {wanted} FROM {table} ORDER BY rowid"):
            values = map(_foreign_value, row[::2], row[1::2], repeat(encoding))
            yield dict(zip(columns, values, strict=True))
        connection.close()
    except apsw.Error as error:
        raise StoreError(f"cannot read {quote(path)}: {error}") from error


def _foreign_value(kind: str, value: Value | float, encoding: str) -> Value | float:
    if kind != "text" or not isinstance(value, bytes):
        return value
    try:
        return value.decode(encoding)
    except UnicodeDecodeError:
        return UndecodableText(value)
