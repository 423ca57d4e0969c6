"""Bytes that processes share without a file that anybody else could change."""

from __future__ import annotations

import fcntl
import mmap
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["SharedBytes"]

_HEAD_BYTES = 4096
_VERSION, _SIZES = 0, 1  # words of the head; sizes of both places


class SharedBytes:
    """A value that is replaced as a whole, shared by a process and those that are forked from it.

    Invariant: what is read is what one `replace` wrote, also while another one writes, and after a
    process was killed while it wrote. The value lies in one of two places; the other is written.

    Args:
        max_bytes: Of a value.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._file = os.memfd_create("aegis", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self._file, _HEAD_BYTES + 2 * max_bytes)
        # A mapped file that became shorter would end its readers.
        fcntl.fcntl(self._file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        self._words = memoryview(mmap.mmap(self._file, _HEAD_BYTES)).cast("Q")
        self._lock = threading.Lock()

    def __del__(self) -> None:
        os.close(self._file)

    @property
    def version(self) -> int:
        """How often it was replaced."""
        return int(self._words[_VERSION])

    def read(self) -> tuple[int, bytes]:
        """Its version and the value; 0 and nothing at first."""
        while True:
            version = self.version
            place = version % 2
            size = int(self._words[_SIZES + place])
            data = os.pread(self._file, size, _HEAD_BYTES + place * self.max_bytes)
            if self.version == version:
                return version, data

    @contextmanager
    def turn(self) -> Iterator[bool]:
        """Be the only one who replaces it, of all threads and processes; whether that is so.

        Nobody is waited for: a process that was suspended must not stop the others.
        """
        is_ours = self._lock.acquire(blocking=False)
        try:
            if is_ours:
                try:
                    fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except (BlockingIOError, PermissionError):
                    is_ours = False
                    self._lock.release()
            yield is_ours
        finally:
            if is_ours:
                fcntl.lockf(self._file, fcntl.LOCK_UN)
                self._lock.release()

    def replace(self, data: bytes) -> int:
        """Replace the value, within a turn; its new version.

        Raises:
            ValueError: It is too large.
        """
        if len(data) > self.max_bytes:
            raise ValueError(f"{len(data)} bytes are over {self.max_bytes}")
        version = self.version + 1
        place = version % 2
        os.pwrite(self._file, data, _HEAD_BYTES + place * self.max_bytes)
        self._words[_SIZES + place] = len(data)
        # INVARIANT: last, and at once: an aligned word is written whole.
        self._words[_VERSION] = version
        return version
