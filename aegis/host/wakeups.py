"""Waking threads of other processes by a word of memory that they share."""

from __future__ import annotations

import ctypes
import mmap
import platform
import time

__all__ = ["Bell"]

FUTEX = {"x86_64": 202, "aarch64": 98, "riscv64": 98}.get(platform.machine())
"""The number of the system call; None: it is not known here, and waiting polls."""
_FUTEX_WAIT, _FUTEX_WAKE = 0, 1
_LIBC = ctypes.CDLL(None, use_errno=True)
_PAUSE_S = 0.01


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class Bell:
    """A shared number that changes with each ring, and a way to wait until it does.

    Args:
        memory: What is shared.
        offset: Where the number is, in bytes; a multiple of 4.
    """

    def __init__(self, memory: mmap.mmap, offset: int) -> None:
        self._count = ctypes.c_uint32.from_buffer(memory, offset)

    @property
    def count(self) -> int:
        """A different number after each ring."""
        return int(self._count.value)

    def ring(self) -> None:
        """Wake everyone who waits."""
        # Two that ring at once may count once: those who waited for the number before wake anyway.
        self._count.value += 1
        if FUTEX is not None:
            _LIBC.syscall(
                ctypes.c_long(FUTEX), ctypes.byref(self._count), ctypes.c_int(_FUTEX_WAKE),
                ctypes.c_int(2**31 - 1), None, None, ctypes.c_int(0),
            )  # fmt: skip

    def wait(self, count: int, timeout_s: float) -> None:
        """Wait until the number differs from this one, or the time is over; may end early."""
        if self._count.value != count:
            return
        if FUTEX is None:
            time.sleep(min(timeout_s, _PAUSE_S))
            return
        # SOURCE: futex(2): the kernel compares once more, so that no ring is missed in between. Not
        # FUTEX_PRIVATE: the waiters are of several processes. ctypes lets go of the GIL meanwhile.
        limit = _Timespec(int(timeout_s), int(timeout_s % 1 * 1e9))
        _LIBC.syscall(
            ctypes.c_long(FUTEX), ctypes.byref(self._count), ctypes.c_int(_FUTEX_WAIT),
            ctypes.c_uint32(count), ctypes.byref(limit), None, ctypes.c_int(0),
        )  # fmt: skip
