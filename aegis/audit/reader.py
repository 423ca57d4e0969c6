"""The read side: records by filter, in pages; followers; the head."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, fields
from itertools import islice
from typing import Any, TypeVar

from aegis.audit.chain import anchor, newest_link
from aegis.audit.index import KINDS, SEGMENT, SEGMENT_BITS, common, sealed_to
from aegis.audit.members import (
    IS_RECORD,
    OPERATION_CODES,
    OUTCOME,
    SELECT,
    STATUS_CODES,
    STATUSES,
    Operation,
    ResultStatus,
    as_members,
)
from aegis.audit.signing import HeadSigner
from aegis.errors import AuditBusy, StoreError
from aegis.store.database import Store
from aegis.store.sql import Connection
from aegis.timestamps import timestamp_text
from aegis_core import RiskLevel

__all__ = ["AuditFilter", "AuditReader"]

MOST_ROWS_A_PAGE = 500
LARGEST_PAGE_BYTES = 4 * 1024 * 1024
MOST_LINKS_FOLLOWED = 20_000
"""Looked through for one page of a follower, so that no reading lasts for long."""
MOST_READING = 8
"""Readings that may have pages in memory of which nothing is sent yet."""
MOST_WAITING = 256
"""Readings that wait for their turn; more of them are refused."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class AuditFilter:
    """Which records are asked for; None asks for any. Times are inclusive, numbers exclusive.

    Attributes:
        since_seq: Only records that have got a link after this one; they come in that order.
        limit: The newest so many; with `after` or `since_seq` the first so many after it.
    """

    session_id: str | None = None
    action_type: str | None = None
    risk_level: RiskLevel | None = None
    result_status: ResultStatus | None = None
    agent_id: str | None = None
    matched_rule: str | None = None
    operation: Operation | None = None
    since_us: int | None = None
    until_us: int | None = None
    after: int | None = None
    before: int | None = None
    since_seq: int | None = None
    limit: int | None = None


_WORDS = ("session_id", "action_type", "matched_rule", "agent_id")
_KINDS = {
    "session_id": "session",
    "agent_id": "agent",
    **{
        name: name
        for name in ("action_type", "matched_rule", "risk_level", "result_status", "operation")
    },
}
_COUNTED = {
    "result_status": "result_statuses",
    "risk_level": "risk_levels",
    "action_type": "action_types",
    "matched_rule": "matched_rules",
    "agent": "agents",
}
_STATUS = "ifnull(o.result_status, r.result_status)"


@dataclass(frozen=True, slots=True)
class _Search:
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
            clauses.append(f"{_STATUS if column == 'result_status' else f'r.{column}'} = ?")
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


_FROM = f"FROM record AS r LEFT JOIN record AS o ON {OUTCOME}"


class AuditReader:
    """Reads the audit of one database.

    Invariant: no reading lasts for longer than a page takes, so that it never keeps the database's
    write-ahead log from beginning anew.

    Args:
        store: Where the records are.
        signer: Signs the head; None: it is not signed.
    """

    def __init__(self, store: Store, *, signer: HeadSigner | None = None) -> None:
        self.store = store
        self._signer = signer
        self._threads = ThreadPoolExecutor(2, "aegis-audit-read")
        self._turns = asyncio.Semaphore(MOST_READING)
        self._waiting = 0

    def close(self) -> None:
        """Read no more."""
        self._threads.shutdown(wait=True)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Have one of the places of those who read, while the start of an answer is made.

        Raises:
            AuditBusy: Too many wait for one.
        """
        if self._waiting == MOST_WAITING:
            raise AuditBusy(f"{MOST_WAITING} readings of the audit wait for their turn already")
        self._waiting += 1
        try:
            await self._turns.acquire()
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._turns.release()

    async def pages(self, wanted: AuditFilter) -> AsyncIterator[list[dict[str, Any]]]:
        """As `read`, without holding up the loop."""
        pages = self.read(wanted)
        while (page := await self._in_thread(next, pages, None)) is not None:
            yield page

    async def head(self) -> dict[str, Any]:
        """As `read_head`, in its turn, without holding up the loop."""
        async with self.turn():
            return await self._in_thread(self.read_head)

    async def results(self, request: int) -> list[dict[str, Any]] | None:
        """The records of a claimed request, in the order of its actions, read in its turn.

        Returns:
            None: Some of them were archived.
        """
        async with self.turn():
            return await self._in_thread(self._results, request)

    async def _in_thread(self, do: Callable[..., _T], *arguments: Any) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, do, *arguments)

    def read_head(self) -> dict[str, Any]:
        """The newest link: what to keep elsewhere, to know later that nothing is missing before it.

        Returns:
            `id`, `hash` in hexadecimal, and `count` of the links up to there, archived ones included;
            where it is signed, also `signed_at`, `signature` and `public_key`.

        Raises:
            StoreError: The database cannot be read.
        """
        with self.store.reading() as connection:
            number, hashed = newest_link(connection)
        # Links are numbered from 1 without a gap.
        head = {"id": number, "hash": hashed.hex(), "count": number}
        return head if self._signer is None else self._signer.signed(head)

    def read(self, wanted: AuditFilter) -> Iterator[list[dict[str, Any]]]:
        """The records of a filter, oldest first, in pages of bounded size.

        What is added while the pages are read is not in them. No lock is held between pages.

        Raises:
            StoreError: The database cannot be read; or records were archived before their page came.
        """
        if wanted.since_seq is not None:
            yield from self._followed(wanted)
            return
        with self.store.reading() as connection:
            search = _search(connection, wanted)
            first, left = (0, 0) if search is None else (search.first, wanted.limit)
            if search is not None and left is not None and wanted.after is None:
                first = _start_of_newest(connection, search, left)
        while search is not None and (left is None or left > 0):
            rows = MOST_ROWS_A_PAGE if left is None else min(left, MOST_ROWS_A_PAGE)
            with self.store.reading() as connection:
                _refuse_archived(connection, max(first, search.first))
                numbers = _numbers_from(connection, search, first, rows)
                page = _page(connection, numbers)
            if page:
                yield page
            if len(numbers) < rows and len(page) == len(numbers):
                return
            first = page[-1]["id"] + 1 if page else numbers[-1] + 1
            left = None if left is None else left - len(page)

    def read_stats(self, most: int = 10) -> dict[str, Any]:
        """How many records say what.

        Args:
            most: How many action types, rules and agents are named: the most frequent ones.

        Raises:
            StoreError: The database cannot be read.
        """
        counts: dict[str, Counter[Any]] = {column: Counter() for column in _COUNTED}
        times: list[int] = []
        records = 0
        with self.store.reading() as connection:
            last, _ = newest_link(connection)
            archived, _ = anchor(connection)
        for first in range(archived, last, MOST_LINKS_FOLLOWED):
            where = f"r.id > ? AND r.id <= ? AND {IS_RECORD}"
            span = (first, min(first + MOST_LINKS_FOLLOWED, last))
            with self.store.reading() as connection:
                for column, found in counts.items():
                    said = _STATUS if column == "result_status" else f"r.{column}"
                    for code, count in connection.execute(
                        f"SELECT {said}, count(*) {_FROM} WHERE {where} GROUP BY 1", span
                    ):
                        found[code] += count
                for count, earliest, latest in connection.execute(
                    "SELECT count(*), min(timestamp_us), max(timestamp_us) FROM record AS r"
                    f" WHERE {where}",
                    span,
                ):
                    records += count
                    times += [] if earliest is None else [earliest, latest]
        return {
            "records": records,
            "entries": last - archived,
            "archived_entries": max(archived, 0),
            "first": timestamp_text(min(times)) if times else None,
            "last": timestamp_text(max(times)) if times else None,
            **{
                _COUNTED[column]: self._named(column, found, most)
                for column, found in counts.items()
            },
        }

    def _named(self, column: str, counts: Counter[Any], most: int) -> dict[str, int]:
        """The most frequent values and their counts."""
        match column:
            case "result_status":
                return {STATUSES[code].value: count for code, count in counts.most_common()}
            case "risk_level":
                return {RiskLevel(code).name: count for code, count in counts.most_common()}
            case _:
                with self.store.reading() as connection:
                    return {
                        connection.execute("SELECT text FROM word WHERE id = ?", (code,)).get: count
                        for code, count in counts.most_common(most)
                        if code is not None
                    }

    def _followed(self, wanted: AuditFilter) -> Iterator[list[dict[str, Any]]]:
        """Records by their newest link."""
        with self.store.reading() as connection:
            search = _search(connection, wanted)
            last, _ = newest_link(connection)
        seq, left = wanted.since_seq or 0, wanted.limit
        while search is not None and seq < last and (left is None or left > 0):
            rows = MOST_ROWS_A_PAGE if left is None else min(left, MOST_ROWS_A_PAGE)
            until = min(seq + MOST_LINKS_FOLLOWED, last)
            where, bindings = search.where()
            with self.store.reading() as connection:
                _refuse_archived(connection, max(seq + 1, search.first))
                found: list[Any] = connection.execute(
                    "WITH link AS (SELECT n.id AS seq, ifnull(n.intent, n.id) AS first"
                    " FROM record AS n WHERE n.id > ? AND n.id <= ?)"
                    f" SELECT link.seq, r.id FROM link JOIN record AS r ON r.id = link.first"
                    f" LEFT JOIN record AS o ON {OUTCOME}"
                    f" WHERE {where} AND r.id >= ? AND r.id <= ? AND link.seq = ifnull(o.id, r.id)"
                    " ORDER BY link.seq LIMIT ?",
                    (seq, until, *bindings, search.first, search.last, rows),
                ).fetchall()
                page = _page(connection, [number for _, number in found], by_seq=True)
            seq = page[-1]["seq"] if len(page) < len(found) or len(found) == rows else until
            left = None if left is None else left - len(page)
            if page:
                yield page

    def _results(self, request: int) -> list[dict[str, Any]] | None:
        with self.store.reading() as connection:
            numbers: list[Any] = connection.execute(
                "SELECT record FROM request_record WHERE request = ? ORDER BY position", (request,)
            ).fetchall()
            archived, _ = anchor(connection)
            if any(number <= archived for (number,) in numbers):
                return None
            found: list[dict[str, Any]] = []
            while len(found) < len(numbers):
                part = [number for (number,) in numbers[len(found) : len(found) + MOST_ROWS_A_PAGE]]
                page = _page(connection, part)
                if not page:
                    break
                found += page
        return found


def _search(connection: Connection, wanted: AuditFilter) -> _Search | None:
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
    last, _ = newest_link(connection)
    archived, _ = anchor(connection)
    first = max(archived + 1, 0 if wanted.after is None else wanted.after + 1)
    if wanted.before is not None:
        last = min(last, wanted.before - 1)
    return None if first > last else _Search(codes, wanted.since_us, wanted.until_us, first, last)


def _refuse_archived(connection: Connection, first: int) -> None:
    """See that links from `first` on, which were there, still are.

    Raises:
        StoreError: They were archived meanwhile.
    """
    archived, _ = anchor(connection)
    if archived >= first:
        raise StoreError(f"links up to {archived} were archived while they were read; ask again")


def _numbers_from(connection: Connection, search: _Search, first: int, most: int) -> list[int]:
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
        f"SELECT r.id {_FROM} WHERE {where} AND r.id >= ? AND r.id <= ? ORDER BY r.id LIMIT ?",
        (*bindings, first, search.last, most - len(numbers)),
    ).fetchall()
    return numbers + [number for (number,) in rows]


def _start_of_newest(connection: Connection, search: _Search, most: int) -> int:
    """The number from which on there are `most` records, or as many as there are."""
    if most <= 0:
        return search.last + 1
    sealed = 0 if search.is_plain else sealed_to(connection)
    where, bindings = search.where()
    newest: list[Any] = connection.execute(
        f"SELECT count(*), min(id) FROM (SELECT r.id {_FROM}"
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
    connection: Connection, search: _Search, first: int, *, newest_first: bool
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


def _page(
    connection: Connection, numbers: list[int], *, by_seq: bool = False
) -> list[dict[str, Any]]:
    """These records, as many of them as fit into a page."""
    page: list[dict[str, Any]] = []
    if not numbers:
        return page
    size = 0
    cursor = connection.execute(
        f"{SELECT} WHERE r.id IN ({','.join(map(str, numbers))})"
        f" ORDER BY {'ifnull(o.id, r.id)' if by_seq else 'r.id'}"
    )
    for row in cursor:
        page.append(as_members(row))
        size += sum(len(value) for value in row if isinstance(value, str))
        if size > LARGEST_PAGE_BYTES:
            cursor.close()
            break
    return page
