"""Which write-ahead log belongs to which database file, so that no file is read with another's log.

SQLite matches the two by their names alone: where a backup is copied over a database and the log is
left, it applies the old log to the new file. So the database has a number that changes with each
log, in a table that is part of the first pages of that log.
"""

from __future__ import annotations

import os
from contextlib import closing
from typing import Any, NoReturn

import apsw

from aegis.config import beside
from aegis.errors import StoreError
from aegis.messages import quote
from aegis.store.connections import open_to_read
from aegis.store.sql import Connection, has_table

__all__ = ["add_log_number", "log_bytes", "new_numbers", "refuse_other_log", "start_log"]

_NO_LOGS, _UNREADABLE = (b"", b""), ()
"""In the place of the numbers of logs: the database has none yet; it cannot be read."""
_MARK = b"number of an aegis log"
"""By which the page with the numbers is found in a log."""


def log_bytes(path: str) -> int:
    """How large the write-ahead log of a database is; 0: there is none."""
    return _size(beside(path, "-wal"))


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def refuse_other_log(path: str) -> None:
    """See that the write-ahead log is of this very file, and not of one that it has replaced.

    Args:
        path: A database with a log.

    Raises:
        StoreError: It is not: what both would make together was never written by anyone.
    """
    if not _size(path):  # SQLite would remove the log
        _raise_other_log(path)
    try:
        while True:
            logged, alone = _numbers(path, is_alone=False), _numbers(path, is_alone=True)
            # Others may write: what is read before and after was so in between.
            if _numbers(path, is_alone=False) == logged:
                break
    except apsw.Error:  # it is not the log that keeps it from being read
        return
    if alone == _UNREADABLE:  # its own log may still make it whole
        return
    if alone[1] not in logged or (logged == _NO_LOGS and _is_numbered(path)):
        _raise_other_log(path)


def _raise_other_log(path: str) -> NoReturn:
    named = os.path.realpath(path) if os.path.islink(path) else path
    raise StoreError(
        f"{quote(f'{named}-wal')} was not written for {quote(path)}, which was"
        " replaced or removed since; put a backup in place by `aegis restore`, or move that log"
        " away to use the file as it is"
    )


def _numbers(path: str, *, is_alone: bool) -> tuple[bytes, ...]:
    """The numbers of the log before and of the one now.

    Args:
        path: The database.
        is_alone: As the file itself has them, whatever the log says.
    """
    with closing(open_to_read(path, is_alone=is_alone)) as connection:
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


def _is_numbered(path: str) -> bool:
    """Whether a release that numbers logs started this log, whatever database it is next to."""
    with open(beside(path, "-wal"), "rb") as log:
        end = b""
        while part := log.read(1024 * 1024):
            if _MARK in end + part:
                return True
            end = part[-len(_MARK) :]
    return False


def add_log_number(connection: Connection) -> None:
    """Let the database say which write-ahead log it belongs to; in a transaction.

    It is not part of the schema of a release: it says nothing of what is stored, and may be missing.
    """
    connection.execute(
        "CREATE TABLE IF NOT EXISTS log_number (id INTEGER PRIMARY KEY CHECK (id = 1),"
        " previous BLOB NOT NULL, current BLOB NOT NULL, mark TEXT NOT NULL) STRICT"
    )
    connection.execute(
        "INSERT OR IGNORE INTO log_number VALUES (1, ?, randomblob(16), ?)",
        (_NO_LOGS[1], _MARK.decode()),
    )


def start_log(connection: Connection) -> None:
    """Move the write-ahead log into the database and start the next one with a number; in a turn."""
    try:
        pages, moved = connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
    except apsw.BusyError:  # another program does it
        return
    # INVARIANT: the number in the file is the log's own, where it was moved, or the one before. Where
    # somebody still reads what was before the log, it is not moved as a whole, and keeps its number.
    if pages == moved:
        connection.execute("UPDATE log_number SET previous = current, current = randomblob(16)")


def new_numbers(connection: Connection) -> None:
    """Give a copy numbers of its own: the original's log is not the copy's."""
    if has_table(connection, "log_number"):
        connection.execute(
            "UPDATE log_number SET previous = randomblob(16), current = randomblob(16)"
        )
