"""Judges a trail: the first entry that was changed, removed, inserted or moved, or a missing end.

All that is read through is judged with it: tables, indexes, their schema.

A chain shows that its changes were not followed by making all of it again from there on. That this was not
done either shows a head that was kept elsewhere, or one that the server signed.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from aegis.audit.chain import anchor, newest_entry
from aegis.audit.entries import GENESIS, KINDS
from aegis.audit.export import EXPORT_HEAD, Read, format_head, hash_of, stored_entries
from aegis.audit.index import unlike_records
from aegis.audit.members import STATUS_CODES, ResultStatus
from aegis.audit.tables import Archived, archives, check_requests, check_versions
from aegis.errors import InvalidTrail, StoreError
from aegis.messages import quote
from aegis.store.database import Store

__all__ = [
    "Pin",
    "Verified",
    "is_database",
    "verify",
    "verify_export",
]

_ENTRIES_PER_TICK = 20_000


@dataclass(frozen=True, slots=True)
class Pin:
    """A head that was kept elsewhere.

    Attributes:
        hash: Of an entry.
        number: Of that entry; None where only the hash was kept.
    """

    hash: bytes
    number: int | None = None


@dataclass(frozen=True, slots=True)
class Verified:
    """A trail without fault.

    Attributes:
        first: The number of the first entry that was looked at.
        last: The number of the last one.
        count: How many there were.
        hash: The hash of the last one.
        pinned: The number of the pinned entry, where there is a pin: one of these, or the one that
            they go on from; 0 is what every chain begins with.
        archives: The files that the entries before the first one were moved to.
        is_archive: Whether it is such a file, so that another database says how it must end.
        newer: The kinds of entries that this release does not know, and how many there are of each:
            their hashes are right, what they say was not judged.
    """

    first: int
    last: int
    count: int
    hash: bytes
    pinned: int | None
    archives: tuple[Archived, ...] = ()
    is_archive: bool = False
    newer: Mapping[str, int] = field(default_factory=dict)


def verify(
    store: Store,
    *,
    pin: Pin | None = None,
    since: int | None = None,
    tick: Callable[[int], None] = lambda _: None,
) -> Verified:
    """See that a database's trail is whole and as it was written, and so is all that is read through.

    Args:
        store: Where it is.
        pin: A head that has to be in it.
        since: The first entry to look at; the one before it is believed.
        tick: Given how many entries were looked at.

    Raises:
        InvalidTrail: It is not, and where.
        StoreError: It cannot be read.
    """
    archived = 0
    try:
        with store.reading() as connection:
            last, _ = newest_entry(connection)
            archived, previous = anchor(connection)
        verified = _verified(store, archived, previous, last, pin, since, tick)
    except InvalidTrail:
        with store.reading() as connection:
            is_archiving = anchor(connection)[0] > max(archived, 0)
        if is_archiving:
            raise StoreError("entries were archived while they were looked at; try again") from None
        raise
    except StoreError as error:
        if error.is_damaged:
            raise InvalidTrail(str(error)) from error
        raise
    except _UNREADABLE as error:
        raise InvalidTrail("the file is damaged: it holds what Aegis does not write") from error
    return verified


_UNREADABLE = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""What comes of values of another kind than Aegis stores, where a row was changed to have them."""


def _verified(
    store: Store,
    archived: int,
    previous: bytes,
    last: int,
    pin: Pin | None,
    since: int | None,
    tick: Callable[[int], None],
) -> Verified:
    number = archived
    if since is not None and since > number + 1:
        number, previous = since - 1, hash_of(store, since - 1)
        _refuse_unreached(store, pin, since)
    elif pin is not None and pin.number is not None and 0 < pin.number < number:
        holder = _archive_of(store, pin.number)
        raise StoreError(f"the pinned entry {pin.number} was archived; verify {holder} with it")
    verified = _walked(stored_entries(store, number, last, tick), number, previous, pin)
    if verified.last < last:
        raise InvalidTrail("is missing", verified.last + 1)
    fault = store.find_fault()
    if fault is not None:
        raise InvalidTrail(fault)
    odd = _stray(store)
    if odd is not None:
        raise InvalidTrail("stands where no entry can be", odd)
    odd = unlike_records(store, archived)
    if odd is not None:
        raise InvalidTrail("is not where the index says; records may not be found by it", odd)
    check_requests(store)
    if store.is_older:  # it has no entries of versions and archives
        return verified
    check_versions(store)
    found = archives(store)
    with store.reading() as connection:
        kinds: list[Any] = connection.execute(
            "SELECT kind, count(*) FROM record WHERE kind IS NOT NULL GROUP BY kind"
        ).fetchall()
        is_archive = connection.execute("SELECT EXISTS (SELECT 1 FROM archive WHERE file = '')").get
    return replace(
        verified,
        archives=found,
        is_archive=bool(is_archive),
        newer={kind: count for kind, count in kinds if kind not in KINDS},
    )


def verify_export(
    lines: Iterable[bytes], *, pin: Pin | None = None, tick: Callable[[int], None] = lambda _: None
) -> Verified:
    """See that an exported chain is whole and as it was written.

    Args:
        lines: Of `exported_entries`.
        pin: A head that has to be in it.
        tick: Given how many entries were looked at.

    Raises:
        InvalidTrail: It is not, and where.
        StoreError: It is no such export.
    """
    source = iter(lines)
    number, previous = _export_head(next(source, b""))
    if number <= 0 and previous != GENESIS:
        raise InvalidTrail("goes on from a hash that no chain begins with", number + 1)
    if pin is not None and pin.number is not None and 0 < pin.number < number:
        raise StoreError(
            f"the pinned entry {pin.number} is before entry {number + 1}, the first here"
        )
    newer: Counter[str] = Counter()
    verified = _walked(_read_lines(source, number, newer, tick), number, previous, pin)
    return replace(verified, newer=newer)


def _walked(entries: Iterable[Read], number: int, previous: bytes, pin: Pin | None) -> Verified:
    first = number + 1
    pinned = None if pin is None else _pinned_before(pin, number, previous)
    wanted = pin if pinned is None else None
    for found, hashed, canonical in entries:
        number += 1
        if found != number:
            raise InvalidTrail("is missing" if found > number else "stands twice", number)
        # The hash of what was stored before, and of what is here now.
        if sha256(previous + canonical).digest() != hashed:
            raise InvalidTrail("was changed, or is not the one that stood here", number)
        if wanted is not None:
            if hashed == wanted.hash and wanted.number in (None, number):
                pinned, wanted = number, None
            elif number == wanted.number:
                raise InvalidTrail(_MADE_ANEW, number)
        previous = hashed
    if wanted is not None:
        if wanted.number is not None:
            raise InvalidTrail(f"is missing, and all up to the pinned {wanted.number}", number + 1)
        raise InvalidTrail(
            "is missing, or the chain was made anew: the pinned head is not in it", number + 1
        )
    return Verified(first, number, number - first + 1, previous, pinned)


_MADE_ANEW = "is not the pinned one: the chain was made anew"


def _pinned_before(pin: Pin, number: int, previous: bytes) -> int | None:
    """The pinned entry's number, where it is the one that is gone on from, or the beginning of all."""
    # Where the chain begins with entry 0, a pin of that number is looked for further on.
    places = [(number, previous)]
    if number >= 0 or pin.hash == GENESIS:
        places.insert(0, (0, GENESIS))
    for known, hashed in places:
        if pin.number == known and pin.hash != hashed:
            raise InvalidTrail(_MADE_ANEW, known)
        if pin.hash == hashed and pin.number in (None, known):
            return known
    return None


def _stray(store: Store) -> int | None:
    """An entry that Aegis does not write there: one before the first, an outcome of what had not begun.

    Who adds an outcome of a record that has ended changes what an old answer says, without a change of
    any entry before it.
    """
    with store.reading() as connection:
        odd = connection.execute(
            "SELECT min(id) FROM (SELECT id FROM record WHERE id < 0"
            " UNION ALL SELECT id FROM record WHERE id = 0 AND kind IS NULL UNION ALL"
            " SELECT id FROM record WHERE intent IS NOT NULL AND (intent >= id OR intent < 1)"
            " UNION ALL SELECT o.id FROM record o JOIN record r ON r.id = o.intent"
            " WHERE o.intent IS NOT NULL"
            " AND (r.intent IS NOT NULL OR r.result_status IS NOT ?))",
            (STATUS_CODES[ResultStatus.STARTED],),
        ).get
    return None if odd is None else int(str(odd))


def _archive_of(store: Store, number: int) -> str:
    """The name of the archive that has an entry."""
    with store.reading() as connection:
        file = connection.execute(
            "SELECT file FROM archive WHERE last >= ? AND file <> '' ORDER BY last LIMIT 1",
            (number,),
        ).get
    return quote(file) if file else "its archive"


def _refuse_unreached(store: Store, pin: Pin | None, since: int) -> None:
    """Refuse a pin that nothing leads to from the first entry to look at.

    Raises:
        StoreError: It is of an entry before the one that is gone on from.
    """
    number = None if pin is None else pin.number
    if pin is not None and number is None:
        with store.reading() as connection:
            number = connection.execute(
                "SELECT max(id) FROM record WHERE id < ? AND hash = ?", (since, pin.hash)
            ).get
    if number is not None and 0 < number < since - 1:
        raise StoreError(
            f"the pinned entry {number} is before entry {since}, the first to look at; look at all"
            f" from entry {number + 1} on"
        )


def _export_head(line: bytes) -> tuple[int, bytes]:
    rest = line.decode("utf-8", "replace").removeprefix(f"{EXPORT_HEAD} ")
    number, _, hashed = rest.partition(" ")
    try:
        previous = bytes.fromhex(hashed)
        # Only in the very form in which it was written.
        if int(number) < -1 or line != format_head(int(number), previous):
            raise ValueError
        return int(number), previous
    except ValueError:
        raise StoreError(
            f"this is neither a database nor an exported chain, whose first line is"
            f" `{EXPORT_HEAD} NUMBER HASH`"
        ) from None


_BEGIN = re.compile(rb'\["([a-z_]+)",(\d+),')
"""How the canonical form of an entry of any kind begins."""


def _read_lines(
    lines: Iterator[bytes], number: int, newer: Counter[str], tick: Callable[[int], None]
) -> Iterator[Read]:
    for count, line in enumerate(lines, 1):
        hashed, _, canonical = line.removesuffix(b"\n").partition(b" ")
        place = number + count
        try:
            read = bytes.fromhex(hashed.decode("ascii"))
        except ValueError:
            read = b""
        if read.hex().encode() != hashed:
            raise InvalidTrail("was changed: its line has no hash", place)
        # What is hashed says its number as well; the head says after which one it comes.
        if not canonical.startswith((b'["record",%d,' % place, b'["outcome",%d,' % place)):
            begin = _BEGIN.match(canonical)
            if begin is None or int(begin[2]) != place:
                raise InvalidTrail("was changed, or is not the one that stood here", place)
            kind = begin[1].decode()
            if kind not in KINDS:
                newer[kind] += 1
        yield place, read, canonical
        if count % _ENTRIES_PER_TICK == 0:
            tick(count)


def is_database(path: str | Path) -> bool:
    """Whether a file is one of SQLite's, rather than an exported chain.

    Raises:
        StoreError: It cannot be read.
    """
    try:
        with Path(path).open("rb") as file:
            return file.read(16) == b"SQLite format 3\0"
    except OSError as error:
        raise StoreError(f"cannot read {quote(str(path))}: {error.strerror}") from None
