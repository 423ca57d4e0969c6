"""Finds the numbers of the records that a filter fits: by the index, and in the rows since."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from itertools import islice
from typing import Any

from aegis.audit.chain import anchor, newest_entry
from aegis.audit.filters import AuditFilter
from aegis.audit.index import KINDS, SEGMENT, SEGMENT_BITS, common, sealed_to
from aegis.audit.members import (
    IS_RECORD,
    OPERATION_CODES,
    OUTCOME,
    STATUS_CODES,
    Operation,
    ResultStatus,
)
from aegis.store.sql import Connection
from aegis_core import RiskLevel

__all__ = ["RECORDS", "STATUS", "Search", "find_numbers", "find_start", "make_search"]

_KINDS = {
    "session_id": "session",
    "agent_id": "agent",
    **{
        name: name
        for name in ("action_type", "matched_rule", "risk_level", "result_status", "operation")
    },
}
STATUS = "ifnull(o.result_status, r.result_status)"
"""What the status of a record is now, in SQL."""


RECORDS = f"FROM record AS r LEFT JOIN record AS o ON {OUTCOME}"


@dataclass(frozen=True, slots=True)
class Search:
    """A filter in the terms of the table.

    Attributes:
        codes: What each column has to be.
        since_us: As in the filter.
        until_us: As in the filter.
        first: The first number that may be among them.
        last: The last one.
    """

    codes: dict[str, int]
    since_us: int | None
    until_us: int | None
    first: int
    last: int

    def where(self) -> tuple[str, list[int]]:
        """The conditions on a record, `r` and its outcome `o`."""
        clauses, bindings = [IS_RECORD], []
        for column, code in self.codes.items():
            clauses.append(f"{STATUS if column == 'result_status' else f'r.{column}'} = ?")
            bindings.append(code)
        for value, clause in (
            (self.since_us, "r.timestamp_us >= ?"),
            (self.until_us, "r.timestamp_us <= ?"),
        ):
            if value is not None:
                clauses.append(clause)
                bindings.append(value)
        return " AND ".join(clauses), bindings

    @property
    def is_plain(self) -> bool:
        """Whether it asks for all records of its range."""
        return not self.codes and self.since_us is None and self.until_us is None


def make_search(connection: Connection, wanted: AuditFilter) -> Search | None:
    """A filter in the terms of the table; None: there can be no such record."""
    codes: dict[str, int] = {}
    for part in fields(wanted):
        value = getattr(wanted, part.name)
        column = _KINDS.get(part.name)
        if value is None or column is None:
            continue
        code: int | None
        match value:
            case ResultStatus():
                code = STATUS_CODES[value]
            case Operation():
                code = OPERATION_CODES[value]
            case RiskLevel():
                code = int(value)
            case _:
                code = connection.execute("SELECT id FROM word WHERE text = ?", (value,)).get
        if code is None:
            return None
        codes[column] = code
    last, _ = newest_entry(connection)
    archived, _ = anchor(connection)
    first = max(archived + 1, 0 if wanted.after is None else wanted.after + 1)
    if wanted.before is not None:
        last = min(last, wanted.before - 1)
    return None if first > last else Search(codes, wanted.since_us, wanted.until_us, first, last)


def find_numbers(connection: Connection, search: Search, first: int, most: int) -> list[int]:
    """The first numbers from `first` on."""
    numbers: list[int] = []
    first = max(first, search.first)
    if not search.is_plain:
        for start, bits in _segments(connection, search, first, newest_first=False):
            numbers += islice(_lowest_first(start, bits), most - len(numbers))
            if len(numbers) == most:
                return numbers
        first = max(first, sealed_to(connection))
    where, bindings = search.where()
    rows: list[Any] = connection.execute(
        f"SELECT r.id {RECORDS} WHERE {where} AND r.id >= ? AND r.id <= ? ORDER BY r.id LIMIT ?",
        (*bindings, first, search.last, most - len(numbers)),
    ).fetchall()
    return numbers + [number for (number,) in rows]


def find_start(connection: Connection, search: Search, most: int) -> int:
    """The number from which on there are `most` records, or as many as there are."""
    if most <= 0:
        return search.last + 1
    sealed = 0 if search.is_plain else sealed_to(connection)
    where, bindings = search.where()
    newest: list[Any] = connection.execute(
        f"SELECT count(*), min(id) FROM (SELECT r.id {RECORDS}"
        f" WHERE {where} AND r.id >= ? AND r.id <= ? ORDER BY r.id DESC LIMIT ?)",
        (*bindings, max(search.first, sealed), search.last, most),
    ).fetchall()
    count, number = newest[0]
    first = search.last + 1 if number is None else number
    if count == most or search.is_plain:
        return first
    for start, bits in _segments(connection, search, search.first, newest_first=True):
        here = bits.bit_count()
        if count + here < most:
            count += here
            first = start if bits else first
            continue
        for at in islice(_highest_first(start, bits), most - count):
            first = at
        break
    return first


def _lowest_first(start: int, bits: int) -> Iterator[int]:
    while bits:
        lowest = bits & -bits
        yield start + lowest.bit_length() - 1
        bits ^= lowest


def _highest_first(start: int, bits: int) -> Iterator[int]:
    while bits:
        highest = bits.bit_length() - 1
        yield start + highest
        bits ^= 1 << highest


def _segments(
    connection: Connection, search: Search, first: int, *, newest_first: bool
) -> Iterator[tuple[int, int]]:
    """The number at which each segment starts that has such records, and their bits."""
    joins, bindings = "", []
    for place, (column, code) in enumerate(search.codes.items()):
        joins += (
            f" JOIN posting AS p{place} ON p{place}.segment = s.id AND p{place}.kind = ?"
            f" AND p{place}.word = ?"
        )
        bindings += [KINDS.index(column), code]
    columns = "".join(f", p{place}.records" for place in range(len(search.codes)))
    since = -(2**63) if search.since_us is None else search.since_us
    until = 2**63 - 1 if search.until_us is None else search.until_us
    rows = connection.execute(
        f"SELECT s.id, s.first_us, s.last_us{columns} FROM segment AS s{joins}"
        " WHERE s.id >= ? AND s.id <= ? AND s.last_us >= ? AND s.first_us <= ?"
        f" ORDER BY s.id {'DESC' if newest_first else 'ASC'}",
        (*bindings, first >> SEGMENT_BITS, search.last >> SEGMENT_BITS, since, until),
    )
    for segment, first_us, last_us, *records in rows:
        start = segment << SEGMENT_BITS
        bits = common(records)
        if first > start:
            bits &= -1 << (first - start)
        if search.last < start + SEGMENT - 1:
            bits &= (1 << (search.last - start + 1)) - 1
        if bits and (not records or first_us < since or last_us > until):
            bits &= _in_time(connection, start, since, until)
        if bits:
            yield start, bits


def _in_time(connection: Connection, start: int, since: int, until: int) -> int:
    """The records of a segment that are of a time."""
    bits = 0
    for (number,) in connection.execute(
        f"SELECT id FROM record AS r WHERE id >= ? AND id < ? AND {IS_RECORD}"
        " AND timestamp_us >= ? AND timestamp_us <= ?",
        (start, start + SEGMENT, since, until),
    ):
        bits |= 1 << (number - start)
    return bits
