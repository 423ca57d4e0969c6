"""The queue before the writer's thread: what waits, and when it is worth a commit."""

from __future__ import annotations

import threading
from queue import Empty, SimpleQueue

from aegis.audit.jobs import Job

__all__ = ["JobQueue"]

MAX_GATHERING_S = 0.002
"""How long a commit waits for as many as came to the last one and those after it.

While they come it is not idle: their requests take the time, and one commit for all of them saves more.
"""


class JobQueue:
    """Jobs in the order in which they came; one thread takes them.

    Attributes:
        entries: How many wait for their commit; those that are being committed are among them.
        lock: Guards the states of all jobs, and what is counted here.
    """

    def __init__(self) -> None:
        self.entries = 0
        self.lock = threading.Lock()
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()  # None: the end
        self._expected = 0
        # Locked, except for a moment: it is released to wake the writer's thread. A lock costs a
        # third of what an Event does.
        self._gathered = threading.Lock()
        self._gathered.acquire()
        self._is_gathering = False

    def put(self, job: Job) -> None:
        """Add a job."""
        with self.lock:
            self.entries += len(job.entries)
            if self._is_gathering and self.entries >= self._expected:
                self._is_gathering = False
                self._gathered.release()
        self._jobs.put(job)

    def end(self) -> None:
        """Let the thread that takes jobs end when it has taken all."""
        self._jobs.put(None)

    def take(self) -> Job | None:
        """The next job, waited for; None: the end, and all is taken."""
        while (job := self._jobs.get()) is None and not self._jobs.empty():
            self._jobs.put(None)  # what came after the end is stored as well
        return job

    def take_more(self, batch: list[Job], max_entries: float) -> None:
        """Take those who are there, as long as the batch has fewer entries than that."""
        entries = sum(len(job.entries) for job in batch)
        while entries < max_entries:
            try:
                job = self._jobs.get_nowait()
            except Empty:
                break
            if job is None:
                is_end = self._jobs.empty()
                self._jobs.put(None)
                if is_end:
                    break
                continue
            batch.append(job)
            entries += len(job.entries)

    def expect(self, committed: int, max_entries: int) -> None:
        """Let the next commit wait for as many entries as this one had, and those that came since."""
        self._expected = min(committed + self.entries, max_entries)

    def gather(self) -> None:
        """Let those come who came to the last commit too: one for many costs less than one each."""
        with self.lock:
            if self.entries >= self._expected:
                return
            self._is_gathering = True
        if self._gathered.acquire(timeout=MAX_GATHERING_S):
            return
        with self.lock:
            if not self._is_gathering:
                self._gathered.acquire()  # it was released just now
            self._is_gathering = False
