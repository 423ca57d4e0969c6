"""Locks of files: taking turns up to a deadline, and numbers that are held by those who live.

The kernel holds both kinds, so they end with their holder however it ends, and mean the same in every
container that has the file. That is why Aegis tells by them alone whether a process lives: the number
of a process may be another's by now, and means nothing in another container. Only what must not outlive
its parent asks otherwise: the kernel signals it (`PR_SET_PDEATHSIG`), and one look at `getppid` covers the
moment before.

Linux has three kinds, none of which sees the others on a local file system:

- `flock` belongs to the open file. What is forked has it too, until the last of them has closed it.
- An open file description lock (OFD) does as well, but is of a range of bytes, so that one file has
  many of them.
- A lock of POSIX belongs to the process: what is forked has it not, but it ends with the first
  descriptor of the file that the process closes, even one that another part of it opened. SQLite uses these; never open and
  close its files.
"""

from __future__ import annotations

import fcntl
import os
import struct
import time
from collections.abc import Callable
from contextlib import suppress

__all__ = [
    "HeldNumbers",
    "hold_for_process",
    "is_at",
    "is_held_by_process",
    "lock_at",
    "lock_file",
    "try_lock",
    "unlock_file",
]

MAX_HELD = 2**62
"""The largest number that can be held."""

_FIRST_PAUSE_S, _LAST_PAUSE_S = 0.0002, 0.005


def try_lock(file: int) -> bool:
    """Lock an open file (`flock`), if nobody else has; it is unlocked when it is closed."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def lock_file(file: int, timeout_s: float) -> bool:
    """Lock an open file (`flock`), waiting for others.

    Polls, since a wait in `flock` itself has no deadline, and its holder may have been suspended.

    Returns:
        Whether it is locked now; False: others held it until the deadline.
    """
    return _poll(lambda: try_lock(file), timeout_s)


def unlock_file(file: int) -> None:
    """Let the next one have the lock of an open file."""
    fcntl.flock(file, fcntl.LOCK_UN)


def lock_at(
    path: str,
    open_file: Callable[[str], int],
    timeout_s: float,
    *,
    has_to_wait: Callable[[int], bool] = lambda _: True,
) -> int | None:
    """Open and lock the file at a path; it is still the one at that path when it is locked.

    Args:
        path: Where it is; others may remove or replace it meanwhile.
        open_file: Opens it, or makes it.
        timeout_s: How long to wait for others.
        has_to_wait: Given the file that another one has locked, whether waiting is of any use.

    Returns:
        Its descriptor; None: others held it until the deadline, or there is no use in waiting.

    Raises:
        OSError: It cannot be opened.
    """
    locked: list[int] = []

    def attempt() -> bool:
        file = open_file(path)
        try:
            if not try_lock(file):
                return not has_to_wait(file)
            if is_at(path, file):
                locked.append(file)
        finally:
            if file not in locked:
                os.close(file)
        return bool(locked)

    _poll(attempt, timeout_s)
    return locked[0] if locked else None


def hold_for_process(file: int) -> None:
    """Let others see that this process has an open file, until it ends or closes any such descriptor.

    What is forked from it does not count.
    """
    fcntl.fcntl(file, fcntl.F_SETLK, _range(fcntl.F_WRLCK, 0, 0))


def is_held_by_process(file: int) -> bool:
    """Whether another process called `hold_for_process` for an open file, and lives."""
    answer = fcntl.fcntl(file, fcntl.F_GETLK, _range(fcntl.F_WRLCK, 0, 0))
    return bool(struct.unpack_from("h", answer)[0] != fcntl.F_UNLCK)


def is_at(path: str, file: int) -> bool:
    """Whether an open file is the one at a path."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.stat(path), os.fstat(file))
    return False


def _poll(attempt: Callable[[], bool], timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    pause_s = _FIRST_PAUSE_S
    while not attempt():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, _LAST_PAUSE_S)
    return True


class HeldNumbers:
    """Numbers that are held by those who have a file open, each by one at a time.

    Two that are open in one process exclude each other too. What is forked holds them as well.

    Args:
        file: The descriptor of an open file; numbers are bytes of it, or after its end.
        start: Where the byte of number 0 is.
    """

    def __init__(self, file: int, start: int) -> None:
        self._file = file
        self._start = start

    def hold(self, number: int) -> bool:
        """Hold a number until it is released or the file is closed; False: somebody else does."""
        return self._set(fcntl.F_WRLCK, number, 1)

    def hold_all(self) -> bool:
        """Hold every number; False: somebody else holds one."""
        return self._set(fcntl.F_WRLCK, 0, 0)

    def release(self, number: int) -> None:
        """Hold it no longer."""
        self._set(fcntl.F_UNLCK, number, 1)

    def is_held(self, number: int) -> bool:
        """Whether somebody else holds a number: what has this file open by itself, in any process.

        Nobody holds a number that cannot be held.
        """
        if not 0 < number <= MAX_HELD:
            return False
        # F_OFD_GETLK takes nothing, so that two who ask at once do not see each other.
        answer = fcntl.fcntl(
            self._file, fcntl.F_OFD_GETLK, _range(fcntl.F_WRLCK, self._start + number, 1)
        )
        return bool(struct.unpack_from("h", answer)[0] != fcntl.F_UNLCK)

    def _set(self, kind: int, number: int, count: int) -> bool:
        try:
            fcntl.fcntl(self._file, fcntl.F_OFD_SETLK, _range(kind, self._start + number, count))
        except (BlockingIOError, PermissionError):
            return False
        return True


def _range(kind: int, start: int, count: int) -> bytes:
    # SOURCE: fcntl(2), "struct flock": a length of 0 goes up to the end, however long the file.
    return struct.pack("hhqqi4x", kind, os.SEEK_SET, start, count, 0)
