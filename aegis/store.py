"""The database file: schema, the one way to write, reading connections. The only SQLite.

One file holds all state: audit records and policy versions. Rows are only ever added.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import apsw

from aegis.errors import StoreError, shown

__all__ = ["Connection", "Store"]

Connection = apsw.Connection
Value = str | int | None

APPLICATION_ID = 0x41454749  # "AEGI": tells our files from those of others
BUSY_TIMEOUT_MS = 1_000
"""How long to wait for others; the audit tries again, and a PUT is refused."""
MOST_IDLE_READERS = 4

_SCHEMA_1 = """
CREATE TABLE word (
    id INTEGER PRIMARY KEY,
    text TEXT NOT NULL UNIQUE
) STRICT;
CREATE TABLE record (
    id INTEGER PRIMARY KEY,
    timestamp_us INTEGER NOT NULL,
    session INTEGER NOT NULL REFERENCES word,
    action_type INTEGER NOT NULL REFERENCES word,
    action_target TEXT NOT NULL,
    action_params TEXT NOT NULL,
    action_desc TEXT,
    risk_level INTEGER NOT NULL,
    approval INTEGER NOT NULL,
    matched_rule INTEGER NOT NULL REFERENCES word,
    human_decision INTEGER REFERENCES word,
    result_status INTEGER NOT NULL,
    result_data TEXT,
    result_error TEXT,
    agent INTEGER REFERENCES word,
    parent_agent INTEGER REFERENCES word,
    chain INTEGER REFERENCES word,
    chain_depth INTEGER NOT NULL,
    policy_version INTEGER NOT NULL
) STRICT;
CREATE TABLE policy_version (
    version INTEGER PRIMARY KEY,
    sha256 TEXT NOT NULL,
    origin TEXT NOT NULL,
    created_us INTEGER NOT NULL,
    source TEXT NOT NULL
) STRICT;
CREATE TRIGGER record_stays BEFORE UPDATE ON record
    BEGIN SELECT raise(ABORT, 'audit records are never changed'); END;
CREATE TRIGGER record_is_kept BEFORE DELETE ON record
    BEGIN SELECT raise(ABORT, 'audit records are never removed'); END;
CREATE TRIGGER word_stays BEFORE UPDATE ON word
    BEGIN SELECT raise(ABORT, 'the words of audit records are never changed'); END;
CREATE TRIGGER word_is_kept BEFORE DELETE ON word
    BEGIN SELECT raise(ABORT, 'the words of audit records are never removed'); END;
CREATE TRIGGER policy_version_stays BEFORE UPDATE ON policy_version
    BEGIN SELECT raise(ABORT, 'policy versions are never changed'); END;
CREATE TRIGGER policy_version_is_kept BEFORE DELETE ON policy_version
    BEGIN SELECT raise(ABORT, 'policy versions are never removed'); END;
"""

_SCHEMA_2 = """
ALTER TABLE record ADD COLUMN key_name INTEGER REFERENCES word;
ALTER TABLE policy_version ADD COLUMN key_name TEXT;
"""

_POLICY_NOTE = "ALTER TABLE policy_version ADD COLUMN note TEXT"

MIGRATIONS = (_SCHEMA_1, _SCHEMA_2, _POLICY_NOTE)
"""What leads from each `user_version` to the next."""


class Store:
    """An open database.

    Invariant: at most one transaction of this process at a time, and, by a lock file beside the
    database, one of all processes: they take turns instead of polling SQLite's own lock.

    Args:
        path: The file, made where there is none; `:memory:` keeps nothing.

    Raises:
        StoreError: It cannot be opened or written, or belongs to another program or a newer Aegis.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)
        self.is_memory = self.path == ":memory:"
        # The memory file system of SQLite shares a database by its name within the process.
        self._uri = f"file:/{uuid.uuid4()}?vfs=memdb" if self.is_memory else None
        self._write_lock = threading.Lock()
        self._idle: list[Connection] = []
        self._idle_lock = threading.Lock()
        self._lock_file = -1
        self._inode: tuple[int, int] | None = None
        with self._said(f"cannot open {shown(self.path)}"):
            self._writer = self._connect()
        try:
            with self._said(f"cannot open {shown(self.path)}"):
                self._prepare()
        except BaseException:
            self.close()
            raise

    def _connect(self) -> Connection:
        flags = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE | apsw.SQLITE_OPEN_URI
        connection = Connection(self._uri or _file_uri(self.path), flags=flags)
        connection.set_busy_timeout(BUSY_TIMEOUT_MS)
        _distrust_schema(connection)
        return connection

    def _prepare(self) -> None:
        self._refuse_foreign()
        if not self.is_memory:
            _write_ahead(self._writer)
            self._lock_file = os.open(
                f"{self.path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
            )
            self._inode = self._file_id()
        _sync_each_commit(self._writer)
        with self.transaction() as connection:
            version = _pragma(connection, "user_version")
            for script in MIGRATIONS[version:]:
                connection.execute(script)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            # Written even when nothing changes: a read-only file would open without an error.
            connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")

    def _refuse_foreign(self) -> None:
        owner = _pragma(self._writer, "application_id")
        tables = {name for (name,) in self._writer.execute("SELECT name FROM sqlite_schema")}
        if owner != APPLICATION_ID and (owner or tables):
            whose = "agent-aegis" if "audit_log" in tables else "another program"
            raise StoreError(
                f"{shown(self.path)} is a database of {whose}; give another file for the audit"
            )
        version = _pragma(self._writer, "user_version")
        if version > len(MIGRATIONS):
            raise StoreError(
                f"{shown(self.path)} was written by a newer Aegis (schema {version}, known here:"
                f" {len(MIGRATIONS)}); upgrade this one"
            )

    def _file_id(self) -> tuple[int, int] | None:
        try:
            found = os.stat(self.path)
        except FileNotFoundError:
            return None
        return found.st_dev, found.st_ino

    def _take_lock(self) -> None:
        # Not for ever: whoever holds it may have been suspended.
        deadline = time.monotonic() + BUSY_TIMEOUT_MS / 1000
        pause_s = 0.0002
        while True:
            try:
                fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise StoreError(
                        f"cannot write {shown(self.path)}: another process does not end its write"
                    ) from None
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, 0.005)

    @contextmanager
    def _said(self, doing: str) -> Iterator[None]:
        try:
            yield
        except apsw.NotADBError:
            raise StoreError(f"{doing}: it is not a SQLite database") from None
        except (apsw.Error, OSError) as error:
            said = StoreError(f"{doing}: {error}")
            said.is_permanent = isinstance(error, _PERMANENT)
            raise said from error

    def is_in_place(self) -> bool:
        """Whether the file that is open is still the one that its path names."""
        return self._inode is None or self._file_id() == self._inode

    def probe(self) -> None:
        """See that the database could be written now.

        Raises:
            StoreError: It could not.
        """
        with self.transaction():
            pass

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Be the only one who writes, of all threads and processes.

        Raises:
            StoreError: The database was replaced or removed.
        """
        with self._write_lock, self._said(f"cannot write {shown(self.path)}"):
            if not self.is_in_place():
                raise StoreError(f"{shown(self.path)} was replaced or removed; restart the server")
            if self._lock_file >= 0:
                self._take_lock()
            try:
                yield
            finally:
                if self._lock_file >= 0:
                    fcntl.flock(self._lock_file, fcntl.LOCK_UN)

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """The one way to write: everything done inside is committed together, or not at all.

        Raises:
            StoreError: It could not be committed; nothing was written then.

        Cost: waits for other writers; returns when the commit is on the disk.
        """
        with self.turn():
            try:
                self._writer.execute("BEGIN IMMEDIATE")
                yield self._writer
                self._writer.execute("COMMIT")
            finally:
                if self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection to read with, which never blocks those who write.

        Raises:
            StoreError: The database cannot be read.
        """
        with self._said(f"cannot read {shown(self.path)}"):
            with self._idle_lock:
                connection = self._idle.pop() if self._idle else None
            if connection is None:
                connection = self._connect()
            try:
                yield connection
            finally:
                with self._idle_lock:
                    keep = len(self._idle) < MOST_IDLE_READERS
                    if keep:
                        self._idle.append(connection)
                if not keep:
                    connection.close()

    def close(self) -> None:
        """Close every connection. What was committed stays."""
        with self._idle_lock:
            for connection in self._idle:
                connection.close()
            self._idle.clear()
        with self._write_lock:
            self._writer.close()
            if self._lock_file >= 0:
                os.close(self._lock_file)
                self._lock_file = -1


def insert_many(connection: Connection, into: str, rows: list[tuple[Value, ...]]) -> None:
    """Insert rows with one statement for many of them, so that the GIL is taken once, not per row.

    Args:
        connection: In a transaction.
        into: Table and columns, as in `word (text)`.
        rows: Of equal length.
    """
    width = len(rows[0])
    row = f"({', '.join('?' * width)})"
    start = 0
    while start < len(rows):
        # Powers of two, so that few different statements are prepared.
        count = min(_MOST_BINDINGS // width, len(rows) - start)
        count = 1 << (count.bit_length() - 1)
        values = [value for values in rows[start : start + count] for value in values]
        connection.execute(f"INSERT INTO {into} VALUES {', '.join([row] * count)}", values)
        start += count


def word_ids(connection: Connection, texts: Iterable[str]) -> dict[str | None, int | None]:
    """The numbers of words; unknown ones are added.

    Args:
        connection: In a transaction.
        texts: The words.
    """
    wanted = sorted(texts)
    found: dict[str | None, int | None] = {}
    for start in range(0, len(wanted), _MOST_WORDS):
        part = wanted[start : start + _MOST_WORDS]
        connection.execute(
            f"INSERT INTO word (text) VALUES {', '.join(['(?)'] * len(part))} ON CONFLICT DO NOTHING",
            part,
        )
        known: list[Any] = connection.execute(
            f"SELECT text, id FROM word WHERE text IN ({', '.join('?' * len(part))})", part
        ).fetchall()
        found.update(known)
    return found


_PERMANENT = (apsw.ConstraintError, apsw.MismatchError, apsw.RangeError, apsw.TooBigError)
_MOST_BINDINGS = 30_000  # below SQLite's 32,766
_MOST_WORDS = 500


def _file_uri(path: str) -> str:
    return Path(path).absolute().as_uri()


def _pragma(connection: Connection, name: str) -> Any:
    return connection.pragma(name)


def _write_ahead(connection: Connection) -> None:
    """WAL: readers never block the writer, and a commit is one sync."""
    mode = connection.pragma("journal_mode", "wal")
    if mode != "wal":
        raise StoreError(f"the database cannot use a write-ahead log here (got {shown(mode)})")


def _sync_each_commit(connection: Connection) -> None:
    """FULL: a commit is on the disk before it is acknowledged; NORMAL would lose the last ones."""
    connection.pragma("synchronous", "FULL")


def _distrust_schema(connection: Connection) -> None:
    """A file that someone else wrote cannot make us run functions by its schema."""
    connection.pragma("trusted_schema", False)
