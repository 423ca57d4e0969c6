"""Whether a database's file is sound, whatever its rows say."""

from __future__ import annotations

from collections import Counter
from contextlib import closing
from typing import Any

from aegis.messages import quote
from aegis.store.schema import MIGRATIONS, drop_unchained
from aegis.store.sql import Connection

__all__ = ["find_fault"]


def find_fault(connection: Connection, version: int) -> str | None:
    """What is wrong with the file besides what its rows say: None, or the first fault.

    That is a schema which is not as Aegis makes it, an index or trigger of somebody else on a
    table of Aegis', and whatever SQLite finds: trees, indexes that have not what their table
    has, constraints that do not hold.

    Args:
        connection: To read with.
        version: How many migrations the file has had.

    Cost: reads the whole file.
    """
    with closing(Connection(":memory:")) as made:
        for script in MIGRATIONS[:version]:
            made.execute(script)
        drop_unchained(made)
        as_made = _schema(made)
    here = _schema(connection)
    for kind, name, _, _ in as_made - here:
        return f"its {kind} {quote(name)} is not as Aegis makes it"
    tables = {table for _, _, table, _ in as_made}
    for kind, name, table, _ in here - as_made:
        # A further table changes no answer, and neither does what is on it.
        if kind not in ("table", "index") or table in tables:
            return f"its {kind} {quote(name)} on {quote(table)} is not of Aegis"
    for (fault,) in connection.execute("PRAGMA main.integrity_check(1)"):
        if fault != "ok":
            return f"the file is damaged: {' '.join(fault.split())}"
    return None


def _schema(connection: Connection) -> Counter[tuple[str, str, str, str | None]]:
    """Type, name, table and SQL of each thing in a database."""
    rows: list[Any] = connection.execute(
        "SELECT type, name, tbl_name, sql FROM main.sqlite_schema"
    ).fetchall()
    return Counter(rows)
