"""A table in a mapped file with a slot for each process, and which of them live."""

from __future__ import annotations

import os
from collections.abc import Iterator

from aegis.host.locks import HeldNumbers

__all__ = ["SLOT_WORDS", "Slots"]

SLOT_WORDS = 8
_OWNER = 0
"""The word that has the number of the process, so that free slots are passed over without a call."""


class Slots:
    """The slots of a file.

    Invariant: a process lives as long as it holds the number of its slot, which the kernel lets go of
    when it ends. What it left in the slot is cleared by the next one that takes it.

    Args:
        words: Of the whole file.
        held: Which numbers this process holds of the file.
        start: The word at which the first slot is; the others follow, up to the end.
    """

    def __init__(self, words: memoryview[int], held: HeldNumbers, start: int) -> None:
        self._words = words
        self._held = held
        self._all = range(start, len(words), SLOT_WORDS)
        self._own: int | None = None

    def take(self) -> int | None:
        """Take a slot: the number of its first word; None: others have all of them."""
        for slot in self._all:
            if self._held.hold(slot):
                for word in range(slot, slot + SLOT_WORDS):
                    self._words[word] = 0
                self._words[slot + _OWNER] = os.getpid()
                self._own = slot
                return slot
        return None

    def leave(self, slot: int) -> None:
        """Let others have a slot that was taken."""
        # What was forked since has the number too, and the lock, but the slot is its parent's.
        if self._words[slot + _OWNER] == os.getpid():
            self._words[slot + _OWNER] = 0
            self._held.release(slot)
            self._own = None

    def taken(self) -> Iterator[int]:
        """Slots of processes that live, or have died without leaving."""
        for slot in self._all:
            if self._words[slot + _OWNER]:
                yield slot

    def is_alive(self, slot: int) -> bool:
        """Whether the process that took a slot lives."""
        return slot == self._own or self._held.is_held(slot)
