"""The read side: records by filter, in pages; followers; the head."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from aegis.audit.chain import anchor, newest_entry
from aegis.audit.filters import AuditFilter
from aegis.audit.members import (
    IS_RECORD,
    OUTCOME,
    SELECT,
    STATUSES,
    as_members,
)
from aegis.audit.search import RECORDS, STATUS, find_numbers, find_start, make_search
from aegis.audit.signing import HeadSigner
from aegis.errors import AuditBusy, StoreError
from aegis.store.database import Store
from aegis.store.sql import Connection
from aegis.timestamps import timestamp_text
from aegis_core import RiskLevel

__all__ = ["AuditReader"]

MAX_ROWS_PER_PAGE = 500
MAX_PAGE_BYTES = 4 * 1024 * 1024
MAX_ENTRIES_FOLLOWED = 20_000
"""Looked through for one page of a follower, so that no reading lasts for long."""
MAX_READING = 8
"""Readings that may have pages in memory of which nothing is sent yet."""
MAX_WAITING = 256
"""Readings that wait for their turn; more of them are refused."""

_T = TypeVar("_T")


_COUNTED = {
    "result_status": "result_statuses",
    "risk_level": "risk_levels",
    "action_type": "action_types",
    "matched_rule": "matched_rules",
    "agent": "agents",
}


class AuditReader:
    """Reads the audit of one database.

    Invariant: no reading lasts for longer than a page takes, so that it never keeps the database's
    write-ahead log from starting again.

    Args:
        store: Where the records are.
        signer: Signs the head; None: it is not signed.
    """

    def __init__(self, store: Store, *, signer: HeadSigner | None = None) -> None:
        self.store = store
        self._signer = signer
        self._threads = ThreadPoolExecutor(2, "aegis-audit-read")
        self._turns = asyncio.Semaphore(MAX_READING)
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
        if self._waiting == MAX_WAITING:
            raise AuditBusy(f"{MAX_WAITING} readings of the audit wait for their turn already")
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
        """The newest entry: what to keep elsewhere, to know later that nothing is missing before it.

        Returns:
            `id`, `hash` in hexadecimal, and `count` of the entries up to there, archived ones included;
            where it is signed, also `signed_at`, `signature` and `public_key`.

        Raises:
            StoreError: The database cannot be read.
        """
        with self.store.reading() as connection:
            number, hashed = newest_entry(connection)
        # Entries are numbered from 1 without a gap.
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
            search = make_search(connection, wanted)
            first, left = (0, 0) if search is None else (search.first, wanted.limit)
            if search is not None and left is not None and wanted.after is None:
                first = find_start(connection, search, left)
        while search is not None and (left is None or left > 0):
            rows = MAX_ROWS_PER_PAGE if left is None else min(left, MAX_ROWS_PER_PAGE)
            with self.store.reading() as connection:
                _refuse_archived(connection, max(first, search.first))
                numbers = find_numbers(connection, search, first, rows)
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
            last, _ = newest_entry(connection)
            archived, _ = anchor(connection)
        for first in range(archived, last, MAX_ENTRIES_FOLLOWED):
            where = f"r.id > ? AND r.id <= ? AND {IS_RECORD}"
            span = (first, min(first + MAX_ENTRIES_FOLLOWED, last))
            with self.store.reading() as connection:
                for column, found in counts.items():
                    said = STATUS if column == "result_status" else f"r.{column}"
                    for code, count in connection.execute(
                        f"SELECT {said}, count(*) {RECORDS} WHERE {where} GROUP BY 1", span
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
        """Records by their newest entry."""
        with self.store.reading() as connection:
            search = make_search(connection, wanted)
            last, _ = newest_entry(connection)
        seq, left = wanted.since_seq or 0, wanted.limit
        while search is not None and seq < last and (left is None or left > 0):
            rows = MAX_ROWS_PER_PAGE if left is None else min(left, MAX_ROWS_PER_PAGE)
            until = min(seq + MAX_ENTRIES_FOLLOWED, last)
            where, bindings = search.where()
            with self.store.reading() as connection:
                _refuse_archived(connection, max(seq + 1, search.first))
                found: list[Any] = connection.execute(
                    "WITH entry AS (SELECT n.id AS seq, ifnull(n.intent, n.id) AS first"
                    " FROM record AS n WHERE n.id > ? AND n.id <= ?)"
                    f" SELECT entry.seq, r.id FROM entry JOIN record AS r ON r.id = entry.first"
                    f" LEFT JOIN record AS o ON {OUTCOME}"
                    f" WHERE {where} AND r.id >= ? AND r.id <= ? AND entry.seq = ifnull(o.id, r.id)"
                    " ORDER BY entry.seq LIMIT ?",
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
                part = [
                    number for (number,) in numbers[len(found) : len(found) + MAX_ROWS_PER_PAGE]
                ]
                page = _page(connection, part)
                if not page:
                    break
                found += page
        return found


def _refuse_archived(connection: Connection, first: int) -> None:
    """See that entries from `first` on, which were there, still are.

    Raises:
        StoreError: They were archived meanwhile.
    """
    archived, _ = anchor(connection)
    if archived >= first:
        raise StoreError(f"entries up to {archived} were archived while they were read; ask again")


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
        if size > MAX_PAGE_BYTES:
            cursor.close()
            break
    return page
