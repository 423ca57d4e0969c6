"""Judges a trail: the first link that was changed, removed, inserted or moved, or a missing end.

A chain shows that whoever changed it did not make all of it anew from there on. That this was not
done either shows a head that was kept elsewhere, or one that the server signed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from aegis.audit.chain import anchor, newest_link
from aegis.audit.postings import unlike_records
from aegis.audit.records import CANONICAL, GENESIS
from aegis.errors import InvalidTrail, StoreError, shown
from aegis.store import Store
from aegis.versions import PolicyHistory

__all__ = [
    "EXPORT_HEAD",
    "Pin",
    "Verified",
    "exported_links",
    "is_database",
    "verify",
    "verify_export",
]

_LINKS_AT_ONCE = 20_000
_BYTES_AT_ONCE = 8 * 1024 * 1024
EXPORT_HEAD = "aegis-audit-chain 1"
"""How the first line of an exported chain begins."""

Linked = tuple[int, bytes, bytes]
"""A link's number, its hash, and its canonical form."""


@dataclass(frozen=True, slots=True)
class Pin:
    """A head that was kept elsewhere.

    Attributes:
        hash: Of a link.
        number: Of that link; None where only the hash was kept.
    """

    hash: bytes
    number: int | None = None


@dataclass(frozen=True, slots=True)
class Verified:
    """A trail without fault.

    Attributes:
        first: The number of the first link that was looked at.
        last: The number of the last one.
        count: How many there were.
        hash: The hash of the last one.
        pinned: The number of the pinned link, where there is a pin: one of these, or the one that
            they go on from; 0 is what every chain begins with.
        archives: The files that the links before the first one were moved to, where that is known.
    """

    first: int
    last: int
    count: int
    hash: bytes
    pinned: int | None
    archives: tuple[str, ...] = ()


def verify(
    store: Store,
    *,
    pin: Pin | None = None,
    since: int | None = None,
    tick: Callable[[int], None] = lambda _: None,
) -> Verified:
    """See that a database's trail is whole and as it was written.

    Args:
        store: Where it is.
        pin: A head that has to be in it.
        since: The first link to look at; the one before it is believed.
        tick: Told how many links were looked at.

    Raises:
        InvalidTrail: It is not, and where.
        StoreError: It cannot be read.
    """
    with store.reading() as connection:
        last, _ = newest_link(connection)
        archived, previous = anchor(connection)
        archives: list[Any] = connection.execute(
            "SELECT last, file FROM archive ORDER BY last"
        ).fetchall()
    number = archived
    if since is not None and since > number + 1:
        number, previous = since - 1, _hash_of(store, since - 1)
        _refuse_unreached(store, pin, since)
    elif pin is not None and pin.number is not None and 0 < pin.number < number:
        holder = next((shown(name) for last, name in archives if name and last >= pin.number), "")
        raise StoreError(
            f"the pinned link {pin.number} was archived; verify {holder or 'its archive'} with it"
        )
    try:
        verified = _walked(_links(store, number, last, tick), number, previous, pin)
        if verified.last < last:
            raise InvalidTrail("is missing", verified.last + 1)
        odd = _stray(store)
        if odd is not None:
            raise InvalidTrail("stands where no link can be", odd)
        odd = _lost_outcome(store, number, last) or unlike_records(store, archived)
        if odd is not None:
            raise InvalidTrail("is not where the index says; records may not be found by it", odd)
    except InvalidTrail:
        with store.reading() as connection:
            is_archiving = anchor(connection)[0] != archived
        if is_archiving:
            raise StoreError("links were archived while they were looked at; try again") from None
        raise
    store.check()
    PolicyHistory(store).check()
    names = tuple(name for _, name in archives if name) if number == archived else ()
    return replace(verified, archives=names)


def verify_export(
    lines: Iterable[bytes], *, pin: Pin | None = None, tick: Callable[[int], None] = lambda _: None
) -> Verified:
    """See that an exported chain is whole and as it was written.

    Args:
        lines: Of `exported_links`.
        pin: A head that has to be in it.
        tick: Told how many links were looked at.

    Raises:
        InvalidTrail: It is not, and where.
        StoreError: It is no such export.
    """
    source = iter(lines)
    number, previous = _export_head(next(source, b""))
    if number == 0 and previous != GENESIS:
        raise InvalidTrail("goes on from a hash that no chain begins with", 1)
    if pin is not None and pin.number is not None and 0 < pin.number < number:
        raise StoreError(
            f"the pinned link {pin.number} is before link {number + 1}, the first here"
        )
    return _walked(_read_lines(source, number, tick), number, previous, pin)


def exported_links(
    store: Store, *, since: int | None = None, tick: Callable[[int], None] = lambda _: None
) -> Iterator[bytes]:
    """The chain as text, so that others can verify it: a head, then a line a link.

    Raises:
        StoreError: It cannot be read.
    """
    with store.reading() as connection:
        last, _ = newest_link(connection)
        number, previous = anchor(connection)
    if since is not None and since > number + 1:
        number, previous = since - 1, _hash_of(store, since - 1)
    yield _export_line(number, previous)
    for _, hashed, canonical in _links(store, number, last, tick):
        yield b"%b %b\n" % (hashed.hex().encode(), canonical)


def _walked(links: Iterable[Linked], number: int, previous: bytes, pin: Pin | None) -> Verified:
    first = number + 1
    pinned = None if pin is None else _pinned_before(pin, number, previous)
    wanted = pin if pinned is None else None
    for found, hashed, canonical in links:
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
    """The pinned link's number, where it is the one that is gone on from, or the beginning of all."""
    for known, hashed in ((0, GENESIS), (number, previous)):
        if pin.number == known and pin.hash != hashed:
            raise InvalidTrail(_MADE_ANEW, known)
        if pin.hash == hashed and pin.number in (None, known):
            return known
    return None


def _links(store: Store, after: int, last: int, tick: Callable[[int], None]) -> Iterator[Linked]:
    count = 0
    while after < last:
        with store.reading() as connection:
            rows = _some(
                connection.execute(
                    f"{CANONICAL} WHERE r.id > ? AND r.id <= ? ORDER BY r.id LIMIT ?",
                    (after, last, _LINKS_AT_ONCE),
                )
            )
        if not rows:
            return
        yield from rows
        after = rows[-1][0]
        count += len(rows)
        tick(count)


def _some(links: Iterable[Linked]) -> list[Linked]:
    """As many of the links as may be in memory at once."""
    found: list[Linked] = []
    size = 0
    for link in links:
        found.append(link)
        size += len(link[2])
        if size > _BYTES_AT_ONCE:
            break
    return found


def _lost_outcome(store: Store, after: int, last: int) -> int | None:
    """The first outcome that its record does not lead to."""
    for first in range(after, last, _LINKS_AT_ONCE):
        with store.reading() as connection:
            odd = connection.execute(
                "SELECT min(r.id) FROM record AS r WHERE r.id > ? AND r.id <= ?"
                " AND r.intent IS NOT NULL AND NOT EXISTS (SELECT 1 FROM record AS o"
                " INDEXED BY outcome WHERE o.intent = r.intent AND o.id = r.id)",
                (first, min(first + _LINKS_AT_ONCE, last)),
            ).get
        if odd is not None:
            return int(odd)
    return None


def _stray(store: Store) -> int | None:
    """A link that the chain does not lead to: one before the first, an outcome before its record."""
    with store.reading() as connection:
        odd = connection.execute(
            "SELECT min(id) FROM (SELECT id FROM record WHERE id < 1 UNION ALL"
            " SELECT id FROM record INDEXED BY outcome WHERE intent IS NOT NULL AND intent >= id)"
        ).get
    return None if odd is None else int(odd)


def _refuse_unreached(store: Store, pin: Pin | None, since: int) -> None:
    """Refuse a pin that nothing leads to from the first link to look at.

    Raises:
        StoreError: It is of a link before the one that is gone on from.
    """
    number = None if pin is None else pin.number
    if pin is not None and number is None:
        with store.reading() as connection:
            number = connection.execute(
                "SELECT max(id) FROM record WHERE id < ? AND hash = ?", (since, pin.hash)
            ).get
    if number is not None and 0 < number < since - 1:
        raise StoreError(
            f"the pinned link {number} is before link {since}, the first to look at; look at all"
            f" from link {number + 1} on"
        )


def _hash_of(store: Store, number: int) -> bytes:
    with store.reading() as connection:
        hashed = connection.execute("SELECT hash FROM record WHERE id = ?", (number,)).get
    if hashed is None:
        raise StoreError(f"there is no link {number} in {shown(store.path)}")
    return bytes(hashed)


def _export_line(number: int, hashed: bytes) -> bytes:
    return f"{EXPORT_HEAD} {number} {hashed.hex()}\n".encode()


def _export_head(line: bytes) -> tuple[int, bytes]:
    rest = line.decode("utf-8", "replace").removeprefix(f"{EXPORT_HEAD} ")
    number, _, hashed = rest.partition(" ")
    try:
        previous = bytes.fromhex(hashed)
        # Only in the very form in which it was written.
        if int(number) < 0 or line != _export_line(int(number), previous):
            raise ValueError
        return int(number), previous
    except ValueError:
        raise StoreError(
            f"this is neither a database nor an exported chain, whose first line is"
            f" `{EXPORT_HEAD} NUMBER HASH`"
        ) from None


def _read_lines(
    lines: Iterator[bytes], number: int, tick: Callable[[int], None]
) -> Iterator[Linked]:
    for count, line in enumerate(lines, 1):
        hashed, _, canonical = line.removesuffix(b"\n").partition(b" ")
        place = number + count
        try:
            read = bytes.fromhex(hashed.decode("ascii"))
        except ValueError:
            read = b""
        if read.hex().encode() != hashed:
            raise InvalidTrail("was changed: its line has no hash", place)
        # What is hashed says its number as well; the head says after which one it stands.
        if not canonical.startswith((b'["record",%d,' % place, b'["outcome",%d,' % place)):
            raise InvalidTrail("was changed, or is not the one that stood here", place)
        yield place, read, canonical
        if count % _LINKS_AT_ONCE == 0:
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
        raise StoreError(f"cannot read {shown(str(path))}: {error.strerror}") from None
