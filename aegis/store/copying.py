"""Copies of a database at one moment, and keeping writers from one that is to be replaced."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import apsw

from aegis.config import beside
from aegis.errors import StoreError
from aegis.host.files import open_private, replacing
from aegis.host.locks import HeldNumbers, try_lock
from aegis.messages import quote
from aegis.store.connections import file_uri, translating_errors
from aegis.store.log_identity import new_numbers
from aegis.store.sql import Connection

__all__ = ["LOCK_FILE_BYTES", "copy_database", "keeping_writers_out"]

LOCK_FILE_BYTES = 4096
"""Of the lock file; after its end are the numbers that its users hold."""

_PAGES_PER_STEP = 1_000
_MADE = apsw.SQLITE_OPEN_URI | apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE


def copy_database(
    source: Connection,
    source_path: str,
    path: str | os.PathLike[str],
    tick: Callable[[int, int], None],
    like: str | None = None,
) -> None:
    """Copy a database as it is at one moment; a file that is there is replaced at the end.

    Args:
        source: Reads it; is not in a transaction.
        source_path: What it is called.
        path: The file to make.
        tick: Given how many pages are done and how many there are.
        like: Whose owner it gets, if not that of the source.

    Raises:
        StoreError: It could not be copied.
    """
    target_name = os.fspath(path)
    with (
        translating_errors(f"cannot copy {quote(source_path)} to {quote(target_name)}"),
        replacing(target_name, like=like or source_path) as name,
    ):
        target = Connection(file_uri(name), flags=_MADE)
        try:
            with source:  # a transaction, so that all pages are of one moment
                source.execute("SELECT count(*) FROM sqlite_schema").fetchall()
                with target.backup("main", source, "main") as backup:
                    while not backup.done:
                        backup.step(_PAGES_PER_STEP)
                        tick(backup.page_count - backup.remaining, backup.page_count)
            # One file, which can be read where none can be made next to it.
            target.pragma("journal_mode", "delete")
            new_numbers(target)
        finally:
            target.close()


@contextmanager
def keeping_writers_out(path: str) -> Iterator[None]:
    """Keep those who write from a database that none of them has open.

    Raises:
        StoreError: One has.
    """
    try:
        file = open_private(beside(path, ".lock"), path)
    except OSError as error:
        raise StoreError(f"cannot use {quote(path)}: {error.strerror}") from None
    try:
        if not (try_lock(file) and HeldNumbers(file, LOCK_FILE_BYTES).hold_all()):
            raise StoreError(f"a process writes {quote(path)}; stop it first")
        yield
    finally:
        os.close(file)
