"""The processes that decide over one database, and the mapped file by which they agree on a policy.

The file holds one word, the number of the newest version, which is what every request looks at; a
slot for each process that decides; and the digest of the policy that all of them shall get ready
for. It holds no truth of its own: what it says is made again from the database when it is gone.

The file may be removed or replaced while processes have it mapped. They look for that a few times a
second, and decide nothing once they have not looked for `LEASE_S`; a change of the policy by a file
that is younger than that waits until it is not. So no process goes on by a file that others have left.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from aegis.config import beside
from aegis.errors import StoreError
from aegis.host.mapped_file import MADE_NS, MappedFile
from aegis.host.slots import SLOT_WORDS, Slots
from aegis.host.wakeups import Bell

__all__ = ["LEASE_S", "Workers"]

_log = logging.getLogger("aegis.policy")

MAX_PROCESSES = 512
"""Further ones decide as well, but nobody waits for them when the policy changes."""
LEASE_S = 0.25
"""How long a process may decide without looking whether its file is still the one of all."""
SETTLED_S = 2 * LEASE_S
"""How old a file has to be for all processes to have found it, or to have stopped deciding."""
CHANGE_TIMEOUT_S = 30.0
"""How long a change waits for another one to end."""

# Words of 64 bits at the start of the file; `mapped_file` has words 8 and 9.
_NEWEST, _TICKET, _BELL, _FAILURES, _DIGEST = 0, 1, 2, 3, 4
_DIGEST_BYTES = 32
_FAILURE_AT = 1024  # why the policy file was refused
SLOTS_AT = 4096
# Words of a slot, after its owner. A ticket that is ready has its low bit set if the policy is at hand.
_READY, _VERSION, _WATCHES = 2, 3, 4
SIZE = SLOTS_AT + MAX_PROCESSES * SLOT_WORDS * 8

_PAUSE_S = 0.001


class Workers:
    """What the processes over one database share.

    Invariant: `newest` is at least the number of every version that was ever said to be in force.
    A change is prepared first and takes place at one moment: when the word is raised.

    Args:
        database: Its path; None: it is in memory, and this process is the only one.

    Attributes:
        newest: One word: the number of the newest version that is in force anywhere.
        is_up_to_date: Whether `newest` is known to be as the database has it: not after another file
            was mapped.
        has_lost_slot: Whether this process has to join again since it has mapped another file.
        slot: Where in the file this process is, in words; None: it has not joined.

    Raises:
        StoreError: The file cannot be made.
    """

    def __init__(self, database: str | None) -> None:
        path = None if database is None else beside(database, ".version")
        self._lock = threading.Lock()
        self._file = MappedFile(path, SIZE, database or "")
        self._look_at_file()
        self.is_up_to_date = True
        self.has_lost_slot = False

    def _look_at_file(self) -> None:
        self._words = self._file.words
        self._slots = Slots(self._words, self._file.held, SLOTS_AT // 8)
        self._bell = Bell(self._file.memory, 8 * _BELL)
        self.slot: int | None = None
        self.newest = self._words[_NEWEST : _NEWEST + 1]

    def _take_other_file(self) -> None:
        self.has_lost_slot = self.has_lost_slot or self.slot is not None
        self.is_up_to_date = False
        self._look_at_file()

    def close(self) -> None:
        """Leave, and let go of the file."""
        self.leave()
        self.newest.release()
        del self._bell
        self._file.close()

    def is_in_place(self) -> bool:
        """Whether the file that is mapped is still the one that its path names."""
        return self._file.is_in_place()

    # --- changes ---------------------------------------------------------------------------------

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Be the only one who changes the policy, of all threads and processes.

        Where the file was removed or replaced, it is another one afterwards: `newest` then is not what
        the database has, and this process has no slot.

        Raises:
            StoreError: Another change does not end; or there is no file, and none can be made.
        """
        deadline = time.monotonic() + CHANGE_TIMEOUT_S
        if not self._lock.acquire(timeout=CHANGE_TIMEOUT_S):
            raise _never_ends()
        try:
            with self._file.locked(deadline - time.monotonic(), self._take_other_file) as is_locked:
                if not is_locked:
                    raise _never_ends()
                yield
        finally:
            self._lock.release()

    def wait_until_settled(self) -> None:
        """Wait until every process has found the file, or stopped deciding by another one."""
        age_s = (time.monotonic_ns() - self._words[MADE_NS]) / 1e9
        if 0 <= age_s < SETTLED_S:  # a moment of before a restart of the machine says nothing
            time.sleep(SETTLED_S - age_s)

    def say_settled(self) -> None:
        """Say that nobody decides by another file: there is no policy yet."""
        self._words[MADE_NS] = 0

    def raise_newest(self, version: int) -> None:
        """Put a version into force: who decides from now on decides by it or a newer one.

        Called while `changing`, when the database has the version.
        """
        # INVARIANT: an aligned word is written at once, so readers need no lock.
        self.newest[0] = version
        self._bell.ring()

    def ask(self, sha256: str) -> int:
        """Ask all processes to get a policy ready; called while `changing`.

        Returns:
            The ticket that they will have then.
        """
        self._file.memory[8 * _DIGEST : 8 * _DIGEST + _DIGEST_BYTES] = bytes.fromhex(sha256)
        ticket = (int(self._words[_TICKET]) + 2) % 2**63
        self._words[_TICKET] = ticket
        self._bell.ring()
        return ticket

    def wait_until_ready(self, ticket: int, timeout_s: float) -> int:
        """Wait for the processes that live, at most until the timeout.

        Args:
            ticket: What `ask` gave.
            timeout_s: For all of them together.

        Returns:
            How many have the policy at hand.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            ready = waiting = 0
            for slot in self._slots.taken():
                if self._words[slot + _READY] >> 1 == ticket >> 1:
                    ready += int(self._words[slot + _READY] & 1)
                elif self._slots.is_alive(slot):
                    waiting += 1
            if not waiting or time.monotonic() > deadline:
                return ready
            time.sleep(_PAUSE_S)

    # --- a process that decides ------------------------------------------------------------------

    def join(self) -> None:
        """Be one of those that changes wait for; called by one process at a time."""
        self.has_lost_slot = False
        self.slot = self._slots.take()
        if self.slot is None:
            _log.warning(
                "over %d processes share the database; changes do not wait for this one",
                MAX_PROCESSES,
            )

    def leave(self) -> None:
        """Be one of them no longer."""
        slot, self.slot = self.slot, None
        if slot is not None:
            self._slots.leave(slot)

    def asked(self) -> tuple[int, str]:
        """The last ticket, and the digest of the policy to get ready for."""
        ticket = int(self._words[_TICKET])
        digest = bytes(self._file.memory[8 * _DIGEST : 8 * _DIGEST + _DIGEST_BYTES])
        return ticket, digest.hex()

    def say_ready(self, ticket: int, *, is_at_hand: bool) -> None:
        """Say that this process has done what it could for a ticket."""
        if self.slot is not None:
            self._words[self.slot + _READY] = ticket | is_at_hand

    def say_version(self, version: int) -> None:
        """Say by which version this process decides."""
        if self.slot is not None:
            self._words[self.slot + _VERSION] = version

    def watches_file(self) -> None:
        """Say that this process watches the policy file."""
        if self.slot is not None:
            self._words[self.slot + _WATCHES] = 1

    def is_first_to_watch(self) -> bool:
        """Whether no process before this one that lives watches the policy file."""
        for slot in self._slots.taken():
            if slot == self.slot:
                return True
            if self._words[slot + _WATCHES] and self._slots.is_alive(slot):
                return False
        return True

    def say_file_failed(self, why: str | None) -> None:
        """Say why the policy file could not be loaded; None: it was."""
        text = b"" if why is None else why.encode()[: SLOTS_AT - _FAILURE_AT]
        self._file.memory[_FAILURE_AT:SLOTS_AT] = text.ljust(SLOTS_AT - _FAILURE_AT, b"\0")
        if why is not None:
            self._words[_FAILURES] += 1

    def file_failures(self) -> tuple[int, str | None]:
        """How often the policy file could not be loaded, and why it cannot be now."""
        text = bytes(self._file.memory[_FAILURE_AT:SLOTS_AT]).rstrip(b"\0").decode(errors="replace")
        return int(self._words[_FAILURES]), text or None

    def forget_failures(self) -> None:
        """Start counting again."""
        self.say_file_failed(None)
        self._words[_FAILURES] = 0

    def versions(self) -> list[int]:
        """By which version each process that lives decides."""
        return [
            int(self._words[slot + _VERSION])
            for slot in self._slots.taken()
            if self._slots.is_alive(slot)
        ]

    def bell(self) -> int:
        """A number that is another one after each change and each question."""
        return self._bell.count

    def wait(self, bell: int, timeout_s: float) -> None:
        """Wait until the bell gives another number than this, or the time is over."""
        self._bell.wait(bell, timeout_s)

    def wake(self) -> None:
        """Let those who wait look up."""
        self._bell.ring()


def _never_ends() -> StoreError:
    return StoreError("another change of the policy does not end; try again")
