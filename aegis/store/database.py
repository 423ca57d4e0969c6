"""The database file: the one way to write, reading connections. The only SQLite.

One file holds all state: audit records and policy versions. Rows are only ever added; what can be
made anew, and what is only kept for a day, are the exceptions.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from functools import lru_cache
from itertools import chain, repeat
from pathlib import Path
from typing import Any, NoReturn

import apsw

from aegis.config import Durability, beside
from aegis.errors import StoreError, shown
from aegis.host.files import allocate, make_private, open_private, refuse_odd, replacing
from aegis.store.schema import APPLICATION_ID, AS_NOW, MIGRATIONS, UNCHAINED

__all__ = ["Connection", "Store"]

Connection = apsw.Connection
Value = str | int | bytes | None

BUSY_TIMEOUT_MS = 1_000
"""How long to wait for others; the audit tries again, and a PUT is refused."""
MOST_IDLE_READERS = 4
LARGEST_LOG_BYTES = 64 * 1024 * 1024
"""Of the write-ahead log, before the writer waits for readers so that it can begin anew."""
LOG_PAGES = 1_000
"""That a connection writes to the log before they are moved into the database."""

_LOCK_FILE_BYTES = 4096
_STATEMENTS = 200  # prepared and kept by each connection


class Store:
    """An open database.

    Invariant: at most one transaction of this process at a time, and, by a lock file beside the
    database, one of all processes: they take turns instead of polling SQLite's own lock.

    Args:
        path: The file, made where there is none; `:memory:` keeps nothing.
        durability: What an acknowledged commit survives.
        read_only: Change nothing, not even an older schema, and make no file of ours.

    Attributes:
        newest_link: One word that all processes share: the number of the newest link of the audit,
            as its last writer said; whoever writes has to check it.

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
        self._inode: tuple[int, int] | None = None
        self._durability = durability
        self._written = 0
        self.newest_link = memoryview(bytearray(8)).cast("Q")
        self._reads_log = not self.is_memory and self._size("-wal") > 0
        with self._said(f"cannot open {shown(self.path)}"):
            if not self.is_memory:
                refuse_odd(self.path)
            if self._reads_log:
                self._refuse_strange_log()
            self._writer = self._connect()
        try:
            with self._said(f"cannot open {shown(self.path)}"):
                self._prepare()
        except BaseException:
            self.close()
            raise

    def _connect(self) -> Connection:
        if self._is_read_only:
            connection = self._connect_to_read(is_alone=not self._reads_log)
            if self._views:
                connection.execute(self._views)
            return connection
        if not self.is_memory:
            make_private(os.path.realpath(self.path))
        return self._connected(
            self._uri or _file_uri(self.path), apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE
        )

    def _connect_to_read(self, *, is_alone: bool) -> Connection:
        """A connection that cannot write.

        Args:
            is_alone: Read the one file as it is, which needs no other one beside it.
        """
        # SOURCE: sqlite.org/wal.html, "Read-Only Databases".
        uri = f"{_file_uri(self.path)}?immutable=1" if is_alone else _file_uri(self.path)
        return self._connected(uri, apsw.SQLITE_OPEN_READONLY)

    @staticmethod
    def _connected(uri: str, flags: int) -> Connection:
        connection = Connection(
            uri, flags=flags | apsw.SQLITE_OPEN_URI, statementcachesize=_STATEMENTS
        )
        connection.set_busy_timeout(BUSY_TIMEOUT_MS)
        _distrust_schema(connection)
        return connection

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
            _write_ahead(self._writer)
            _checkpoint_by_hand(self._writer)
            self._lock_file = open_private(beside(self.path, ".lock"), self.path)
            allocate(self._lock_file, _LOCK_FILE_BYTES)
            self._lock_map = mmap.mmap(self._lock_file, _LOCK_FILE_BYTES)
            self.newest_link = memoryview(self._lock_map).cast("Q")[:1]
            self._inode = self._file_id()
        if self._durability is Durability.COMMIT:
            _sync_each_commit(self._writer)
        else:
            _sync_each_checkpoint(self._writer)
        with self.transaction() as connection:
            version = _pragma(connection, "user_version")
            for script in MIGRATIONS[version:]:
                connection.execute(script)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            _drop_unchained(connection)
            # Also where nothing changes: a read-only file would open without an error.
            touch(connection)
            _number_log(connection)
        if not self.is_memory:
            with self.turn() as connection:
                # Twice: the file itself has to differ from any copy of it that was made before.
                _begin_log(connection)
                _begin_log(connection)

    def _size(self, ending: str = "") -> int:
        try:
            return os.stat(beside(self.path, ending)).st_size
        except OSError:
            return 0

    def _refuse_strange_log(self) -> None:
        """See that the write-ahead log is of this very file, and not of one that it has replaced.

        Raises:
            StoreError: It is not: what both would make together was never written by anyone.
        """
        if not self._size():  # SQLite would remove the log
            self._raise_strange_log()
        try:
            while True:
                logged, alone = self._log_numbers(is_alone=False), self._log_numbers(is_alone=True)
                # Others may write: what is read before and after was so in between.
                if self._log_numbers(is_alone=False) == logged:
                    break
        except apsw.Error:  # it is not the log that keeps it from being read
            return
        if alone == _UNREADABLE:  # its own log may still make it whole
            return
        if alone[1] not in logged or (logged == _NO_LOGS and self._log_has_number()):
            self._raise_strange_log()

    def _raise_strange_log(self) -> NoReturn:
        place = os.path.realpath(self.path) if os.path.islink(self.path) else self.path
        raise StoreError(
            f"{shown(f'{place}-wal')} was not written for {shown(self.path)}, which was"
            " replaced or removed since; put a backup in place by `aegis restore`, or move that log"
            " away to use the file as it is"
        )

    def _log_numbers(self, *, is_alone: bool) -> tuple[bytes, ...]:
        """The numbers of the log before and of the one now.

        Args:
            is_alone: As the file itself has them, whatever the log says.
        """
        with closing(self._connect_to_read(is_alone=is_alone)) as connection:
            try:
                if not has_table(connection, "log_number"):
                    return _NO_LOGS
                rows: list[Any] = connection.execute(
                    "SELECT previous, current FROM log_number"
                ).fetchall()
            except (apsw.CorruptError, apsw.NotADBError, apsw.SQLError):
                return _UNREADABLE
        is_sound = len(rows) == 1 and all(type(number) is bytes for number in rows[0])
        return rows[0] if is_sound else _UNREADABLE

    def _log_has_number(self) -> bool:
        """Whether the log was begun by a release that numbers logs, whatever database it is beside."""
        with open(beside(self.path, "-wal"), "rb") as log:
            end = b""
            while part := log.read(1024 * 1024):
                if _LOG_MARK in end + part:
                    return True
                end = part[-len(_LOG_MARK) :]
        return False

    def _refuse_foreign(self) -> None:
        owner = _pragma(self._writer, "application_id")
        tables = {name for (name,) in self._writer.execute("SELECT name FROM sqlite_schema")}
        if owner != APPLICATION_ID and (owner or tables):
            said = f"{shown(self.path)} is a database of another program"
            if "audit_log" in tables:
                said = f"{shown(self.path)} is a database of agent-aegis; `aegis audit import` takes it over"
            raise StoreError(f"{said}; give another file for the audit")
        version = _pragma(self._writer, "user_version")
        if version > len(MIGRATIONS):
            raise StoreError(
                f"{shown(self.path)} was written by a newer Aegis (schema {version}, known here:"
                f" {len(MIGRATIONS)}); upgrade this one"
            )

    def _read_as_now(self) -> None:
        """Let what an older release wrote, and this one may not change, be read as if it had."""
        version = self._version = _pragma(self._writer, "user_version")
        self._views = AS_NOW.get(version, "")
        is_current = version == len(MIGRATIONS) or self._views
        if not is_current or any(has_table(self._writer, name) for name in UNCHAINED):
            raise StoreError(
                f"{shown(self.path)} is of an older Aegis; serve it once, which brings it up to date"
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
        except apsw.FullError as error:  # which not every call of SQLite says in words
            raise StoreError(f"{doing}: database or disk is full") from error
        except apsw.CantOpenError as error:
            if not (self._is_read_only and self._reads_log):
                raise StoreError(f"{doing}: {error}") from error
            raise StoreError(
                f"{doing}: no file can be made beside it, which its write-ahead log needs; copy both to"
                " a folder that can be written"
            ) from error
        except OSError as error:
            raise StoreError(f"{doing}: {error.strerror or error}") from error
        except UnicodeDecodeError as error:
            said = StoreError(f"{doing}: the file is damaged: a text is not UTF-8")
            said.is_damaged = True
            raise said from error
        except apsw.Error as error:
            said = StoreError(f"{doing}: {error}")
            said.is_permanent = isinstance(error, _PERMANENT)
            said.is_damaged = isinstance(error, apsw.CorruptError)
            raise said from error

    def is_in_place(self) -> bool:
        """Whether the file that is open is still the one that its path names."""
        return self._inode is None or self._file_id() == self._inode

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
        with self._write_lock, self._said(f"cannot write {shown(self.path)}"):
            if self._lock_file >= 0:
                self._take_lock()
            try:
                yield self._writer
                if self._lock_file >= 0:
                    self._bound_pages()
            finally:
                if self._lock_file >= 0:
                    fcntl.flock(self._lock_file, fcntl.LOCK_UN)
            # Afterwards: what was committed before it was replaced is lost as well.
            if not self.is_in_place():
                raise StoreError(f"{shown(self.path)} was replaced or removed; restart the server")

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
                _begin_log(self._writer)

    def bound_log(self) -> None:
        """Begin the write-ahead log anew where it has grown large, since somebody always read.

        Raises:
            StoreError: Somebody reads for long: it stays as it is for now.

        Cost: waits for those who read, up to the busy timeout.
        """
        if not self.is_memory and self._size("-wal") > LARGEST_LOG_BYTES:
            with self.turn() as connection:
                connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
                _begin_log(connection)

    def hold(self, number: int) -> bool:
        """Hold a number for as long as this store is open; the system lets go of it for the dead.

        Args:
            number: Above 0; what it stands for is the caller's affair.

        Returns:
            Whether it is this store's now; another one, of any process, holds it otherwise.
        """
        return self.is_memory or self._locked(fcntl.F_WRLCK, number)

    def is_held(self, number: int) -> bool:
        """Whether another store, of any process, holds a number; nobody holds an impossible one."""
        if not 0 < number <= _LARGEST_HELD:
            return False
        if self.is_memory or not self._locked(fcntl.F_WRLCK, number):
            return not self.is_memory
        self._locked(fcntl.F_UNLCK, number)
        return False

    def _locked(self, kind: int, number: int) -> bool:
        # SOURCE: fcntl(2), "Open file description locks": they go with the file's descriptor, so
        # that two stores of one process exclude each other too.
        asked = struct.pack("hhqqi4x", kind, os.SEEK_SET, number + _LOCK_FILE_BYTES, 1, 0)
        try:
            fcntl.fcntl(self._lock_file, fcntl.F_OFD_SETLK, asked)
        except (BlockingIOError, PermissionError):
            return False
        return True

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection to read with, which never blocks those who write.

        All that is read inside is of one moment, that of the first statement.

        Raises:
            StoreError: The database cannot be read.
        """
        with self._said(f"cannot read {shown(self.path)}"):
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
                    keep = len(self._idle) < MOST_IDLE_READERS
                    if keep:
                        self._idle.append(connection)
                if not keep:
                    connection.close()
            if self._is_read_only and not self._reads_log and self._size("-wal"):
                raise StoreError(
                    f"{shown(self.path)} was opened by a server while it was read; try again"
                )

    def _follow_log(self) -> None:
        """Read a file alone that nobody writes, and with its log one that somebody does."""
        reads_log = not self.is_memory and self._size("-wal") > 0
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
        with closing(Connection(":memory:")) as made:
            for script in MIGRATIONS[: self._version]:
                made.execute(script)
            _drop_unchained(made)
            as_made = _schema(made)
        with self.reading() as connection:
            here = _schema(connection)
            for kind, name, _, _ in as_made - here:
                return f"its {kind} {shown(name)} is not as Aegis makes it"
            tables = {table for _, _, table, _ in as_made}
            for kind, name, table, _ in here - as_made:
                # A further table changes no answer, and neither does what is on it.
                if kind not in ("table", "index") or table in tables:
                    return f"its {kind} {shown(name)} on {shown(table)} is not of Aegis"
            for (fault,) in connection.execute("PRAGMA main.integrity_check(1)"):
                if fault != "ok":
                    return f"the file is damaged: {' '.join(fault.split())}"
        return None

    def end_log(self) -> None:
        """Leave all in the one file, without a write-ahead log beside it.

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
            tick: Told how many pages are done and how many there are.

        Raises:
            StoreError: It could not be copied.
        """
        if os.path.lexists(path):
            raise StoreError(f"{shown(str(path))} exists; give the name of a file to be made")
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
        doing = f"cannot copy {shown(self.path)} to {shown(str(path))}"
        with self._said(doing), replacing(path, like=like or self.path) as name:
            source, target = self._connect(), Connection(_file_uri(name), flags=_MADE)
            try:
                with source:  # a transaction, so that all pages are of one moment
                    source.execute("SELECT count(*) FROM sqlite_schema").fetchall()
                    with target.backup("main", source, "main") as backup:
                        while not backup.done:
                            backup.step(_PAGES_A_STEP)
                            tick(backup.page_count - backup.remaining, backup.page_count)
                # One file, which can be read where none can be made beside it.
                target.pragma("journal_mode", "delete")
                if has_table(target, "log_number"):
                    target.execute(
                        "UPDATE log_number SET previous = randomblob(16), current = randomblob(16)"
                    )
            finally:
                source.close()
                target.close()

    def close(self) -> None:
        """Close every connection. What was committed stays."""
        self._close_idle()
        with self._write_lock:
            self._writer.close()
            if self._lock_file >= 0:
                os.close(self._lock_file)
                self._lock_file = -1
            self.newest_link = memoryview(bytearray(8)).cast("Q")
            if self._lock_map is not None:
                self._lock_map.close()
                self._lock_map = None

    def _close_idle(self) -> None:
        with self._idle_lock:
            for connection in self._idle:
                connection.close()
            self._idle.clear()


@contextmanager
def unused(path: str) -> Iterator[None]:
    """Keep those who write from a database that none of them has open.

    Raises:
        StoreError: One has.
    """
    try:
        file = open_private(beside(path, ".lock"), path)
    except OSError as error:
        raise StoreError(f"cannot use {shown(path)}: {error.strerror}") from None
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, _LOCK_FILE_BYTES, 0, 0)
            fcntl.fcntl(file, fcntl.F_OFD_SETLK, held)
        except (BlockingIOError, PermissionError):
            raise StoreError(f"a process writes {shown(path)}; stop it first") from None
        yield
    finally:
        os.close(file)


def _schema(connection: Connection) -> Counter[tuple[str, str, str, str | None]]:
    """Type, name, table and SQL of each thing in a database."""
    rows: list[Any] = connection.execute(
        "SELECT type, name, tbl_name, sql FROM main.sqlite_schema"
    ).fetchall()
    return Counter(rows)


def touch(connection: Connection) -> None:
    """Write something that changes nothing, to see that it can be written; within a turn."""
    connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")


def _drop_unchained(connection: Connection) -> None:
    """Drop what a migration has set aside for nothing."""
    for table in UNCHAINED:
        if (
            has_table(connection, table)
            and not connection.execute(f"SELECT EXISTS (SELECT 1 FROM {table})").get
        ):
            connection.execute(f"DROP TABLE {table}")


@contextmanager
def transacted(connection: Connection) -> Iterator[None]:
    """Commit what is done inside together, or not at all; within a turn."""
    try:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def insert_many(
    connection: Connection,
    into: str,
    rows: Sequence[tuple[Value, ...]],
    most_exact: int = 0,
    *,
    conflict: str = "ABORT",
) -> None:
    """Insert rows with one statement for many of them, so that the GIL is taken once, not per row.

    Args:
        connection: In a transaction, unless there are few rows.
        into: Table and columns, as in `word (text)`.
        rows: Of equal length.
        most_exact: So many rows or fewer are inserted by one statement.
        conflict: What to do where a row of that key is there: `ABORT`, `REPLACE` it, or `IGNORE`.
    """
    width = len(rows[0])
    start = 0
    while start < len(rows):
        count = min(_MOST_BINDINGS // width, len(rows) - start)
        if count > most_exact:
            # Powers of two, so that few different statements are prepared.
            count = 1 << (count.bit_length() - 1)
        values = list(chain.from_iterable(rows[start : start + count]))
        connection.execute(_insertion(into, conflict, width, count), values)
        start += count


@lru_cache(4 * _STATEMENTS)
def _insertion(into: str, conflict: str, width: int, rows: int) -> str:
    row = f"({', '.join('?' * width)})"
    return f"INSERT OR {conflict} INTO {into} VALUES {', '.join([row] * rows)}"


class UndecodableText(bytes):
    """What another program wrote as text, and is not Unicode."""


def foreign_rows(path: str, table: str, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The rows of another program's table, in the order in which they were added.

    Args:
        path: Its database.
        table: The table.
        columns: What is wanted of it; those that it has not are None.

    Yields:
        Each row by its columns: text, `UndecodableText`, bytes, integers, floats or None, whatever the
        columns were declared as.

    Raises:
        StoreError: It cannot be read, or has no such table.
    """
    try:
        connection = Connection(
            _file_uri(path), flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI
        )
        _distrust_schema(connection)
        known = {
            name
            for (name,) in connection.execute("SELECT name FROM pragma_table_info(?)", (table,))
        }
        if not known:
            raise StoreError(f"{shown(path)} has no table {shown(table)}")
        encoding = _pragma(connection, "encoding")
        wanted = ", ".join(
            f"typeof({name}), iif(typeof({name}) = 'text', CAST({name} AS BLOB), {name})"
            if name in known
            else "'null', NULL"
            for name in columns
        )
        for row in connection.execute(f"SELECT {wanted} FROM {table} ORDER BY rowid"):
            values = map(_foreign_value, row[::2], row[1::2], repeat(encoding))
            yield dict(zip(columns, values, strict=True))
        connection.close()
    except apsw.Error as error:
        raise StoreError(f"cannot read {shown(path)}: {error}") from error


def _foreign_value(kind: str, value: Value | float, encoding: str) -> Value | float:
    if kind != "text" or not isinstance(value, bytes):
        return value
    try:
        return value.decode(encoding)
    except UnicodeDecodeError:
        return UndecodableText(value)


def has_table(connection: Connection, name: str) -> bool:
    """Whether there is a table now; what SQLite remembers of the schema may be another process's past."""
    return bool(
        connection.execute(
            "SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = ?)", (name,)
        ).get
    )


def is_constraint(error: BaseException) -> bool:
    """Whether it says that a row may not stand in its table, such as a second one of its key."""
    return isinstance(error, apsw.ConstraintError)


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
_LARGEST_HELD = 2**62
_MADE = apsw.SQLITE_OPEN_URI | apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE
_MOST_BINDINGS = 30_000  # below SQLite's 32,766
_MOST_WORDS = 500
_PAGES_A_STEP = 1_000
_NO_LOGS, _UNREADABLE = (b"", b""), ()
"""In the place of the numbers of logs: the database has none yet; it cannot be read."""
_LOG_MARK = b"number of an aegis log"
"""By which the page with the numbers is found in a log."""


def _file_uri(path: str) -> str:
    return Path(path).absolute().as_uri()


def _pragma(connection: Connection, name: str) -> Any:
    return connection.pragma(name)


def _number_log(connection: Connection) -> None:
    """Let the database say which write-ahead log it belongs to; in a transaction.

    It is no part of the schema that a release has: it says nothing of what is stored, and may be
    missing.
    """
    connection.execute(
        "CREATE TABLE IF NOT EXISTS log_number (id INTEGER PRIMARY KEY CHECK (id = 1),"
        " previous BLOB NOT NULL, current BLOB NOT NULL, mark TEXT NOT NULL) STRICT"
    )
    connection.execute(
        "INSERT OR IGNORE INTO log_number VALUES (1, ?, randomblob(16), ?)",
        (_NO_LOGS[1], _LOG_MARK.decode()),
    )


def _begin_log(connection: Connection) -> None:
    """Move the write-ahead log into the database and begin the next one with a number; in a turn."""
    try:
        pages, moved = connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
    except apsw.BusyError:  # another program does it
        return
    # INVARIANT: the number in the file is the log's own, where it was moved, or the one before. Where
    # somebody still reads what was before the log, it is not moved as a whole, and keeps its number.
    if pages == moved:
        connection.execute("UPDATE log_number SET previous = current, current = randomblob(16)")


def _checkpoint_by_hand(connection: Connection) -> None:
    """No log begins unnoticed: SQLite moves it into the database only where it is told to."""
    connection.wal_autocheckpoint(0)


def _write_ahead(connection: Connection) -> None:
    """WAL: readers never block the writer, and a commit is one sync."""
    mode = connection.pragma("journal_mode", "wal")
    if mode != "wal":
        raise StoreError(f"the database cannot use a write-ahead log here (got {shown(mode)})")


def _sync_each_commit(connection: Connection) -> None:
    """FULL: a commit is on the disk before it is acknowledged; NORMAL would lose the last ones."""
    connection.pragma("synchronous", "FULL")


def _sync_each_checkpoint(connection: Connection) -> None:
    """NORMAL: the write-ahead log is synced when its pages move into the database, not before."""
    connection.pragma("synchronous", "NORMAL")


def _distrust_schema(connection: Connection) -> None:
    """A file that someone else wrote cannot make us run functions by its schema."""
    connection.pragma("trusted_schema", False)
