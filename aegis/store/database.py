"""The database file: the one way to write, reading connections. The only SQLite.

One file holds all state: audit records and policy versions. Rows are only ever added; what can be
made again, and what is only kept for a day, are the exceptions.
"""

from __future__ import annotations

import mmap
import os
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

import apsw

from aegis.config import Durability, beside
from aegis.errors import StoreError
from aegis.host.files import allocate, make_private, open_private, refuse_odd
from aegis.host.locks import HeldNumbers, lock_file, unlock_file
from aegis.messages import quote
from aegis.store.connections import (
    BUSY_TIMEOUT_MS,
    checkpoint_by_hand,
    file_uri,
    open_to_read,
    open_to_write,
    sync_for,
    translating_errors,
    write_ahead,
)
from aegis.store.copying import LOCK_FILE_BYTES, copy_database
from aegis.store.integrity import find_fault
from aegis.store.log_identity import add_log_number, log_bytes, refuse_other_log, start_log
from aegis.store.schema import (
    APPLICATION_ID,
    AS_NOW,
    MIGRATIONS,
    UNCHAINED,
    drop_unchained,
    touch,
)
from aegis.store.sql import Connection, has_table, read_pragma, transacted

__all__ = ["Store"]

MAX_IDLE_READERS = 4
MAX_LOG_BYTES = 64 * 1024 * 1024
"""Of the write-ahead log, before the writer waits for readers so that it can start a new one."""
LOG_PAGES = 1_000
"""That a connection writes to the log before they are moved into the database."""


class Store:
    """An open database.

    Invariant: at most one transaction of this process at a time, and, by a lock file next to the
    database, one of all processes: they take turns instead of polling SQLite's own lock.

    Args:
        path: The file, made where there is none; `:memory:` keeps nothing.
        durability: What an acknowledged commit survives.
        read_only: Change nothing, not even an older schema, and make no file of ours.

    Attributes:
        newest_entry: One word that all processes share: the number of the newest entry of the audit,
            as its last writer left it; every writer has to check it.

    Raises:
        StoreError: It cannot be opened or written, or belongs to another program or a newer Aegis.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        durability: Durability = Durability.COMMIT,
        read_only: bool = False,
    ) -> None:
        self.path = str(path)
        self._is_read_only = read_only
        self._version = len(MIGRATIONS)
        self._views = ""
        self.is_memory = self.path == ":memory:"
        # The memory file system of SQLite shares a database by its name within the process.
        self._uri = f"file:/{uuid.uuid4()}?vfs=memdb" if self.is_memory else None
        self._write_lock = threading.Lock()
        self._idle: list[Connection] = []
        self._idle_lock = threading.Lock()
        self._lock_file = -1
        self._lock_map: mmap.mmap | None = None
        self._held: HeldNumbers | None = None
        self._inode: tuple[int, int] | None = None
        self._durability = durability
        self._written = 0
        self.newest_entry = memoryview(bytearray(8)).cast("Q")
        self._reads_log = self._has_log()
        with self._translating(f"cannot open {quote(self.path)}"):
            if not self.is_memory:
                refuse_odd(self.path)
            if self._reads_log:
                refuse_other_log(self.path)
            self._writer = self._connect()
        try:
            with self._translating(f"cannot open {quote(self.path)}"):
                self._prepare()
        except BaseException:
            self.close()
            raise

    def _connect(self) -> Connection:
        if self._is_read_only:
            connection = open_to_read(self.path, is_alone=not self._reads_log)
            if self._views:
                connection.execute(self._views)
            return connection
        if not self.is_memory:
            make_private(os.path.realpath(self.path))
        return open_to_write(self._uri or file_uri(self.path))

    def _has_log(self) -> bool:
        return not self.is_memory and log_bytes(self.path) > 0

    @property
    def is_older(self) -> bool:
        """Whether it was written by an older release, and stays as it is."""
        return self._version < len(MIGRATIONS)

    def _prepare(self) -> None:
        self._refuse_foreign()
        if self._is_read_only:
            self._read_as_now()
            self._writer.execute(self._views)
            return
        if not self.is_memory:
            write_ahead(self._writer)
            checkpoint_by_hand(self._writer)
            self._lock_file = open_private(beside(self.path, ".lock"), self.path)
            allocate(self._lock_file, LOCK_FILE_BYTES)
            self._lock_map = mmap.mmap(self._lock_file, LOCK_FILE_BYTES)
            self.newest_entry = memoryview(self._lock_map).cast("Q")[:1]
            self._held = HeldNumbers(self._lock_file, LOCK_FILE_BYTES)
            self._inode = self._file_id()
        sync_for(self._durability, self._writer)
        with self.transaction() as connection:
            version = read_pragma(connection, "user_version")
            for script in MIGRATIONS[version:]:
                connection.execute(script)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            drop_unchained(connection)
            # Also where nothing changes: a read-only file would open without an error.
            touch(connection)
            add_log_number(connection)
        if not self.is_memory:
            with self.turn() as connection:
                # Twice: the file itself has to differ from any copy of it that was made before.
                start_log(connection)
                start_log(connection)

    def _refuse_foreign(self) -> None:
        owner = read_pragma(self._writer, "application_id")
        tables = {name for (name,) in self._writer.execute("SELECT name FROM sqlite_schema")}
        if owner != APPLICATION_ID and (owner or tables):
            fault = f"{quote(self.path)} is a database of another program"
            if "audit_log" in tables:
                fault = f"{quote(self.path)} is a database of agent-aegis; `aegis audit import` takes it over"
            raise StoreError(f"{fault}; give another file for the audit")
        version = read_pragma(self._writer, "user_version")
        if version > len(MIGRATIONS):
            raise StoreError(
                f"{quote(self.path)} was written by a newer Aegis (schema {version}, known here:"
                f" {len(MIGRATIONS)}); upgrade this one"
            )

    def _read_as_now(self) -> None:
        """Let what an older release wrote, and this one may not change, be read as if it had."""
        version = self._version = read_pragma(self._writer, "user_version")
        self._views = AS_NOW.get(version, "")
        is_current = version == len(MIGRATIONS) or self._views
        if not is_current or any(has_table(self._writer, name) for name in UNCHAINED):
            raise StoreError(
                f"{quote(self.path)} is of an older Aegis; serve it once, which brings it up to date"
            )

    def _file_id(self) -> tuple[int, int] | None:
        try:
            status = os.stat(self.path)
        except FileNotFoundError:
            return None
        return status.st_dev, status.st_ino

    def _take_lock(self) -> None:
        if not lock_file(self._lock_file, BUSY_TIMEOUT_MS / 1000):
            raise StoreError(
                f"cannot write {quote(self.path)}: another process does not end its write"
            )

    def _translating(self, doing: str) -> AbstractContextManager[None]:
        return translating_errors(doing, needs_log=self._is_read_only and self._reads_log)

    def is_in_place(self) -> bool:
        """Whether the file that is open is still the one that its path names."""
        return self._inode is None or self._file_id() == self._inode

    def _see_in_place(self) -> None:
        if not self.is_in_place():
            raise StoreError(f"{quote(self.path)} was replaced or removed; restart the server")

    def probe(self) -> None:
        """See that the database could be written now.

        Raises:
            StoreError: It could not.
        """
        with self.transaction() as connection:
            touch(connection)

    @contextmanager
    def turn(self) -> Iterator[Connection]:
        """Be the only one who writes, of all threads and processes; outside of a transaction.

        Raises:
            StoreError: What was done failed; or the database was replaced or removed, so that what
                was committed is in no file that anybody will find.
        """
        with self._write_lock, self._translating(f"cannot write {quote(self.path)}"):
            if self._lock_file >= 0:
                self._take_lock()
            try:
                self._see_in_place()
                yield self._writer
                if self._lock_file >= 0:
                    self._bound_pages()
            finally:
                if self._lock_file >= 0:
                    unlock_file(self._lock_file)
            # Afterwards too: what was committed before it was replaced is lost as well.
            self._see_in_place()

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """The usual way to write: everything done inside is committed together, or not at all.

        Raises:
            StoreError: It could not be committed; nothing was written then.

        Cost: waits for other writers; returns when the commit is on the disk.
        """
        with self.turn() as connection, transacted(connection):
            yield connection

    def _bound_pages(self) -> None:
        """Move the log into the database now and then, as SQLite does it, but number the next one."""
        written, _ = self._writer.status(apsw.SQLITE_DBSTATUS_CACHE_WRITE)
        if written - self._written > LOG_PAGES:
            self._written = written
            with suppress(apsw.Error):  # what was committed is; the next time will do
                start_log(self._writer)

    def bound_log(self) -> None:
        """Start a new write-ahead log if it has grown large because somebody always read.

        Raises:
            StoreError: Somebody reads for long: it stays as it is for now.

        Cost: waits for those who read, up to the busy timeout.
        """
        if not self.is_memory and log_bytes(self.path) > MAX_LOG_BYTES:
            with self.turn() as connection:
                connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
                start_log(connection)

    def hold(self, number: int) -> bool:
        """Hold a number for as long as this store is open; the system lets go of it for the dead.

        Args:
            number: Above 0; what it means is the caller's affair.

        Returns:
            Whether it is this store's now; another one, of any process, holds it otherwise.
        """
        return self._held is None or self._held.hold(number)

    def is_held(self, number: int) -> bool:
        """Whether another store, of any process, holds a number; nobody holds an impossible one."""
        return self._held is not None and self._held.is_held(number)

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection to read with, which never blocks those who write.

        All that is read inside is of one moment, that of the first statement.

        Raises:
            StoreError: The database cannot be read.
        """
        with self._translating(f"cannot read {quote(self.path)}"):
            if self._is_read_only:
                self._follow_log()
            with self._idle_lock:
                connection = self._idle.pop() if self._idle else None
            if connection is None:
                connection = self._connect()
            try:
                connection.execute("BEGIN")
                yield connection
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                with self._idle_lock:
                    keep = len(self._idle) < MAX_IDLE_READERS
                    if keep:
                        self._idle.append(connection)
                if not keep:
                    connection.close()
            if self._is_read_only and not self._reads_log and self._has_log():
                raise StoreError(
                    f"{quote(self.path)} was opened by a server while it was read; try again"
                )

    def _follow_log(self) -> None:
        """Read a file alone that nobody writes, and with its log one that somebody does."""
        reads_log = self._has_log()
        if reads_log != self._reads_log:
            self._reads_log = reads_log
            self._close_idle()

    def find_fault(self) -> str | None:
        """What is wrong with the file besides what its rows say: None, or the first fault.

        That is a schema which is not as Aegis makes it, an index or trigger of somebody else on a
        table of Aegis', and whatever SQLite finds: trees, indexes that have not what their table
        has, constraints that do not hold.

        Raises:
            StoreError: The database cannot be read.

        Cost: reads the whole file in one transaction.
        """
        with self.reading() as connection:
            return find_fault(connection, self._version)

    def end_log(self) -> None:
        """Leave all in the one file, without a write-ahead log next to it.

        Raises:
            StoreError: Others have the file open.
        """
        self._close_idle()  # each open connection counts
        with self.turn() as connection:
            connection.pragma("journal_mode", "delete")

    def copy_to(self, path: str | Path, tick: Callable[[int, int], None]) -> None:
        """Copy the database as it is at one moment, while others write.

        Args:
            path: A file that does not exist.
            tick: Given how many pages are done and how many there are.

        Raises:
            StoreError: It could not be copied.
        """
        if os.path.lexists(path):
            raise StoreError(f"{quote(str(path))} exists; give the name of a file to be made")
        self.copy_over(path, tick)

    def copy_over(
        self, path: str | Path, tick: Callable[[int, int], None], like: str | None = None
    ) -> None:
        """As `copy_to`; a file that is there is replaced at the end.

        Args:
            path: The file to make.
            tick: As of `copy_to`.
            like: Whose owner it gets, if not that of this database.
        """
        with self._translating(f"cannot copy {quote(self.path)} to {quote(str(path))}"):
            source = self._connect()
        try:
            copy_database(source, self.path, path, tick, like)
        finally:
            source.close()

    def close(self) -> None:
        """Close every connection. What was committed stays."""
        self._close_idle()
        with self._write_lock:
            self._writer.close()
            if self._lock_file >= 0:
                os.close(self._lock_file)
                self._lock_file = -1
            self.newest_entry = memoryview(bytearray(8)).cast("Q")
            if self._lock_map is not None:
                self._lock_map.close()
                self._lock_map = None

    def _close_idle(self) -> None:
        with self._idle_lock:
            for connection in self._idle:
                connection.close()
            self._idle.clear()
