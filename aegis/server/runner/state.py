"""What the processes of one `aegis serve` know of each other: memory that workers inherit."""

from __future__ import annotations

import mmap
import time
from dataclasses import dataclass

__all__ = ["ServerState", "WorkerStart"]

SLOW_START_S = 5.0
"""A worker that is not ready for so long is missing."""
_REASON_BYTES = 1024

# Words at the start.
_IS_LISTENING, _IS_ANNOUNCED, _IS_STOPPING, _RELOADS_ASKED, _RELOADS_DONE = range(5)
_HEAD_WORDS = 8
# Words of a worker. Starts are counted, so that a process never speaks for a later one.
_START, _READY, _FAILURES, _SINCE_NS = range(4)
_WORKER_WORDS = 4


@dataclass(frozen=True, slots=True)
class WorkerStart:
    """One start of one worker.

    Attributes:
        index: Of the worker, from 0.
        number: How many times it was started.
    """

    index: int
    number: int


class ServerState:
    """Who is ready, why one is not, and what is asked of all.

    Invariant: each word and each reason has one writer at a time: the parent, or the one process that
    a start stands for.

    Args:
        workers: How many there are to be.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._reasons_at = 8 * (_HEAD_WORDS + _WORKER_WORDS * workers)
        self._memory = mmap.mmap(-1, self._reasons_at + _REASON_BYTES * workers)
        self._words = memoryview(self._memory)[: self._reasons_at].cast("Q")

    # --- all -------------------------------------------------------------------------------------

    @property
    def is_announced(self) -> bool:
        """Whether a worker has ever listened."""
        return bool(self._words[_IS_ANNOUNCED])

    @property
    def is_stopping(self) -> bool:
        """Whether the server was told to stop."""
        return bool(self._words[_IS_STOPPING])

    def missing(self) -> int:
        """How many workers cannot start, or take long to."""
        now = time.monotonic_ns()
        return sum(self._is_missing(index, now) for index in range(self.workers))

    def _is_missing(self, index: int, now_ns: int) -> bool:
        word = self._word_of(index)
        start, ready, failures, since_ns = self._words[word : word + _WORKER_WORDS]
        is_slow = now_ns - since_ns > SLOW_START_S * 1e9
        return bool(ready != start and (failures or (is_slow and self.is_announced)))

    # --- the parent ------------------------------------------------------------------------------

    def announce(self) -> bool:
        """Take note of the first worker that listens; whether there is one, for the first time."""
        if self.is_announced or not self._words[_IS_LISTENING]:
            return False
        self._words[_IS_ANNOUNCED] = 1
        return True

    def begin_start(self, index: int) -> WorkerStart:
        """Count one more start of a worker; before it is forked."""
        word = self._word_of(index)
        self._reason(index, "")
        self._words[word + _START] += 1
        if not self._words[word + _SINCE_NS]:
            self._words[word + _SINCE_NS] = time.monotonic_ns()
        return WorkerStart(index, int(self._words[word + _START]))

    def is_ready(self, index: int) -> bool:
        """Whether the last start of a worker has become ready."""
        word = self._word_of(index)
        return bool(self._words[word + _READY] == self._words[word + _START])

    def end_start(self, index: int) -> int:
        """Take note that a worker has ended.

        Returns:
            How often it has ended in a row without having been ready.
        """
        word = self._word_of(index)
        failures = 0 if self.is_ready(index) else int(self._words[word + _FAILURES]) + 1
        self._words[word + _READY] = 0
        self._words[word + _FAILURES] = failures
        self._words[word + _SINCE_NS] = time.monotonic_ns()
        return failures

    def reason(self, index: int) -> str:
        """Why the last start of a worker failed; "": it did not say."""
        start = self._reasons_at + _REASON_BYTES * index
        return self._memory[start : start + _REASON_BYTES].rstrip(b"\0").decode(errors="replace")

    def begin_stop(self) -> None:
        """Tell all that the server was told to stop."""
        self._words[_IS_STOPPING] = 1

    def ask_reload(self) -> None:
        """Ask for the files to be loaded again."""
        self._words[_RELOADS_ASKED] += 1

    @property
    def is_reload_open(self) -> bool:
        """Whether files were asked for and are not loaded yet."""
        return bool(self._words[_RELOADS_DONE] != self._words[_RELOADS_ASKED])

    # --- a worker --------------------------------------------------------------------------------

    def say_ready(self, start: WorkerStart) -> None:
        """Say that a worker has started."""
        self._words[self._word_of(start.index) + _READY] = start.number

    def say_listening(self) -> None:
        """Say that there is a worker that takes connections."""
        self._words[_IS_LISTENING] = 1

    def say_failed(self, start: WorkerStart, why: str) -> None:
        """Say why a worker cannot start."""
        self._reason(start.index, " ".join(why.split()))

    def asked_reload(self) -> int:
        """The number of the last reload that was asked for."""
        return int(self._words[_RELOADS_ASKED])

    def say_reloaded(self, number: int) -> None:
        """Say that this one and those before it are done."""
        self._words[_RELOADS_DONE] = number

    def _reason(self, index: int, text: str) -> None:
        start = self._reasons_at + _REASON_BYTES * index
        data = text.encode()[:_REASON_BYTES].ljust(_REASON_BYTES, b"\0")
        self._memory[start : start + _REASON_BYTES] = data

    @staticmethod
    def _word_of(index: int) -> int:
        return _HEAD_WORDS + _WORKER_WORDS * index
