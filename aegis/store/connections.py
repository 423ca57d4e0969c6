"""How connections are opened, what they are set to, and what their errors become."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import apsw

from aegis.config import Durability
from aegis.errors import StoreError
from aegis.messages import quote
from aegis.store.sql import STATEMENTS, Connection

__all__ = [
    "BUSY_TIMEOUT_MS",
    "checkpoint_by_hand",
    "distrust_schema",
    "file_uri",
    "open_to_read",
    "open_to_write",
    "sync_for",
    "translating_errors",
    "write_ahead",
]

BUSY_TIMEOUT_MS = 1_000
"""How long to wait for others; the audit tries again, and a PUT is refused."""

_PERMANENT = (apsw.ConstraintError, apsw.MismatchError, apsw.RangeError, apsw.TooBigError)


def open_to_write(uri: str) -> Connection:
    """A connection that reads and writes; the database is made where there is none."""
    return _open(uri, apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE)


def open_to_read(path: str, *, is_alone: bool) -> Connection:
    """A connection that cannot write.

    Args:
        path: The database.
        is_alone: Read the one file as it is, without its write-ahead log and without files that
            SQLite would make next to it.
    """
    # SOURCE: sqlite.org/wal.html, "Read-Only Databases".
    uri = f"{file_uri(path)}?immutable=1" if is_alone else file_uri(path)
    return _open(uri, apsw.SQLITE_OPEN_READONLY)


def _open(uri: str, flags: int) -> Connection:
    connection = Connection(uri, flags=flags | apsw.SQLITE_OPEN_URI, statementcachesize=STATEMENTS)
    connection.set_busy_timeout(BUSY_TIMEOUT_MS)
    distrust_schema(connection)
    return connection


def file_uri(path: str) -> str:
    """A path as SQLite takes it, so that no character of it has a meaning."""
    return Path(path).absolute().as_uri()


@contextmanager
def translating_errors(doing: str, *, needs_log: bool = False) -> Iterator[None]:
    """Errors of SQLite and of the system as a `StoreError`.

    Args:
        doing: What a message starts with, as in ``cannot read `audit.db` ``.
        needs_log: Whether the database is read only, and has a write-ahead log.

    Raises:
        StoreError: Something failed.
    """
    try:
        yield
    except apsw.NotADBError:
        foreign = StoreError(f"{doing}: it is not a SQLite database")
        foreign.is_damaged = True
        raise foreign from None
    except apsw.FullError as error:  # which not every call of SQLite says in words
        raise StoreError(f"{doing}: database or disk is full") from error
    except apsw.CantOpenError as error:
        if not needs_log:
            raise StoreError(f"{doing}: {error}") from error
        raise StoreError(
            f"{doing}: no file can be made beside it, which its write-ahead log needs; copy both to"
            " a folder that can be written"
        ) from error
    except OSError as error:
        raise StoreError(f"{doing}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        damaged = StoreError(f"{doing}: the file is damaged: a text is not UTF-8")
        damaged.is_damaged = True
        raise damaged from error
    except apsw.Error as error:
        failed = StoreError(f"{doing}: {error}")
        failed.is_permanent = isinstance(error, _PERMANENT)
        failed.is_damaged = isinstance(error, apsw.CorruptError)
        raise failed from error


def sync_for(durability: Durability, connection: Connection) -> None:
    """Let a connection sync as often as a durability needs."""
    if durability is Durability.COMMIT:
        _sync_each_commit(connection)
    else:
        _sync_each_checkpoint(connection)


def checkpoint_by_hand(connection: Connection) -> None:
    """No log starts unnoticed: SQLite moves it into the database only when asked to."""
    connection.wal_autocheckpoint(0)


def write_ahead(connection: Connection) -> None:
    """WAL: readers never block the writer, and a commit is one sync."""
    mode = connection.pragma("journal_mode", "wal")
    if mode != "wal":
        raise StoreError(f"the database cannot use a write-ahead log here (got {quote(mode)})")


def _sync_each_commit(connection: Connection) -> None:
    """FULL: a commit is on the disk before it is acknowledged; NORMAL would lose the last ones."""
    connection.pragma("synchronous", "FULL")


def _sync_each_checkpoint(connection: Connection) -> None:
    """NORMAL: the write-ahead log is synced when its pages move into the database, not before."""
    connection.pragma("synchronous", "NORMAL")


def distrust_schema(connection: Connection) -> None:
    """A file that someone else wrote cannot make us run functions by its schema."""
    connection.pragma("trusted_schema", False)
