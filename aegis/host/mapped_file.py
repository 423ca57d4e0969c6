"""A file of words that processes map; others may remove, replace or cut it at any time."""

from __future__ import annotations

import mmap
import os
import secrets
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from aegis.errors import StoreError
from aegis.host.files import allocate, keep_owner
from aegis.host.locks import HeldNumbers, is_at, lock_at
from aegis.messages import quote

__all__ = ["MADE_NS", "MappedFile"]

MADE_NS, _INODE = 8, 9
"""The words that each such file has: the moment at which it was made, and the inode that it had then.

A copy has another inode, so that nobody takes it for the file that was agreed on.
"""


class MappedFile:
    """The file at a path, mapped.

    Invariant: what is mapped is whole, so that no access of it ends the process by SIGBUS, unless
    somebody cuts the file later.

    Args:
        path: The file, made if there is none; None: memory of this process only.
        size: In bytes.
        like: The file whose owner it gets.

    Attributes:
        memory: The bytes.
        words: The same as words of 64 bits.
        held: The numbers that this process holds of the file.

    Raises:
        StoreError: The file cannot be made.
    """

    def __init__(self, path: str | None, size: int, like: str) -> None:
        self._path = path
        self._size = size
        self._like = like
        self._file = -1
        self._map()

    def _map(self) -> None:
        if self._path is None:
            file = os.memfd_create("aegis", os.MFD_CLOEXEC)
            os.ftruncate(file, self._size)
        else:
            try:
                file = _open(self._path, self._size, self._like)
            except OSError as error:
                raise StoreError(f"cannot use {quote(self._path)}: {error}") from error
        memory = mmap.mmap(file, self._size)
        # The old map goes when nobody looks at it any more; what was held of the old file goes now.
        self._close_file()
        self._file, self.memory = file, memory
        self.words = memoryview(memory).cast("Q")
        self.held = HeldNumbers(file, 0)

    def close(self) -> None:
        """Let go of the file; who has views of its memory releases them first."""
        self.words.release()
        self.memory.close()
        self._close_file()

    def _close_file(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def is_in_place(self) -> bool:
        """Whether the file that is mapped is still the one that its path names.

        Cost: two calls of the system.
        """
        if self._path is None:
            return True
        try:
            return is_at(self._path, self._file)
        except OSError:
            return False

    @contextmanager
    def locked(self, timeout_s: float, replaced: Callable[[], None]) -> Iterator[bool]:
        """Lock the file that is at the path, which is also mapped then.

        Args:
            timeout_s: How long to wait for others.
            replaced: Called when another file was mapped than before; nothing of it is held.

        Returns:
            Whether it is locked; False: others held it until the deadline.

        Raises:
            StoreError: There is no file, and none can be made.
        """
        if self._path is None:
            yield True
            return

        def open_mapped(path: str) -> int:
            while True:
                if not self.is_in_place():
                    self._map()
                    replaced()
                with suppress(FileNotFoundError):  # it was removed just now
                    # Opened once more: what is forked would share a lock of the file that is mapped.
                    return _open_existing(path)

        try:
            while (file := lock_at(self._path, open_mapped, timeout_s)) is not None:
                if os.path.sameopenfile(file, self._file):
                    break
                os.close(file)  # replaced between the two
        except OSError as error:
            raise StoreError(f"cannot use {quote(self._path)}: {error}") from error
        try:
            yield file is not None
        finally:
            if file is not None:
                os.close(file)


def _open_existing(path: str) -> int:
    return os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)


def _open(path: str, size: int, like: str) -> int:
    """The file at a path; made, whole and with its moment, if there is none."""
    while True:
        try:
            file = _open_existing(path)
        except FileNotFoundError:
            _make(path, size, like)
            continue
        status = os.fstat(file)
        if status.st_size >= size and _read_word(file, _INODE) == status.st_ino:
            return file
        # Cut or copied: what it says is not what was agreed, so that all have to leave it.
        os.close(file)
        with suppress(FileNotFoundError):
            os.unlink(path)


def _make(path: str, size: int, like: str) -> None:
    temporary = f"{path}.{secrets.token_hex(8)}"
    file = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        keep_owner(file, like)
        allocate(file, size)
        os.pwrite(file, struct.pack("QQ", time.monotonic_ns(), os.fstat(file).st_ino), 8 * MADE_NS)
        # Linked, not renamed: of two processes that make it at once, one is first and both have it.
        with suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        os.close(file)
        os.unlink(temporary)


def _read_word(file: int, word: int) -> int:
    return int(struct.unpack("Q", os.pread(file, 8, 8 * word))[0])
