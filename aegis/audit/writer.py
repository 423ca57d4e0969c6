"""The write side: links are queued, committed in groups by one thread, and then acknowledged."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum, auto
from queue import Empty, SimpleQueue
from typing import Any

from aegis.audit.chain import Appended, ChainEnd
from aegis.audit.entries import AuditRecord, Entry, Outcome
from aegis.audit.idempotency import Claim, Claimed, claim, enlist, finish, withdraw
from aegis.audit.index import Indexer
from aegis.audit.members import ResultStatus
from aegis.audit.recovery import chain_what_is_older, interrupt_lost
from aegis.errors import AuditUnavailable, StoreError
from aegis.store.database import Store
from aegis.store.schema import touch
from aegis.store.sql import Connection, transacted
from aegis.timestamps import now_us

__all__ = ["AuditLog", "Committed"]

_log = logging.getLogger("aegis.audit")

MOST_LINKS_A_COMMIT = 1_000
LONGEST_GATHERING_S = 0.002
"""How long a commit waits for as many as came to the last one and those after it.

While they come it is not idle: their requests take the time, and one commit for all of them saves more.
"""
_RETRY_FIRST_S, _RETRY_LAST_S = 0.05, 1.0
_LOOKS_A_TIMEOUT = 8
_LOOK_AGAIN_S = 0.01


@dataclass(slots=True)
class Committed:
    """Links that are stored.

    Attributes:
        first: The number of the first one; the others follow it.
        request: The number of the request that was claimed with them.
    """

    first: int
    request: int | None


class _State(Enum):
    WAITING = auto()
    STORING = auto()
    """It can no longer be withdrawn."""
    LATE = auto()
    """It is being stored, and nobody waits any more: if it is stored, it is taken back."""
    OVERDUE = auto()
    """It is being stored and cannot be taken back: its caller waits for that, and no longer."""
    ASTRAY = auto()
    """It is stored, in a file that is no longer in its place: nobody knows whether it comes back."""
    WITHDRAWN = auto()
    STORED = auto()


# A member is looked up each time that it is named.
_WAITING, _STORING, _LATE, _OVERDUE, _ASTRAY, _WITHDRAWN, _STORED = _State


@dataclass(slots=True, eq=False)
class _Job:
    """Links that are committed together, and who waits for that; the lock guards its state."""

    links: Sequence[Entry]
    loop: asyncio.AbstractEventLoop | None = None
    committed: asyncio.Future[Any] | None = None
    claim: Claim | None = None
    request: int | None = None
    is_last: bool = False
    must_stay: bool = True
    is_withdrawal: bool = False
    state: _State = _WAITING
    result: Committed | Claimed | None = None


@dataclass(slots=True)
class _Attempt:
    """What a commit was to store, to know it again where it is unclear whether it did."""

    results: list[tuple[_Job, Committed | Claimed]]
    appended: Appended


class AuditLog:
    """Writes the audit of one database.

    Invariant: `append` returns after the commit, in the order of the calls. What it could not
    commit in time is either withdrawn, or tried until it is stored or the log is closed.

    Args:
        store: Where the records are.
        most_queued: How many links may wait.
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
        self._queue: SimpleQueue[_Job | None] = SimpleQueue()
        self._queued = 0
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._chain = ChainEnd(store)
        self._attempt: _Attempt | None = None
        self._waiting: dict[asyncio.AbstractEventLoop, dict[_Job, float]] = {}
        self._expected = 0
        self._gathered = threading.Lock()
        self._gathered.acquire()
        self._is_gathering = False
        self.failure: str | None = None
        with store.turn() as connection:
            chain_what_is_older(connection, self._chain)
        self.worker = _registered(store)
        interrupt_lost(store, self._chain)
        self._probing = ThreadPoolExecutor(1, "aegis-audit-probe")
        self._indexer = Indexer(store)
        self._writer = threading.Thread(target=self._write, name="aegis-audit", daemon=True)
        self._writer.start()

    @property
    def queued(self) -> int:
        """How many links wait for their commit."""
        return self._queued

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
        if self._queued >= self._most_queued:
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
        links: Sequence[Entry],
        *,
        claim: Claim | None = None,
        request: int | None = None,
        is_last: bool = False,
        must_stay: bool = False,
    ) -> Committed | Claimed:
        """Store links together and wait until they are committed.

        Args:
            links: Records, or outcomes of earlier ones.
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
            if self._queued >= self._most_queued:
                await self._space(loop)
        committed: asyncio.Future[Committed | Claimed] = loop.create_future()
        job = _Job(links, loop, committed, claim, request, is_last, must_stay)
        self._put(job)
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
        self._put(_Job((), request=request, is_last=True))

    def close(self, timeout_s: float = 10.0) -> None:
        """Store what waits, for at most `timeout_s`, and stop."""
        with self._lock:  # one end only: the writer takes what stands behind an end first
            is_first = not self._closing.is_set()
            self._closing.set()
        if is_first:
            self._queue.put(None)
        self._writer.join(timeout_s)
        self._indexer.close()
        self._probing.shutdown(wait=True)

    def _full(self) -> str:
        return f"{self._queued} audit records wait to be written; try again"

    async def _space(self, loop: asyncio.AbstractEventLoop) -> None:
        deadline = loop.time() + self._timeout_s
        while self._queued >= self._most_queued:
            if loop.time() > deadline:
                raise AuditUnavailable(self._full())
            await asyncio.sleep(_LOOK_AGAIN_S)

    def _put(self, job: _Job) -> None:
        with self._lock:
            self._queued += len(job.links)
            if self._is_gathering and self._queued >= self._expected:
                self._is_gathering = False
                self._gathered.release()
        self._queue.put(job)

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

    def _expire(self, job: _Job) -> None:
        """Called on the loop when a job has waited for too long."""
        if job.committed is None or job.committed.done():
            return
        if not job.must_stay:
            with self._lock:
                match job.state:
                    case _State.WAITING:
                        job.state = _State.WITHDRAWN
                    case _State.STORING | _State.ASTRAY if _may_be_taken_back(job):
                        job.state = _State.LATE
                    case _State.STORING:
                        job.state = _State.OVERDUE
                        return
                    case _State.WITHDRAWN | _State.ASTRAY:  # its commit has failed, or is lost
                        pass
                    case _:
                        return  # it is stored: the loop is about to be told
        because = f": {self.failure}" if self.failure else ""
        said = f"the audit record was not committed within {self._timeout_s:g} s{because}"
        job.committed.set_exception(AuditUnavailable(said))

    # --- the writer's thread -----------------------------------------------------------------------

    def _write(self) -> None:
        while (first := self._next()) is not None:
            self._gather()
            batch = [first]
            if not self._commit_with_retries(batch):
                return
            links = sum(len(job.links) for job in batch)
            self._expected = min(links + self._queued, MOST_LINKS_A_COMMIT)

    def _next(self) -> _Job | None:
        while (job := self._queue.get()) is None and not self._queue.empty():
            self._queue.put(None)  # what came after the end is stored as well
        return job

    def _gather(self) -> None:
        """Let those come who came to the last commit too: one for many costs less than one each."""
        with self._lock:
            if self._queued >= self._expected:
                return
            self._is_gathering = True
        if self._gathered.acquire(timeout=LONGEST_GATHERING_S):
            return
        with self._lock:
            if not self._is_gathering:
                self._gathered.acquire()  # it was released just now
            self._is_gathering = False

    def _commit_with_retries(self, batch: list[_Job], *, is_alone: bool = False) -> bool:
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

    def _commit(self, batch: list[_Job], *, is_alone: bool) -> None:
        if self.failure is not None and not self._store.is_in_place():
            raise StoreError("the database was replaced or removed; restart the server")
        try:
            with self._store.turn() as connection:
                if not is_alone:
                    self._collect(batch, MOST_LINKS_A_COMMIT)
                self._recognise(connection)
                jobs = self._begin(batch)
                if jobs:
                    self._store_jobs(connection, jobs)
                elif self.failure is not None:
                    touch(connection)  # all were withdrawn; that it works again must be seen
        except BaseException:
            self._end(batch, is_stored=False)
            raise
        self._attempt = None
        self._end(batch, is_stored=True)

    def _collect(self, batch: list[_Job], most_links: float) -> None:
        """Take who came while the turn was waited for."""
        links = sum(len(job.links) for job in batch)
        while links < most_links:
            try:
                job = self._queue.get_nowait()
            except Empty:
                break
            if job is None:
                is_end = self._queue.empty()
                self._queue.put(None)
                if is_end:
                    break
                continue
            batch.append(job)
            links += len(job.links)

    def _recognise(self, connection: Connection) -> None:
        """See whether the last attempt was stored after all, though it was said to have failed."""
        attempt, self._attempt = self._attempt, None
        if attempt is None or attempt.appended.last < attempt.appended.first:
            return  # without links there is nothing to know it by, and nothing that may not be redone
        stored = connection.execute(
            "SELECT hash FROM record WHERE id = ?", (attempt.appended.last,)
        ).get
        if stored == attempt.appended.hash:
            with self._lock:
                for job, result in attempt.results:
                    job.result = result
                    job.state = _LATE if job.state in (_WITHDRAWN, _LATE) else _STORING

    def _begin(self, batch: list[_Job]) -> list[_Job]:
        with self._lock:
            jobs = [job for job in batch if job.state is _WAITING]
            for job in jobs:
                job.state = _STORING
        return jobs

    def _end(self, batch: list[_Job], *, is_stored: bool) -> None:
        with self._lock:
            for job in batch:
                if is_stored:
                    continue
                if job.result is not None:
                    job.state = _LATE if job.state is _LATE else _ASTRAY
                elif job.state is _STORING:
                    job.state = _WAITING
                elif job.state in (_LATE, _OVERDUE):
                    job.state = _WITHDRAWN

    def _store_jobs(self, connection: Connection, jobs: list[_Job]) -> None:
        links = [link for job in jobs for link in job.links]
        is_plain = all(job.claim is None and job.request is None for job in jobs)
        # One statement is a transaction too, and one after which the thread waits but once for the
        # interpreter.
        appended = self._chain.append_known(connection, links) if is_plain else None
        if appended is not None:
            results = _placed(jobs, appended.first)
            self._attempt = _Attempt(results, appended)
        else:
            with transacted(connection):
                results, appended = self._write_jobs(connection, jobs)
                self._attempt = _Attempt(results, appended)
        self._chain.committed(appended)
        for job, result in results:
            job.result = result

    def _write_jobs(
        self, connection: Connection, jobs: list[_Job]
    ) -> tuple[list[tuple[_Job, Committed | Claimed]], Appended]:
        requests: dict[_Job, int | Claimed | None] = {}
        for job in jobs:
            if job.claim is not None:
                requests[job] = claim(connection, job.claim, self.worker)
            else:
                requests[job] = job.request
        links: list[Entry] = []
        places: dict[_Job, int] = {}
        for job in jobs:
            if not isinstance(requests[job], Claimed):
                places[job] = len(links)
                links += job.links
        appended = self._chain.append(connection, links)
        results: list[tuple[_Job, Committed | Claimed]] = []
        for job in jobs:
            request = requests[job]
            if isinstance(request, Claimed):
                results.append((job, request))
                continue
            first = appended.first + places[job]
            results.append((job, Committed(first, request)))
            if request is not None:
                enlist(connection, request, job.links, first)
                if job.is_withdrawal:
                    withdraw(connection, request)
                elif job.is_last:
                    finish(connection, request)
        return results, appended

    def _give_up(self, batch: list[_Job], error: StoreError) -> None:
        self._collect(batch, math.inf)
        lost = sum(len(job.links) for job in batch if job.state is not _WITHDRAWN)
        if lost:
            _log.critical(
                "%d audit records are lost; what they tell of will read `interrupted`: %s",
                lost,
                error,
            )
        self._settle(batch, AuditUnavailable(str(error)))

    def _isolate(self, batch: list[_Job], error: Exception) -> bool:
        if len(batch) > 1:
            went_on = [self._commit_with_retries([job], is_alone=True) for job in batch]
            return all(went_on)  # asked for only now: each must be settled
        _log.critical("an audit record cannot be stored at all: %r", error)
        self._settle(batch, AuditUnavailable("the audit record cannot be stored"))
        return True

    def _settle(self, batch: list[_Job], error: AuditUnavailable | None) -> None:
        told: dict[asyncio.AbstractEventLoop, list[_Job]] = {}
        with self._lock:
            self._queued -= sum(len(job.links) for job in batch)
            for job in batch:
                if job.state is _LATE and job.result is not None:
                    self._take_back(job)
                job.state = _STORED
        for job in batch:
            if job.loop is not None:
                told.setdefault(job.loop, []).append(job)
        for loop, jobs in told.items():
            try:
                loop.call_soon_threadsafe(_resolve, jobs, error)
            except RuntimeError:  # that loop has ended: nobody waits any more
                continue

    def _take_back(self, job: _Job) -> None:
        """Say of intents that were committed after their caller was refused that nothing was done."""
        if not isinstance(job.result, Committed):
            return
        skipped = [
            Outcome(now_us(), number, ResultStatus.SKIPPED, None, _TOO_LATE)
            for number, link in enumerate(job.links, job.result.first)
            if _is_begun(link)
        ]
        # Of a request whose beginning was refused nothing was done: it may be made again.
        is_withdrawal = job.claim is not None and not job.is_last
        if skipped or job.result.request is not None:
            self._queued += len(skipped)
            self._queue.put(
                _Job(
                    skipped,
                    request=job.result.request,
                    is_last=True,
                    is_withdrawal=is_withdrawal,
                )
            )


_TOO_LATE = "not executed: its record was committed too late"


def _may_be_taken_back(job: _Job) -> bool:
    """Whether an outcome can still say of all links that nothing was done."""
    return all(_is_begun(link) for link in job.links)


def _is_begun(entry: Entry) -> bool:
    return isinstance(entry, AuditRecord) and entry.result_status is ResultStatus.STARTED


def _placed(jobs: list[_Job], number: int) -> list[tuple[_Job, Committed | Claimed]]:
    """Where the links of jobs are, of which the first one has this number."""
    results: list[tuple[_Job, Committed | Claimed]] = []
    for job in jobs:
        results.append((job, Committed(number, None)))
        number += len(job.links)
    return results


def _resolve(jobs: list[_Job], error: AuditUnavailable | None) -> None:
    for job in jobs:
        if job.committed is None or job.committed.done():
            continue
        if error is None:
            job.committed.set_result(job.result)
        else:
            job.committed.set_exception(error)


def _registered(store: Store) -> int:
    """The number of a new writer, which it holds until it is gone."""
    with store.transaction() as connection:
        connection.execute(
            "INSERT INTO worker (pid, started_us) VALUES (?, ?)", (os.getpid(), now_us())
        )
        number = connection.last_insert_rowid()
        # Within the turn: nobody else may see it without it being held.
        store.hold(number)
    return number
