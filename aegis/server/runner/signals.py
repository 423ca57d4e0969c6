"""How signals reach the main thread of the parent, whichever thread the system hands them to.

Python runs its handlers in the main thread, and a main thread that waits for a lock does not notice
that another thread was handed a signal: the handler would run when the wait ends, which may be never.
"""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress

__all__ = ["Wakeup", "blocked_signals", "hold_hangups", "release_hangups", "reset_in_worker"]

_HANDLED = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
_MAX_WAIT_S = 1.0
"""A wait ends by itself after this long: nothing that is missed is missed for longer."""


class Wakeup:
    """What the main thread waits on. Signals, threads and other processes end the wait.

    It has `set` and `wait` as a `threading.Event` has, but no lock: a signal handler may call them.
    """

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def listen(self) -> None:
        """Let every signal that has a handler end the wait."""
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)

    def set(self) -> None:
        """End the wait, or the next one."""
        with suppress(BlockingIOError):  # full: it ends anyway
            os.write(self._writer, b"\0")

    def wait(self, timeout_s: float | None = None) -> None:
        """Wait until it is set, or for the time, but at most for a second."""
        wait_s = _MAX_WAIT_S if timeout_s is None else min(max(timeout_s, 0.0), _MAX_WAIT_S)
        select.select([self._reader], [], [], wait_s)
        with suppress(BlockingIOError):
            os.read(self._reader, 4096)


@contextmanager
def blocked_signals() -> Iterator[None]:
    """Keep the signals that we handle from this thread, and from threads and processes it starts."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _HANDLED)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def hold_hangups() -> None:
    """Keep a SIGHUP until it can be answered; by default it would end the process."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP])


def release_hangups() -> None:
    """Take a SIGHUP that came meanwhile, and those to come."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGHUP])


def reset_in_worker() -> None:
    """Undo in a worker what it inherited: the parent's handlers, its wakeup and its mask.

    SIGINT and SIGHUP of a terminal reach every process; what they ask for is the parent's business.
    """
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _HANDLED)
