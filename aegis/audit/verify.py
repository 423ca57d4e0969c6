"""Judges a trail: the first link that was changed, removed, inserted or moved, or a missing end.

A chain shows that whoever changed it did not make all of it anew from there on. That this was not
done either shows a head that was kept elsewhere, or one that the server signed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from aegis.audit.chain import newest_link
from aegis.audit.postings import unlike_records
from aegis.audit.records import CANONICAL, GENESIS
from aegis.errors import InvalidTrail, StoreError, shown
from aegis.store import Store

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
        is_pinned: Whether the head that was kept elsewhere is in it.
    """

    first: int
    last: int
    count: int
    hash: bytes
    is_pinned: bool


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
        anchors: list[Any] = connection.execute("SELECT last, hash FROM archive").fetchall()
    number, previous = max(anchors, default=(0, GENESIS))
    known = {0: GENESIS, **dict(anchors)}
    if pin is not None and pin.number is not None and 0 < pin.number < number:
        raise StoreError(f"the pinned link {pin.number} was archived; verify its archive with it")
    if since is not None and since > number + 1:
        number, previous = since - 1, _hash_of(store, since - 1)
        if pin is not None:
            known |= _pinned_before(store, pin, since)
    known[number] = previous
    verified = _walked(_links(store, number, last, tick), number, previous, pin, known)
    if verified.last < last:
        raise InvalidTrail("is missing", verified.last + 1)
    odd = _lost_outcome(store, number, last) or unlike_records(store, number)
    if odd is not None:
        raise InvalidTrail("is not where the index says; records may not be found by it", odd)
    store.check_words()
    return verified


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
    return _walked(_read_lines(source, number, tick), number, previous, pin, {number: previous})


def exported_links(
    store: Store, *, since: int | None = None, tick: Callable[[int], None] = lambda _: None
) -> Iterator[bytes]:
    """The chain as text, so that others can verify it: a head, then a line a link.

    Raises:
        StoreError: It cannot be read.
    """
    with store.reading() as connection:
        last, _ = newest_link(connection)
        anchors: list[Any] = connection.execute("SELECT last, hash FROM archive").fetchall()
    number, previous = max(anchors, default=(0, GENESIS))
    if since is not None and since > number + 1:
        number, previous = since - 1, _hash_of(store, since - 1)
    yield _export_line(number, previous)
    for _, hashed, canonical in _links(store, number, last, tick):
        yield b"%b %b\n" % (hashed.hex().encode(), canonical)


def _walked(
    links: Iterable[Linked],
    number: int,
    previous: bytes,
    pin: Pin | None,
    known: dict[int, bytes],
) -> Verified:
    first = number + 1
    # A pin may lie before what is looked at.
    if pin is not None and pin.number in known and known[pin.number] != pin.hash:
        raise InvalidTrail("is not the pinned one: the chain was made anew", pin.number)
    is_pinned = pin is not None and pin.hash in known.values()
    wanted = None if pin is None or is_pinned else pin.hash
    for found, hashed, canonical in links:
        number += 1
        if found != number:
            raise InvalidTrail("is missing" if found > number else "stands twice", number)
        # The hash of what was stored before, and of what is here now.
        if sha256(previous + canonical).digest() != hashed:
            raise InvalidTrail("was changed, or is not the one that stood here", number)
        if hashed == wanted:
            is_pinned = True
        if pin is not None and number == pin.number and hashed != pin.hash:
            raise InvalidTrail("is not the pinned one: the chain was made anew", number)
        previous = hashed
    if pin is not None and not is_pinned:
        if pin.number is not None and pin.number > number:
            raise InvalidTrail(f"is missing, and all up to the pinned {pin.number}", number + 1)
        raise InvalidTrail(
            "is missing, or the chain was made anew: the pinned head is not in it", number + 1
        )
    return Verified(first, number, number - first + 1, previous, is_pinned)


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


def _pinned_before(store: Store, pin: Pin, since: int) -> dict[int, bytes]:
    """The pinned link, where it is there and before a link."""
    with store.reading() as connection:
        found: list[Any] = connection.execute(
            "SELECT id, hash FROM record WHERE id < ?1 AND iif(?2 IS NULL, hash = ?3, id = ?2)",
            (since, pin.number, pin.hash),
        ).fetchall()
    return dict(found)


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
        if line != _export_line(int(number), previous):
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
