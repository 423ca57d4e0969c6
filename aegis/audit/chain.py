"""The head of the hash chain: entries are appended to it, while others may append too.

It is used within a store's turn, so that entries are numbered in the order of their commits over all
processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from aegis.audit.entries import GENESIS, Entry, PayloadEntry, Row, Words
from aegis.audit.members import COLUMNS
from aegis.errors import StoreError
from aegis.store.database import Store
from aegis.store.sql import Connection, insert_many, is_constraint, word_ids

__all__ = ["MAX_ENTRIES_PER_STATEMENT", "Appended", "ChainHead", "anchor", "newest_entry"]

MAX_ENTRIES_PER_STATEMENT = 64
MAX_WORDS_REMEMBERED = 100_000


@dataclass(frozen=True, slots=True)
class Appended:
    """Entries that are in the table and may still be rolled back.

    Attributes:
        first: The number of the first one.
        last: The number of the last one.
        hash: The hash of the last one.
        new_words: Words that were added.
    """

    first: int
    last: int
    hash: bytes
    new_words: Words


class ChainHead:
    """The newest entry, as far as it is known here, and the words that entries are made of.

    Invariant: what is remembered was committed. That nobody has appended since is known by a word
    that all processes share, and by the table, which takes no two entries of one number.

    Args:
        store: Where the chain is.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._number = -1
        self._hash = GENESIS
        self._words: Words = {None: None}

    @property
    def number(self) -> int:
        """The number of the newest entry that was appended here, or seen."""
        return self._number

    def append_known(self, connection: Connection, entries: Sequence[Entry]) -> Appended | None:
        """Append entries by one statement, as `append` does in a transaction.

        Args:
            connection: In a turn.
            entries: In their order.

        Returns:
            None: it takes more than one statement; nothing was done.
        """
        if len(entries) > MAX_ENTRIES_PER_STATEMENT:
            return None
        try:
            return self._append(connection, entries, self._words, {})
        except KeyError:  # a word is new
            return None

    def append(self, connection: Connection, entries: Sequence[Entry]) -> Appended:
        """Append entries.

        Args:
            connection: In a turn, and in a transaction.
            entries: In their order.

        Returns:
            What `committed` has to be given after the commit.

        Raises:
            TypeError: An entry holds text that is no Unicode.
        """
        known = self._words
        used = {word for entry in entries for word in entry.words()}
        # What is known is neither copied nor gone through: it may be a hundred thousand words.
        unknown = [word for word in used if word is not None and word not in known]
        new_words: Words = word_ids(connection, unknown) if unknown else {}
        words = {word: known[word] for word in used if word in known} | new_words
        return self._append(connection, entries, words, new_words)

    def _append(
        self, connection: Connection, entries: Sequence[Entry], words: Words, new_words: Words
    ) -> Appended:
        # Entry 0 and no entry look alike in the word.
        if self._number < 1 or self._store.newest_entry[0] != self._number:
            self._number, self._hash = newest_entry(connection)
        try:
            return self._insert(connection, entries, words, new_words)
        except Exception as error:
            if not is_constraint(error):
                raise
        # The last writer died before it could raise the shared number.
        self._number, self._hash = newest_entry(connection)
        return self._insert(connection, entries, words, new_words)

    def committed(self, appended: Appended) -> None:
        """Remember what was appended; still in the turn."""
        self._number, self._hash = appended.last, appended.hash
        self._store.newest_entry[0] = appended.last
        if appended.new_words:
            # Bounded against clients that never stop sending new words.
            if len(self._words) + len(appended.new_words) > MAX_WORDS_REMEMBERED:
                self._words = {None: None}
            self._words.update(appended.new_words)

    def _insert(
        self, connection: Connection, entries: Sequence[Entry], words: Words, new_words: Words
    ) -> Appended:
        number, hashed = self._number, self._hash
        if number == 0 and hashed == GENESIS and entries and isinstance(entries[0], PayloadEntry):
            number = -1  # what a chain begins with, so that the first record is number 1
        first = number + 1
        rows: list[Row] = []
        for entry in entries:
            number += 1
            hashed, row = entry.hash_and_row(number, hashed, words)
            rows.append(row)
        if rows:
            insert_many(connection, COLUMNS, rows, MAX_ENTRIES_PER_STATEMENT)
        return Appended(first, number, hashed, new_words)


def newest_entry(connection: Connection) -> tuple[int, bytes]:
    """The number and the hash of the newest entry; 0 and `GENESIS` where there is none."""
    rows: list[Any] = connection.execute(
        "SELECT id, hash FROM record ORDER BY id DESC LIMIT 1"
    ).fetchall()
    number, hashed = rows[0] if rows else anchor(connection)
    if type(hashed) is not bytes or len(hashed) != len(GENESIS):
        raise StoreError(f"the audit is damaged: entry {number} has no hash")
    return number, hashed


def anchor(connection: Connection) -> tuple[int, bytes]:
    """What the first entry goes on from: the last one that was archived, or else `GENESIS`.

    `GENESIS` has number 0, or -1 where the chain begins with entry 0.
    """
    rows: list[Any] = connection.execute(
        "SELECT last, hash FROM archive WHERE last > 0 ORDER BY last DESC LIMIT 1"
    ).fetchall()
    if rows:
        number, hashed = rows[0]
        return number, hashed
    has_entry_0 = connection.execute("SELECT EXISTS (SELECT 1 FROM record WHERE id = 0)").get
    return (-1 if has_entry_0 else 0), GENESIS
