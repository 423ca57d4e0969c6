"""The processes that decide over one database, and the mapped file by which they agree on a policy.

The file holds one word, the number of the newest version, which is what every request looks at; a
slot for each process that decides; and the digest of the policy that all of them shall get ready
for. It holds no truth of its own: what it says is made anew from the database when it is gone.

The file may be removed or replaced while processes have it mapped. They look for that a few times a
second, and decide nothing once they have not looked for `LEASE_S`; who changes the policy by a file
that is younger than that waits until it is not. So no process goes on by a file that others have left.
"""

from __future__ import annotations

import ctypes
import fcntl
import logging
import mmap
import os
import platform
import secrets
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from aegis.config import beside
from aegis.errors import StoreError, shown
from aegis.host.files import allocate, keep_owner

__all__ = ["Workers"]

_log = logging.getLogger("aegis.policy")

MOST_PROCESSES = 512
"""Further ones decide as well, but nobody waits for them when the policy changes."""
LEASE_S = 0.25
"""How long a process may decide without looking whether its file is still the one of all."""
SETTLED_S = 2 * LEASE_S
"""How old a file has to be for all processes to have found it, or to have stopped deciding."""
CHANGE_TIMEOUT_S = 30.0
"""How long a change waits for another one to end."""

# Words of 64 bits at the start of the file.
_NEWEST, _TICKET, _BELL, _FAILURES, _DIGEST, _MADE_NS, _INODE = 0, 1, 2, 3, 4, 8, 9
_DIGEST_BYTES = 32
_FAILURE_AT = 1024  # why the policy file was refused
SLOTS_AT = 4096
# Words of a slot. A ticket that is ready has its low bit set where the policy is at hand.
_PID, _STARTED, _READY, _VERSION, _WATCHES = 0, 1, 2, 3, 4
_SLOT_WORDS = 8
SIZE = SLOTS_AT + MOST_PROCESSES * _SLOT_WORDS * 8

_PAUSE_S = 0.001
FUTEX = {"x86_64": 202, "aarch64": 98, "riscv64": 98}.get(platform.machine())
_FUTEX_WAIT, _FUTEX_WAKE = 0, 1
_LIBC = ctypes.CDLL(None, use_errno=True)


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
        self._database = database or ""
        self._path = None if database is None else beside(database, ".version")
        self.slot: int | None = None
        self._lock = threading.Lock()
        self._file_id: tuple[int, int] | None = None
        self._map_file()
        self.is_up_to_date = True
        self.has_lost_slot = False

    def _map_file(self) -> None:
        """Map the file that is at the path now; made if there is none."""
        if self._path is None:
            self._map = mmap.mmap(-1, SIZE)
        else:
            try:
                file = _opened(self._path, self._database)
                try:
                    self._file_id = _id_of(os.fstat(file))
                    self._map = mmap.mmap(file, SIZE)
                finally:
                    os.close(file)
            except OSError as error:
                raise StoreError(f"cannot use {shown(self._path)}: {error}") from error
        self._words = memoryview(self._map).cast("Q")
        self.newest = self._words[_NEWEST : _NEWEST + 1]
        self._bell = ctypes.c_uint32.from_buffer(self._map, 8 * _BELL)

    def close(self) -> None:
        """Leave, and let go of the file."""
        self.leave()
        self.newest.release()
        self._words.release()
        del self._bell
        self._map.close()

    def is_in_place(self) -> bool:
        """Whether the file that is mapped is still the one that its path names.

        Cost: one `stat`.
        """
        if self._path is None:
            return True
        try:
            return _id_of(os.stat(self._path)) == self._file_id
        except OSError:
            return False

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
            file = self._locked(deadline)
            try:
                yield
            finally:
                if file is not None:
                    os.close(file)
        finally:
            self._lock.release()

    def _locked(self, deadline: float) -> int | None:
        """The file, locked, once the one that is mapped is the one at the path; None: in memory."""
        if self._path is None:
            return None
        while True:
            if not self.is_in_place():
                # The old map goes when nobody looks at it any more.
                self.has_lost_slot = self.has_lost_slot or self.slot is not None
                self.slot, self.is_up_to_date = None, False
                self._map_file()
            try:
                file = os.open(self._path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
                with suppress(BlockingIOError):
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if _id_of(os.fstat(file)) == self._file_id and self.is_in_place():
                        return file
                os.close(file)
            except FileNotFoundError:
                pass  # it was removed just now
            except OSError as error:
                raise StoreError(f"cannot use {shown(self._path)}: {error}") from error
            if time.monotonic() > deadline:
                raise _never_ends()
            time.sleep(_PAUSE_S)

    def wait_until_settled(self) -> None:
        """Wait until every process has found the file, or stopped deciding by another one."""
        age_s = (time.monotonic_ns() - self._words[_MADE_NS]) / 1e9
        if 0 <= age_s < SETTLED_S:  # a moment of before a restart of the machine says nothing
            time.sleep(SETTLED_S - age_s)

    def say_settled(self) -> None:
        """Say that nobody decides by another file: there is no policy yet."""
        self._words[_MADE_NS] = 0

    def raise_newest(self, version: int) -> None:
        """Put a version into force: whoever decides from now on decides by it or a newer one.

        Called while `changing`, when the database has the version.
        """
        # INVARIANT: an aligned word is written at once, so readers need no lock.
        self.newest[0] = version
        self._ring()

    def ask(self, sha256: str) -> int:
        """Ask all processes to get a policy ready; called while `changing`.

        Returns:
            The ticket that they will have then.
        """
        self._map[8 * _DIGEST : 8 * _DIGEST + _DIGEST_BYTES] = bytes.fromhex(sha256)
        ticket = (int(self._words[_TICKET]) + 2) % 2**63
        self._words[_TICKET] = ticket
        self._ring()
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
            for slot in self._taken():
                if self._words[slot + _READY] >> 1 == ticket >> 1:
                    ready += int(self._words[slot + _READY] & 1)
                elif self._lives(slot):
                    waiting += 1
            if not waiting or time.monotonic() > deadline:
                return ready
            time.sleep(_PAUSE_S)

    # --- a process that decides ------------------------------------------------------------------

    def join(self) -> None:
        """Be one of those that changes wait for; called by one process at a time."""
        self.has_lost_slot = False
        started = started_at(os.getpid())
        if started is None:
            return
        for slot in range(SLOTS_AT // 8, SIZE // 8, _SLOT_WORDS):
            if not self._words[slot + _PID] or not self._lives(slot):
                self._words[slot + _STARTED] = started
                self._words[slot + _READY] = 0
                self._words[slot + _VERSION] = 0
                self._words[slot + _WATCHES] = 0
                self._words[slot + _PID] = os.getpid()
                self.slot = slot
                return
        _log.warning("over %d processes share the database; changes do not wait for this one",
                     MOST_PROCESSES)  # fmt: skip

    def leave(self) -> None:
        """Be none of them any more."""
        slot, self.slot = self.slot, None
        # A process that was forked meanwhile has the number, but the slot is not its own.
        if slot is not None and self._words[slot + _PID] == os.getpid():
            self._words[slot + _PID] = 0

    def asked(self) -> tuple[int, str]:
        """The last ticket, and the digest of the policy to get ready for."""
        ticket = int(self._words[_TICKET])
        digest = bytes(self._map[8 * _DIGEST : 8 * _DIGEST + _DIGEST_BYTES])
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
        for slot in self._taken():
            if slot == self.slot:
                return True
            if self._words[slot + _WATCHES] and self._lives(slot):
                return False
        return True

    def say_file_failed(self, why: str | None) -> None:
        """Say why the policy file could not be loaded; None: it was."""
        text = b"" if why is None else why.encode()[: SLOTS_AT - _FAILURE_AT]
        self._map[_FAILURE_AT:SLOTS_AT] = text.ljust(SLOTS_AT - _FAILURE_AT, b"\0")
        if why is not None:
            self._words[_FAILURES] += 1

    def file_failures(self) -> tuple[int, str | None]:
        """How often the policy file could not be loaded, and why it cannot be now."""
        text = bytes(self._map[_FAILURE_AT:SLOTS_AT]).rstrip(b"\0").decode(errors="replace")
        return int(self._words[_FAILURES]), text or None

    def forget_failures(self) -> None:
        """Count anew."""
        self.say_file_failed(None)
        self._words[_FAILURES] = 0

    def versions(self) -> list[int]:
        """By which version each process that lives decides."""
        return [int(self._words[slot + _VERSION]) for slot in self._taken() if self._lives(slot)]

    def bell(self) -> int:
        """A number that is another one after each change and each question."""
        return int(self._bell.value)

    def wait(self, bell: int, timeout_s: float) -> None:
        """Wait until the bell gives another number than this, or the time is over."""
        if self._bell.value != bell:
            return
        if FUTEX is None:
            time.sleep(min(timeout_s, 10 * _PAUSE_S))
            return
        limit = _Timespec(int(timeout_s), int(timeout_s % 1 * 1e9))
        _LIBC.syscall(
            ctypes.c_long(FUTEX), ctypes.byref(self._bell), ctypes.c_int(_FUTEX_WAIT),
            ctypes.c_uint32(bell), ctypes.byref(limit), None, ctypes.c_int(0),
        )  # fmt: skip

    def _ring(self) -> None:
        self._bell.value += 1
        if FUTEX is not None:
            _LIBC.syscall(
                ctypes.c_long(FUTEX), ctypes.byref(self._bell), ctypes.c_int(_FUTEX_WAKE),
                ctypes.c_int(2**31 - 1), None, None, ctypes.c_int(0),
            )  # fmt: skip

    def wake(self) -> None:
        """Let those who wait look up."""
        self._ring()

    def _taken(self) -> Iterator[int]:
        for slot in range(SLOTS_AT // 8, SIZE // 8, _SLOT_WORDS):
            if self._words[slot + _PID]:
                yield slot

    def _lives(self, slot: int) -> bool:
        # The start tells a process from a later one with the same number.
        return started_at(int(self._words[slot + _PID])) == self._words[slot + _STARTED]


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


def _opened(path: str, like: str) -> int:
    """The file at a path; made, whole and with its moment, if there is none.

    Args:
        path: The file.
        like: Whose owner it gets.
    """
    while True:
        try:
            file = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            _make(path, like)
            continue
        found = os.fstat(file)
        if found.st_size >= SIZE and _word(file, _INODE) == found.st_ino:
            return file
        # Cut or copied: what it says is not what was agreed, so that all have to leave it.
        os.close(file)
        with suppress(FileNotFoundError):
            os.unlink(path)


def _make(path: str, like: str) -> None:
    temporary = f"{path}.{secrets.token_hex(8)}"
    file = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        keep_owner(file, like)
        allocate(file, SIZE)
        os.pwrite(file, struct.pack("QQ", time.monotonic_ns(), os.fstat(file).st_ino), 8 * _MADE_NS)
        with suppress(FileExistsError):  # another process was quicker
            os.link(temporary, path)
    finally:
        os.close(file)
        os.unlink(temporary)


def _word(file: int, word: int) -> int:
    return int(struct.unpack("Q", os.pread(file, 8, 8 * word))[0])


def _id_of(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def _never_ends() -> StoreError:
    return StoreError("another change of the policy does not end; try again")


def started_at(pid: int) -> int | None:
    """When a process was started, in ticks since the machine was; None: it does not run."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    # SOURCE: proc(5): the name in parentheses may hold anything; then state and 18 more before it.
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])
