"""The hash chain as it is hashed: entries with their canonical bytes, and as text for others to verify."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from aegis.audit.chain import anchor, newest_entry
from aegis.audit.members import CANONICAL
from aegis.errors import StoreError
from aegis.messages import quote
from aegis.store.database import Store

__all__ = [
    "EXPORT_HEAD",
    "ChainEntry",
    "Read",
    "exported_entries",
    "format_head",
    "hash_of",
    "read_entries",
    "stored_entries",
]

EXPORT_HEAD = "aegis-audit-chain 1"
"""How the first line of an exported chain starts."""

_MAX_ENTRIES_READ = 20_000
_MAX_BYTES_READ = 8 * 1024 * 1024

Read = tuple[int, bytes, bytes]
"""An entry's number, its hash, and its canonical form."""


class ChainEntry(NamedTuple):
    """An entry of the hash chain.

    Invariant: `hash` is the SHA-256 of `previous_hash` and `canonical`, unless the file was changed.

    Attributes:
        id: Its number; numbers have no gap.
        previous_hash: The hash of the entry before it, 32 bytes; zeros before the first one.
        hash: Its own hash, 32 bytes.
        canonical: What is hashed: JSON in UTF-8, an array of its kind, its number and what it says.
    """

    id: int
    previous_hash: bytes
    hash: bytes
    canonical: bytes


def read_entries(database: str | Path, *, after: int | None = None) -> Iterator[ChainEntry]:
    """The entries of an audit, oldest first, up to the one that is the newest at the start.

    Servers may write meanwhile. To go on later, give the number of the last entry that you had.

    Args:
        database: The file; it is only read.
        after: The number of the entry to go on from; None: from the first one in the file.

    Raises:
        StoreError: The file cannot be read; there is no entry of that number; or what comes after it
            was archived, also while it was read.

    Cost: at most 8 MiB of entries are in memory, or a single larger one; no lock is held between them.
    """
    with closing(Store(database, read_only=True)) as store:
        with store.reading() as connection:
            last, _ = newest_entry(connection)
            archived, previous = anchor(connection)
        number = archived
        if after is not None and after > archived:
            number, previous = after, hash_of(store, after)
        elif after is not None and after < archived and archived > 0:
            raise StoreError(
                f"entries up to {archived} were archived; go on from {archived}, or read the archive"
            )
        for found, hashed, canonical in stored_entries(store, number, last):
            number += 1
            if found != number:
                raise StoreError(
                    f"entry {number} of {quote(store.path)} is missing or was archived"
                )
            yield ChainEntry(number, previous, hashed, canonical)
            previous = hashed


def exported_entries(
    store: Store, *, since: int | None = None, tick: Callable[[int], None] = lambda _: None
) -> Iterator[bytes]:
    """The chain as text, so that others can verify it: a head, then a line an entry.

    Raises:
        StoreError: It cannot be read.
    """
    with store.reading() as connection:
        last, _ = newest_entry(connection)
        number, previous = anchor(connection)
    if since is not None and since > number + 1:
        number, previous = since - 1, hash_of(store, since - 1)
    yield format_head(number, previous)
    for _, hashed, canonical in stored_entries(store, number, last, tick):
        yield b"%b %b\n" % (hashed.hex().encode(), canonical)


def format_head(number: int, hashed: bytes) -> bytes:
    """The first line of an export: the entry that it goes on from."""
    return f"{EXPORT_HEAD} {number} {hashed.hex()}\n".encode()


def stored_entries(
    store: Store, after: int, last: int, tick: Callable[[int], None] = lambda _: None
) -> Iterator[Read]:
    """The entries after one up to another, as they are stored, a part of bounded size at a time.

    Raises:
        StoreError: They cannot be read.
    """
    count = 0
    while after < last:
        with store.reading() as connection:
            rows = _some(
                connection.execute(
                    f"{CANONICAL} WHERE r.id > ? AND r.id <= ? ORDER BY r.id LIMIT ?",
                    (after, last, _MAX_ENTRIES_READ),
                )
            )
        if not rows:
            return
        yield from rows
        after = rows[-1][0]
        count += len(rows)
        tick(count)


def _some(entries: Iterable[Read]) -> list[Read]:
    """As many of the entries as may be in memory at once."""
    found: list[Read] = []
    size = 0
    for entry in entries:
        found.append(entry)
        size += len(entry[2])
        if size > _MAX_BYTES_READ:
            break
    return found


def hash_of(store: Store, number: int) -> bytes:
    """The hash of an entry.

    Raises:
        StoreError: There is no such entry.
    """
    with store.reading() as connection:
        hashed = connection.execute("SELECT hash FROM record WHERE id = ?", (number,)).get
    if hashed is None:
        raise StoreError(f"there is no entry {number} in {quote(store.path)}")
    return bytes(hashed)
