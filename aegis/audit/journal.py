"""Entries about what other rooms keep in the database, committed together with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from aegis.audit.chain import Appended, ChainHead
from aegis.audit.entries import PayloadEntry
from aegis.audit.recovery import chain_older_rows
from aegis.store.database import Store
from aegis.store.sql import Connection, transacted

__all__ = ["Journal"]

Record = Callable[[str, int, Mapping[str, Any]], None]
"""Appends an entry: its kind, its time in microseconds since the epoch, and what it says."""


class Journal:
    """Transactions that change a table and tell of it in the hash chain.

    Invariant: what is done in a transaction and its entries are committed together, or not at all.

    Args:
        store: The database.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._chain = ChainHead(store)

    @contextmanager
    def transaction(self) -> Iterator[tuple[Connection, Record]]:
        """Write, and record what is written.

        Raises:
            StoreError: It could not be committed; nothing was written then.
        """
        appended: list[Appended] = []
        with self._store.turn() as connection:
            chain_older_rows(connection, self._chain)

            def record(kind: str, time_us: int, payload: Mapping[str, Any]) -> None:
                entry = PayloadEntry(time_us, kind, dict(payload))
                appended.append(self._chain.append(connection, [entry]))

            with transacted(connection):
                yield connection, record
            for one in appended:
                self._chain.committed(one)
