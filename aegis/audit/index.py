"""The index of the audit: for each segment of the chain, which of its records say what.

An index that is kept up to date with each record costs more than the record, since the pages that
are touched lie far apart. So the chain is cut into segments of equal length. Once all that a segment
has started has its outcome, nothing that it says can change any more, and bitmaps of its records are
stored, one for each value of each member that can be asked for; only the records since are looked
through one by one. The bitmaps can be made again at any time and are not part of the trail.
"""

from __future__ import annotations

import logging
import threading
import time
from array import array
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from aegis.audit.members import IS_RECORD, OUTCOME, STATUS_CODES, ResultStatus
from aegis.errors import StoreError
from aegis.store.database import Store
from aegis.store.sql import Connection, insert_many

__all__ = ["KINDS", "SEGMENT", "Indexer", "common", "sealed_to"]

_log = logging.getLogger("aegis.audit")

SEGMENT_BITS = 12
SEGMENT = 1 << SEGMENT_BITS
"""Entries of a segment."""

KINDS = (
    "session",
    "action_type",
    "matched_rule",
    "agent",
    "risk_level",
    "result_status",
    "operation",
)
"""Columns that are indexed. INVARIANT: their places are in every file; add only at the end."""

_BITMAP_BYTES = SEGMENT // 8
_MAX_OFFSETS = _BITMAP_BYTES // 2 - 1
_MAX_POSTINGS_AT_ONCE = 512
_INDEXER = 1 << 40
"""The number that the process holds which makes the index for all."""
_BEHIND = SEGMENT // 2
_BOUND_AGAIN_S = 60.0  # trying holds up the writers for up to a second

_ROWS = f"""
SELECT r.id & {SEGMENT - 1}, r.session, r.action_type, r.matched_rule, r.agent, r.risk_level,
    ifnull(o.result_status, r.result_status), r.operation
FROM record AS r LEFT JOIN record AS o ON {OUTCOME}
WHERE r.id >= ? AND r.id < ? AND {IS_RECORD}
ORDER BY r.id
"""
_TIMES = f"""
SELECT ifnull(min(timestamp_us), 0), ifnull(max(timestamp_us), 0) FROM record AS r
WHERE id >= ? AND id < ? AND {IS_RECORD}
"""


def sealed_to(connection: Connection) -> int:
    """The number of the first entry that has no index."""
    newest = connection.execute("SELECT max(id) FROM segment").get
    return 0 if newest is None else (int(newest) + 1) << SEGMENT_BITS


def common(postings: Sequence[bytes]) -> int:
    """The records that are in each of a segment's postings, as bits: bit n is its record n."""
    few = sorted((posting for posting in postings if len(posting) != _BITMAP_BYTES), key=len)
    bits = (1 << SEGMENT) - 1
    if few:
        offsets = set(array("H", few[0]))
        for posting in few[1:]:
            offsets.intersection_update(array("H", posting))
        if not offsets:
            return 0
        bits = int.from_bytes(_bits(offsets), "little")
    for posting in postings:
        if len(posting) == _BITMAP_BYTES:
            bits &= int.from_bytes(posting, "little")
    return bits


def _bits(offsets: Iterable[int]) -> bytes:
    bits = bytearray(_BITMAP_BYTES)
    for offset in offsets:
        bits[offset >> 3] |= 1 << (offset & 7)
    return bytes(bits)


def _encoded(offsets: Sequence[int]) -> bytes:
    """The records of a posting as they are stored: a bitmap, or their places where they are few."""
    if len(offsets) <= _MAX_OFFSETS:
        return array("H", offsets).tobytes()
    return _bits(offsets)


class Indexer:
    """Makes the index in the background; of all processes over one database one does.

    Args:
        store: Where the records are.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._newest = 0
        self._sealed_to = -1
        self._awake = threading.Event()
        self._is_closing = False
        self._is_ours = False
        self._bound_from = 0.0
        self._thread = threading.Thread(target=self._run, name="aegis-audit-index", daemon=True)
        self._thread.start()

    def look(self, newest: int) -> None:
        """See whether there is something to do, now that entry `newest` is stored."""
        self._newest = newest
        if newest - self._sealed_to >= SEGMENT + _BEHIND:
            self._awake.set()

    def close(self) -> None:
        """Stop; a segment that is being sealed may stay undone."""
        self._is_closing = True
        self._awake.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._is_closing:
            self._awake.wait()
            self._awake.clear()
            try:
                self._is_ours = self._is_ours or self._store.hold(_INDEXER)
                while self._is_ours and self._seal_next():
                    pass
            except StoreError as error:
                _log.warning("the audit's index is not up to date: %s", error)
            self._bound_log()
            # What could not be sealed now, or is another process's to do: look again, but not soon.
            self._sealed_to = max(self._sealed_to, self._newest - SEGMENT)

    def _bound_log(self) -> None:
        """See that the write-ahead log does not grow without bound; looks now and then."""
        if not self._is_ours or self._is_closing or time.monotonic() < self._bound_from:
            return
        try:
            self._store.bound_log()
        except StoreError as error:
            self._bound_from = time.monotonic() + _BOUND_AGAIN_S
            _log.warning("somebody reads for so long that the write-ahead log grows: %s", error)

    def _seal_next(self) -> bool:
        if self._is_closing:
            return False
        with self._store.reading() as connection:
            first = sealed_to(connection)
            self._sealed_to = first
            after = first + SEGMENT
            newest = connection.execute("SELECT max(id) FROM record").get or 0
            # The entries of the last segment may still get outcomes.
            if newest < after + _BEHIND or _has_unfinished(connection, first, after):
                return False
            rows: list[Any] = connection.execute(_ROWS, (first, after)).fetchall()
            times: list[Any] = connection.execute(_TIMES, (first, after)).fetchall()
        segment = first >> SEGMENT_BITS
        postings = [
            (segment, kind, word, _encoded(offsets))
            for (kind, word), offsets in sorted(_by_value(rows).items())
        ]
        # Nobody reads them before their segment is there. What is stored of it already is left from a
        # run that was interrupted, or was put there by somebody else.
        with self._store.transaction() as connection:
            connection.execute("DELETE FROM posting WHERE segment = ?", (segment,))
        for start in range(0, len(postings), _MAX_POSTINGS_AT_ONCE):
            with self._store.transaction() as connection:
                insert_many(
                    connection,
                    "posting (segment, kind, word, records)",
                    postings[start : start + _MAX_POSTINGS_AT_ONCE],
                    conflict="REPLACE",
                )
        with self._store.transaction() as connection:
            connection.execute(
                "INSERT OR IGNORE INTO segment (id, first_us, last_us) VALUES (?, ?, ?)",
                (segment, *times[0]),
            )
        return True


def unlike_records(store: Store, archived: int) -> int | None:
    """The first entry from which on the index does not say what the records do; None: it does.

    Args:
        store: Where they are.
        archived: The number up to which the records are elsewhere.

    Raises:
        StoreError: The database cannot be read.
    """
    with store.reading() as connection:
        newest = connection.execute("SELECT max(id) FROM record").get or archived
        sealed = sealed_to(connection)
    for first in range((archived + 1) & -SEGMENT, sealed, SEGMENT):
        if first + SEGMENT > newest + 1:
            return first  # it is said to be whole, and is not
        with store.reading() as connection:
            if _has_unfinished(connection, first, first + SEGMENT) or not _is_like(
                connection, first, max(first, archived + 1)
            ):
                return first
    return None


def _is_like(connection: Connection, first: int, since: int) -> bool:
    """Whether what is stored of a segment is what would be made of its records now.

    Args:
        connection: To read with.
        first: The number of the segment's first entry.
        since: Of the first one that is there; what was archived of it is in the index still.
    """
    segment, after = first >> SEGMENT_BITS, first + SEGMENT
    rows: list[Any] = connection.execute(_ROWS, (since, after)).fetchall()
    times: list[Any] = connection.execute(_TIMES, (since, after)).fetchall()
    stored_times: list[Any] = connection.execute(
        "SELECT first_us, last_us FROM segment WHERE id = ?", (segment,)
    ).fetchall()
    postings: list[Any] = connection.execute(
        "SELECT kind, word, records FROM posting WHERE segment = ?", (segment,)
    ).fetchall()
    stored = {(kind, word): records for kind, word, records in postings}
    made = {key: _encoded(offsets) for key, offsets in _by_value(rows).items()}
    if since == first:
        return stored_times == times and stored == made
    here = -1 << (since - first)
    try:
        left = {key: common([records]) & here for key, records in stored.items()}
        return (
            len(stored_times) == 1
            and (not rows or stored_times[0][0] <= times[0][0] <= times[0][1] <= stored_times[0][1])
            and {key: bits for key, bits in left.items() if bits}
            == {key: common([records]) for key, records in made.items()}
        )
    except (TypeError, ValueError, IndexError):  # what is stored is no posting
        return False


def _by_value(rows: Sequence[tuple[int, ...]]) -> dict[tuple[int, int], list[int]]:
    """The records of a segment by what they say: where in it they are, in their order."""
    found: dict[tuple[int, int], list[int]] = {}
    if not rows:
        return found
    offsets, *columns = zip(*rows, strict=True)
    for kind, column in enumerate(columns):
        if column.count(column[0]) == len(column):  # often: one risk level, one operation
            if column[0] is not None:
                found[(kind, column[0])] = list(offsets)
            continue
        here: defaultdict[int | None, list[int]] = defaultdict(list)
        for offset, value in zip(offsets, column, strict=True):
            here[value].append(offset)
        found |= {(kind, value): places for value, places in here.items() if value is not None}
    return found


def _has_unfinished(connection: Connection, first: int, after: int) -> bool:
    """Whether some of these records still wait for their outcome."""
    return bool(
        connection.execute(
            "SELECT EXISTS (SELECT 1 FROM record AS r WHERE r.id >= ? AND r.id < ?"
            f" AND r.result_status = ? AND {IS_RECORD}"
            f" AND NOT EXISTS (SELECT 1 FROM record AS o WHERE {OUTCOME}))",
            (first, after, STATUS_CODES[ResultStatus.STARTED]),
        ).get
    )
