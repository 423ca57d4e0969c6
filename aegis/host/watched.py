"""A file that others change while it is watched: what it looks like, and whether it is whole yet."""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Callable

__all__ = ["Look", "Settling", "is_being_written", "look_at"]

SHRUNK_S = 1.5
"""A file that has become shorter may be half written: it has to stay as it is for so long."""
MAX_WRITING_S = 5.0
"""Who has a file open for longer than this after its last change does not write it."""

Look = tuple[int, int, int, int, int] | None
"""What changes about a file when anything about it changes, its size third; None: there is none.

The moment of the inode's change cannot be set back, as that of the content's can.
"""


def look_at(path: str) -> Look:
    """What a file looks like now."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


class Settling:
    """Tells a file that is being written from one that is whole.

    Args:
        path: The file.
        clock: Seconds, monotonic.
    """

    def __init__(self, path: str, clock: Callable[[], float]) -> None:
        self._path = path
        self._clock = clock
        self._last: Look = None
        self._since_s = clock()

    def is_written(self, look: Look) -> bool:
        """Whether nobody writes the file, given what it looks like now."""
        age_s = self._age_s(look)
        return look is None or age_s >= MAX_WRITING_S or not is_being_written(self._path)

    def is_whole(self, look: Look, size_before: int) -> bool:
        """Whether a file that nobody writes has all that it is to have.

        Args:
            look: What it looks like now.
            size_before: How many bytes it had when it was last taken.
        """
        age_s = self._age_s(look)
        return look is None or look[2] >= size_before or age_s >= SHRUNK_S

    def _age_s(self, look: Look) -> float:
        now = self._clock()
        if look != self._last:
            self._last, self._since_s = look, now
        return now - self._since_s


def is_being_written(path: str) -> bool:
    """Whether somebody has a file open to write it; False where the system does not tell.

    It tells the file's owner and root, on a local file system.
    """
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        # SOURCE: fcntl(2), "Leases": a read lease is refused while the file is open for writing. Who
        # opens it meanwhile waits for the release, and the signal for that would end this process,
        # unless it is one that is ignored by default.
        fcntl.fcntl(file, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(file)
    return False
