"""The history of a policy in the database: every version that was ever in force, with its text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from aegis.errors import NotFound, PreconditionFailed
from aegis.store.database import Store
from aegis.store.schema import VERSION_COLUMNS
from aegis.store.sql import Connection
from aegis.timestamps import timestamp_text

__all__ = ["Journal", "PolicyHistory", "PolicyVersion"]

_COLUMNS = "version, sha256, origin, created_us, key_name, note"


@dataclass(frozen=True, slots=True)
class PolicyVersion:
    """What is known of a policy that was put into force, besides its text.

    Attributes:
        version: 1, 2, 3, … over all origins.
        sha256: Of the text, in hexadecimal.
        origin: `file`, `put` or `rollback`.
        created_us: When, in microseconds since the epoch.
        key_name: Whose key put it; None for a file, and where there were no keys.
        note: What was said about it.
    """

    version: int
    sha256: str
    origin: str
    created_us: int
    key_name: str | None = None
    note: str | None = None

    def as_json(self) -> dict[str, Any]:
        """It, as the API and the commands write it."""
        return {
            "version": self.version,
            "sha256": self.sha256,
            "origin": self.origin,
            "created": timestamp_text(self.created_us),
            "key_name": self.key_name,
            "note": self.note,
        }


class Journal(Protocol):
    """Records changes where they are made: the audit, to this room."""

    def transaction(
        self,
    ) -> AbstractContextManager[tuple[Connection, Callable[[str, int, Mapping[str, Any]], None]]]:
        """A transaction, and what records an entry in it: its kind, time (µs) and payload."""
        ...


class PolicyHistory:
    """The versions in a database; rows are only ever added, each with an entry of the audit's chain.

    Args:
        store: The database.
        journal: Of that database.
    """

    def __init__(self, store: Store, journal: Journal) -> None:
        self._store = store
        self._journal = journal

    def newest(self, origin: str | None = None) -> PolicyVersion | None:
        """The newest version, of all or of one origin; None where there is none."""
        where = "" if origin is None else "WHERE origin = ?"
        with self._store.reading() as connection:
            return _newest(connection, where, () if origin is None else (origin,))

    def find(self, version: int) -> PolicyVersion:
        """One version.

        Raises:
            NotFound: There is none with this number.
        """
        with self._store.reading() as connection:
            found = _newest(connection, "WHERE version = ?", (version,))
        if found is None:
            raise NotFound(f"there is no policy version {version}")
        return found

    def source(self, version: int) -> str:
        """The text of a version.

        Raises:
            NotFound: There is none with this number.
        """
        with self._store.reading() as connection:
            source = connection.execute(
                "SELECT source FROM policy_version WHERE version = ?", (version,)
            ).get
        if source is None:
            raise NotFound(f"there is no policy version {version}")
        return str(source)

    def piece(self, version: int, start: int, size: int) -> bytes:
        """A part of the text of a version, in UTF-8; empty where the text has ended.

        Args:
            version: One that there is.
            start: After so many bytes.
            size: At most so many.

        Cost: reads that part alone, however long the text is.
        """
        part = b""
        with (
            self._store.reading() as connection,
            connection.blob_open("main", "policy_version", "source", version, False) as text,
        ):
            if start < text.length():
                text.seek(start)
                part = text.read(size)
        return part

    def page(self, *, before: int | None = None, limit: int = 1_000) -> list[PolicyVersion]:
        """Versions, newest first.

        Args:
            before: Only those with a lower number; None: all.
            limit: How many at most.
        """
        where = "" if before is None else "WHERE version < ?"
        bound = (limit,) if before is None else (before, limit)
        with self._store.reading() as connection:
            rows: list[Any] = connection.execute(
                f"SELECT {_COLUMNS} FROM policy_version {where} ORDER BY version DESC LIMIT ?",
                bound,
            ).fetchall()
        return [PolicyVersion(*row) for row in rows]

    def add(
        self,
        sha256: str,
        origin: str,
        created_us: int,
        source: str,
        *,
        key_name: str | None = None,
        note: str | None = None,
        is_expected: Callable[[int], bool] = lambda _: True,
        may_repeat: bool = True,
    ) -> PolicyVersion:
        """Store a policy as the newest version.

        Args:
            sha256: Of the text.
            origin: `file`, `put` or `rollback`.
            created_us: Now, in microseconds since the epoch.
            source: The policy's text.
            key_name: Whose key put it.
            note: What is said about it.
            is_expected: Says whether a policy may follow the version that is the newest now.
            may_repeat: Whether the text of the newest version may be stored once more.

        Returns:
            The version; the newest one where its text is repeated and may not be.

        Raises:
            StoreError: It could not be stored.
            PreconditionFailed: It may not follow.
        """
        with self._journal.transaction() as (connection, record):
            newest = _newest(connection, "", ())
            number = newest.version if newest else 0
            if not is_expected(number):
                raise PreconditionFailed(f"version {number} is in force; look at it first")
            if newest is not None and newest.sha256 == sha256 and not may_repeat:
                return newest
            version = number + 1
            row = (version, origin, sha256, created_us, key_name, note)
            connection.execute(
                f"INSERT INTO policy_version ({', '.join(VERSION_COLUMNS)}, source)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                (*row, source),
            )
            record("policy", created_us, dict(zip(VERSION_COLUMNS, row, strict=True)))
        return PolicyVersion(version, sha256, origin, created_us, key_name, note)


def _newest(
    connection: Connection, where: str, bound: tuple[str | int, ...]
) -> PolicyVersion | None:
    rows: list[Any] = connection.execute(
        f"SELECT {_COLUMNS} FROM policy_version {where} ORDER BY version DESC LIMIT 1", bound
    ).fetchall()
    return PolicyVersion(*rows[0]) if rows else None
