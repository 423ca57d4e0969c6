"""The write side: entries are queued, committed in groups by one thread, and then acknowledged."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from aegis.audit.chain import Appended, ChainHead
from aegis.audit.entries import Entry
from aegis.audit.idempotency import Claim, Claimed, claim, enlist, finish, withdraw
from aegis.audit.index import Indexer
from aegis.audit.jobs import Attempt, Committed, Job, State, make_refusal, resolve
from aegis.audit.queue import JobQueue
from aegis.audit.recovery import chain_older_rows, interrupt_lost
from aegis.errors import AuditUnavailable, StoreError
from aegis.store.database import Store
from aegis.store.schema import touch
from aegis.store.sql import Connection, transacted
from aegis.timestamps import now_us

__all__ = ["AuditLog"]

_log = logging.getLogger("aegis.audit")

MAX_ENTRIES_PER_COMMIT = 1_000
_RETRY_FIRST_S, _RETRY_LAST_S = 0.05, 1.0
_LOOKS_A_TIMEOUT = 8
_LOOK_AGAIN_S = 0.01


class AuditLog:
    """Writes the audit of one database.

    Invariant: `append` returns after the commit, in the order of the calls. What it could not
    commit in time is either withdrawn, or tried until it is stored or the log is closed.

    Args:
        store: Where the records are.
        most_queued: How many entries may wait.
        timeout_s: How long `append` waits.

    Attributes:
        worker: The number of this writer among all that the database has seen.
        failure: Why records cannot be stored now; None: they can.

    Raises:
        StoreError: The database cannot be written.
    """

    def __init__(self, store: Store, *, most_queued: int, timeout_s: float) -> None:
        self._store = store
        self._most_queued = most_queued
        self._timeout_s = timeout_s
        self._queue = JobQueue()
        self._closing = threading.Event()
        self._chain = ChainHead(store)
        self._attempt: Attempt | None = None
        self._waiting: dict[asyncio.AbstractEventLoop, dict[Job, float]] = {}
        self.failure: str | None = None
        with store.turn() as connection:
            chain_older_rows(connection, self._chain)
        self.worker = _register(store)
        interrupt_lost(store, self._chain)
        self._probing = ThreadPoolExecutor(1, "aegis-audit-probe")
        self._indexer = Indexer(store)
        self._writer = threading.Thread(target=self._write, name="aegis-audit", daemon=True)
        self._writer.start()

    @property
    def queued(self) -> int:
        """How many entries wait for their commit."""
        return self._queue.entries

    def refuse_when_unavailable(self) -> None:
        """Say what keeps records from being stored now.

        Raises:
            AuditUnavailable: Something does.
        """
        if self._closing.is_set():
            raise AuditUnavailable("the server is stopping; ask another one")
        if self.failure is not None:
            raise AuditUnavailable(f"the audit cannot be written: {self.failure}")
        if not self._store.is_in_place():
            raise AuditUnavailable("the database was replaced or removed; restart the server")
        if self.queued >= self._most_queued:
            raise AuditUnavailable(self._full())

    async def probe(self) -> None:
        """See that a record could be written now.

        Raises:
            StoreError: It could not.
        """
        self.refuse_when_unavailable()
        await asyncio.get_running_loop().run_in_executor(self._probing, self._store.probe)

    async def append(
        self,
        entries: Sequence[Entry],
        *,
        claim: Claim | None = None,
        request: int | None = None,
        is_last: bool = False,
        must_stay: bool = False,
    ) -> Committed | Claimed:
        """Store entries together and wait until they are committed.

        Args:
            entries: Records, or outcomes of earlier ones.
            claim: A request that may be made once: where it was made before, nothing is stored.
            request: The claimed request that they belong to.
            is_last: The claimed request ends with them.
            must_stay: They tell of what has happened: they are tried even when they are late.

        Returns:
            Where they are; or the earlier request, where the claim has been made before.

        Raises:
            AuditUnavailable: They were not committed in time. Unless they must stay, nothing is or
                will be stored; where that is too late, the audit says that nothing was executed.

        Cost: up to the timeout; longer only while a commit goes on that cannot be taken back.
        """
        loop = asyncio.get_running_loop()
        if not must_stay:
            if self._closing.is_set():
                raise AuditUnavailable("the server is stopping; ask another one")
            if self.queued >= self._most_queued:
                await self._space(loop)
        committed: asyncio.Future[Committed | Claimed] = loop.create_future()
        job = Job(entries, loop, committed, claim, request, is_last, must_stay)
        self._queue.put(job)
        # One timer serves all jobs of a loop: a timer each would cost more than its record does.
        waiting = self._waiting.get(loop)
        if waiting is None:
            waiting = self._waiting[loop] = {}
            loop.call_later(self._timeout_s / _LOOKS_A_TIMEOUT, self._look, loop)
        waiting[job] = loop.time()
        try:
            return await committed
        finally:
            del waiting[job]

    def is_alive(self, worker: int) -> bool:
        """Whether a writer still runs, here or in another process."""
        return worker == self.worker or self._store.is_held(worker)

    def finish(self, request: int) -> None:
        """Say that a claimed request has ended, without waiting for it to be stored."""
        self._queue.put(Job((), request=request, is_last=True))

    def close(self, timeout_s: float = 10.0) -> None:
        """Store what waits, for at most `timeout_s`, and stop."""
        with self._queue.lock:  # one end only: the writer takes what comes after an end first
            is_first = not self._closing.is_set()
            self._closing.set()
        if is_first:
            self._queue.end()
        self._writer.join(timeout_s)
        self._indexer.close()
        self._probing.shutdown(wait=True)

    def _full(self) -> str:
        return f"{self.queued} audit records wait to be written; try again"

    async def _space(self, loop: asyncio.AbstractEventLoop) -> None:
        deadline = loop.time() + self._timeout_s
        while self.queued >= self._most_queued:
            if loop.time() > deadline:
                raise AuditUnavailable(self._full())
            await asyncio.sleep(_LOOK_AGAIN_S)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        """Called on a loop now and then, while jobs of it wait."""
        waiting = self._waiting[loop]
        if not waiting:
            del self._waiting[loop]
            return
        loop.call_later(self._timeout_s / _LOOKS_A_TIMEOUT, self._look, loop)
        began = loop.time() - self._timeout_s
        for job, put in waiting.items():  # in the order of their moments
            if put > began:
                break
            self._expire(job)

    def _expire(self, job: Job) -> None:
        """Called on the loop when a job has waited for too long."""
        if job.committed is None or job.committed.done():
            return
        if not job.must_stay:
            with self._queue.lock:
                if not job.give_up():
                    return
        job.committed.set_exception(make_refusal(self._timeout_s, self.failure))

    # --- the writer's thread -----------------------------------------------------------------------

    def _write(self) -> None:
        while (first := self._queue.take()) is not None:
            self._queue.gather()
            batch = [first]
            if not self._commit_with_retries(batch):
                return
            entries = sum(len(job.entries) for job in batch)
            self._queue.expect(entries, MAX_ENTRIES_PER_COMMIT)

    def _commit_with_retries(self, batch: list[Job], *, is_alone: bool = False) -> bool:
        pause = _RETRY_FIRST_S
        while True:
            try:
                self._commit(batch, is_alone=is_alone)
            except StoreError as error:
                if error.is_permanent:
                    return self._isolate(batch, error)
                if self.failure is None:
                    _log.error("%s; records wait in memory and are tried again", error)
                self.failure = str(error)
                if self._closing.wait(pause) and pause >= _RETRY_LAST_S:
                    self._give_up(batch, error)
                    return False
                pause = min(2 * pause, _RETRY_LAST_S)
            except Exception as error:  # noqa: BLE001 - the thread must live: one bad record is left out
                return self._isolate(batch, error)
            else:
                if self.failure is not None:
                    _log.warning("audit records are stored again")
                    self.failure = None
                self._settle(batch, None)
                self._indexer.look(self._chain.number)
                return True

    def _commit(self, batch: list[Job], *, is_alone: bool) -> None:
        if self.failure is not None and not self._store.is_in_place():
            raise StoreError("the database was replaced or removed; restart the server")
        try:
            with self._store.turn() as connection:
                if not is_alone:
                    self._queue.take_more(batch, MAX_ENTRIES_PER_COMMIT)
                self._recognise(connection)
                jobs = self._start(batch)
                if jobs:
                    self._store_jobs(connection, jobs)
                elif self.failure is not None:
                    touch(connection)  # all were withdrawn; that it works again must be seen
        except BaseException:
            self._end(batch, is_stored=False)
            raise
        self._attempt = None
        self._end(batch, is_stored=True)

    def _recognise(self, connection: Connection) -> None:
        """See whether the last attempt was stored after all, though it was said to have failed."""
        attempt, self._attempt = self._attempt, None
        if attempt is None or attempt.appended.last < attempt.appended.first:
            return  # without entries there is nothing to know it by, and nothing that may not be redone
        stored = connection.execute(
            "SELECT hash FROM record WHERE id = ?", (attempt.appended.last,)
        ).get
        if stored == attempt.appended.hash:
            with self._queue.lock:
                for job, result in attempt.results:
                    job.recognise(result)

    def _start(self, batch: list[Job]) -> list[Job]:
        with self._queue.lock:
            return [job for job in batch if job.start()]

    def _end(self, batch: list[Job], *, is_stored: bool) -> None:
        with self._queue.lock:
            for job in batch:
                job.end(is_stored=is_stored)

    def _store_jobs(self, connection: Connection, jobs: list[Job]) -> None:
        entries = [entry for job in jobs for entry in job.entries]
        is_plain = all(job.claim is None and job.request is None for job in jobs)
        # One statement is a transaction too, and one after which the thread waits but once for the
        # interpreter.
        appended = self._chain.append_known(connection, entries) if is_plain else None
        if appended is not None:
            results = _results_from(jobs, appended.first)
            self._attempt = Attempt(results, appended)
        else:
            with transacted(connection):
                results, appended = self._write_jobs(connection, jobs)
                self._attempt = Attempt(results, appended)
        self._chain.committed(appended)
        for job, result in results:
            job.result = result

    def _write_jobs(
        self, connection: Connection, jobs: list[Job]
    ) -> tuple[list[tuple[Job, Committed | Claimed]], Appended]:
        requests: dict[Job, int | Claimed | None] = {}
        for job in jobs:
            if job.claim is not None:
                requests[job] = claim(connection, job.claim, self.worker)
            else:
                requests[job] = job.request
        entries: list[Entry] = []
        places: dict[Job, int] = {}
        for job in jobs:
            if not isinstance(requests[job], Claimed):
                places[job] = len(entries)
                entries += job.entries
        appended = self._chain.append(connection, entries)
        results: list[tuple[Job, Committed | Claimed]] = []
        for job in jobs:
            request = requests[job]
            if isinstance(request, Claimed):
                results.append((job, request))
                continue
            first = appended.first + places[job]
            results.append((job, Committed(first, request)))
            if request is not None:
                enlist(connection, request, job.entries, first)
                if job.is_withdrawal:
                    withdraw(connection, request)
                elif job.is_last:
                    finish(connection, request)
        return results, appended

    def _give_up(self, batch: list[Job], error: StoreError) -> None:
        self._queue.take_more(batch, math.inf)
        lost = sum(len(job.entries) for job in batch if job.state is not State.WITHDRAWN)
        if lost:
            _log.critical(
                "%d audit records are lost; what they tell of will read `interrupted`: %s",
                lost,
                error,
            )
        self._settle(batch, AuditUnavailable(str(error)))

    def _isolate(self, batch: list[Job], error: Exception) -> bool:
        if len(batch) > 1:
            went_on = [self._commit_with_retries([job], is_alone=True) for job in batch]
            return all(went_on)  # asked for only now: each must be settled
        _log.critical("an audit record cannot be stored at all: %r", error)
        self._settle(batch, AuditUnavailable("the audit record cannot be stored"))
        return True

    def _settle(self, batch: list[Job], error: AuditUnavailable | None) -> None:
        waiting: dict[asyncio.AbstractEventLoop, list[Job]] = {}
        with self._queue.lock:
            self._queue.entries -= sum(len(job.entries) for job in batch)
            reversals = [reversal for job in batch if (reversal := job.settle()) is not None]
        for reversal in reversals:
            self._queue.put(reversal)
        for job in batch:
            if job.loop is not None:
                waiting.setdefault(job.loop, []).append(job)
        for loop, jobs in waiting.items():
            try:
                loop.call_soon_threadsafe(resolve, jobs, error)
            except RuntimeError:  # that loop has ended: nobody waits any more
                continue


def _results_from(jobs: list[Job], number: int) -> list[tuple[Job, Committed | Claimed]]:
    """Where the entries of jobs are, of which the first one has this number."""
    results: list[tuple[Job, Committed | Claimed]] = []
    for job in jobs:
        results.append((job, Committed(number, None)))
        number += len(job.entries)
    return results


def _register(store: Store) -> int:
    """The number of a new writer, which it holds until it is gone."""
    with store.transaction() as connection:
        connection.execute(
            "INSERT INTO worker (pid, started_us) VALUES (?, ?)", (os.getpid(), now_us())
        )
        number = connection.last_insert_rowid()
        # Within the turn: nobody else may see it without it being held.
        store.hold(number)
    return number
