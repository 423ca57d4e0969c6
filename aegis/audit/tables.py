"""Judges the tables next to the chain by what the chain says of them: policy versions, archives, requests.

Their rows are answered from, so each must be the one that an entry tells of.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from aegis.audit.chain import anchor, newest_entry
from aegis.audit.entries import ARCHIVE, POLICY, PayloadEntry
from aegis.audit.members import IS_RECORD
from aegis.codec import dumps, loads_own
from aegis.errors import InvalidTrail, StoreError
from aegis.messages import quote
from aegis.store.database import Store
from aegis.store.schema import VERSION_COLUMNS
from aegis.store.sql import Connection

__all__ = [
    "Archived",
    "archive_entry",
    "archived_versions",
    "archives",
    "check_requests",
    "check_versions",
]

_ARCHIVE_COLUMNS = ("last", "hash", "records", "file", "archived_us")


@dataclass(frozen=True, slots=True)
class Archived:
    """A part of the chain that was moved to a file.

    Attributes:
        file: Its name, without a folder.
        last: The number of its last entry.
        hash: The hash of that.
        is_here: Whether a file of this name is next to the database, and ends with that entry.
        why_not: Why such a file could not be read; None where there is none.
    """

    file: str
    last: int
    hash: bytes
    is_here: bool
    why_not: str | None = None


def archive_entry(connection: Connection, now_us: int) -> PayloadEntry:
    """What the chain says of an archive that was made just now.

    That is all archives that there are, and the policy versions whose entries are in them.

    Args:
        connection: In the transaction that has noted the archive.
        now_us: The time.
    """
    last, _ = anchor(connection)
    first_left = min((said["version"] for _, said in _entries(connection, POLICY, last)), default=0)
    newest = connection.execute("SELECT max(version) FROM policy_version").get or 0
    archived = first_left - 1 if first_left else newest
    payload = {
        "archives": [said for _, said in _archive_rows(connection)],
        "versions": archived,
        "versions_sha256": _digest(said for said, _ in _versions(connection, archived)),
    }
    return PayloadEntry(now_us, ARCHIVE, payload)


def archived_versions(connection: Connection, after: int, last: int) -> Iterator[tuple[Any, ...]]:
    """The rows of the policy versions that these entries tell of, with their texts."""
    for _, said in _entries(connection, POLICY, after, last):
        yield from connection.execute(
            f"SELECT {', '.join(VERSION_COLUMNS)}, source FROM policy_version WHERE version = ?",
            (said["version"],),
        )


def check_versions(store: Store) -> None:
    """See that policy versions are those that the chain tells of, with the texts of then.

    Raises:
        InvalidTrail: One is not, or is missing.
        StoreError: The database cannot be read.
    """
    with store.reading() as connection:
        after, _ = anchor(connection)
        entries = {said["version"]: said for _, said in _entries(connection, POLICY, after)}
        archive = _newest_archive_entry(connection, after)
        archived = 0 if archive is None else archive["versions"]
        is_archive = _is_archive(connection)
        before: list[dict[str, Any]] = []
        for said, source in _versions(connection):
            number = said["version"]
            if sha256(source.encode()).hexdigest() != said["sha256"]:
                raise InvalidTrail(f"policy version {number} has another text")
            entry = entries.pop(number, None)
            if entry is None and number <= archived:
                before.append(said)
            elif entry is None:
                raise InvalidTrail(f"policy version {number} has no entry in the chain")
            elif entry != said:
                raise InvalidTrail(
                    f"policy version {number} is not the one that its entry tells of"
                )
    for number in entries:
        raise InvalidTrail(f"policy version {number} is missing")
    if archive is not None and not is_archive and _digest(before) != archive["versions_sha256"]:
        raise InvalidTrail(
            f"policy versions up to {archived}, whose entries are archived, were changed"
        )


def archives(store: Store) -> tuple[Archived, ...]:
    """The parts of the chain that were moved to files, seen to be those that the chain tells of.

    Raises:
        InvalidTrail: One is not, or a file that is next to the database does not end as it must.
        StoreError: The database cannot be read.
    """
    with store.reading() as connection:
        last, hashed = anchor(connection)
        rows = _archive_rows(connection)
        entry = _newest_archive_entry(connection, last)
        is_archive = _is_archive(connection)
    said = [row for _, row in rows]
    if entry is not None:
        newest = entry["archives"][-1]
        if (newest["last"], newest["hash"]) != (last, hashed.hex()):
            raise InvalidTrail("it does not go on from where its newest archive ends")
        if not is_archive and said != entry["archives"]:
            raise InvalidTrail("its archives are not those that its entries tell of")
    elif said:
        raise InvalidTrail(f"nothing in the chain tells of the archive {quote(said[-1]['file'])}")
    return tuple(_found(store, raw["file"], raw["last"], hash_) for hash_, raw in rows)


def _found(store: Store, file: str, last: int, hashed: bytes) -> Archived:
    """An archive, and whether it is next to the database.

    Raises:
        InvalidTrail: It is, and does not end as it must, or is damaged.
    """
    path = Path(store.path).parent / file
    if store.is_memory or Path(file).name != file or not path.is_file():
        return Archived(file, last, hashed, is_here=False)
    try:
        archive = Store(path, read_only=True)
        try:
            with archive.reading() as connection:
                end = newest_entry(connection)
        finally:
            archive.close()
    except StoreError as error:
        if error.is_damaged or not path.stat().st_size:
            raise InvalidTrail(f"its archive {quote(file)} is damaged: {error}") from error
        return Archived(file, last, hashed, is_here=False, why_not=str(error))
    if end != (last, hashed):
        raise InvalidTrail(
            f"its archive {quote(file)} ends with entry {end[0]} and the hash {end[1].hex()},"
            f" not with entry {last} and {hashed.hex()}"
        )
    return Archived(file, last, hashed, is_here=True)


def check_requests(store: Store) -> None:
    """See that what repeated requests are answered by are records, each of one request.

    Raises:
        InvalidTrail: One is not.
        StoreError: The database cannot be read.
    """
    with store.reading() as connection:
        odd = connection.execute(
            "SELECT request FROM request_record AS q LEFT JOIN record AS r ON r.id = q.record"
            f" AND {IS_RECORD} WHERE r.id IS NULL OR NOT EXISTS (SELECT 1 FROM request"
            " WHERE id = q.request) UNION ALL"
            " SELECT max(request) FROM request_record GROUP BY record HAVING count(*) > 1 UNION ALL"
            " SELECT request FROM request_record GROUP BY request"
            " HAVING min(position) <> 0 OR max(position) <> count(*) - 1 LIMIT 1"
        ).get
    if odd is not None:
        raise InvalidTrail(f"request {odd} has records that it has not led to")


def _entries(
    connection: Connection, kind: str, after: int, last: int = 2**63 - 1
) -> Iterator[tuple[int, Any]]:
    """The numbers of the entries of a kind after one, and what they say."""
    for number, payload in connection.execute(
        "SELECT id, payload FROM record WHERE kind = ? AND id > ? AND id <= ? ORDER BY id",
        (kind, after, last),
    ):
        yield number, loads_own(payload)


def _newest_archive_entry(connection: Connection, after: int) -> Any:
    """What the newest entry of an archive says; None: there is none."""
    said = [payload for _, payload in _entries(connection, ARCHIVE, after)]
    return said[-1] if said else None


def _is_archive(connection: Connection) -> bool:
    """Whether the database was made as an archive of another one."""
    return bool(connection.execute("SELECT EXISTS (SELECT 1 FROM archive WHERE file = '')").get)


def _archive_rows(connection: Connection) -> list[tuple[bytes, dict[str, Any]]]:
    """The archives of a database: their last hash, and what an entry says of them."""
    rows: list[Any] = connection.execute(
        f"SELECT {', '.join(_ARCHIVE_COLUMNS)} FROM archive WHERE file <> '' ORDER BY last"
    ).fetchall()
    return [
        (row[1], dict(zip(_ARCHIVE_COLUMNS, row, strict=True)) | {"hash": row[1].hex()})
        for row in rows
    ]


def _versions(
    connection: Connection, until: int = 2**63 - 1
) -> Iterator[tuple[dict[str, Any], str]]:
    """What is stored of each policy version, as its entry says it, and its text."""
    for *row, source in connection.execute(
        f"SELECT {', '.join(VERSION_COLUMNS)}, source FROM policy_version WHERE version <= ?"
        " ORDER BY version",
        (until,),
    ):
        yield dict(zip(VERSION_COLUMNS, row, strict=True)), source


def _digest(versions: Iterator[dict[str, Any]] | list[dict[str, Any]]) -> str:
    digest = sha256()
    for said in versions:
        digest.update(dumps(said) + b"\n")
    return digest.hexdigest()
