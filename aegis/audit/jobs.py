"""Entries on their way to the writer: what state they are in, and whether they can be withdrawn."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from aegis.audit.chain import Appended
from aegis.audit.entries import AuditRecord, Entry, Outcome
from aegis.audit.idempotency import Claim, Claimed
from aegis.audit.members import ResultStatus
from aegis.errors import AuditUnavailable
from aegis.timestamps import now_us

__all__ = ["Attempt", "Committed", "Job", "State", "make_refusal", "resolve"]


@dataclass(slots=True)
class Committed:
    """Entries that are stored.

    Attributes:
        first: The number of the first one; the others follow it.
        request: The number of the request that was claimed with them.
    """

    first: int
    request: int | None


class State(Enum):
    """How far a job is; the queue's lock guards it."""

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
_WAITING, _STORING, _LATE, _OVERDUE, _ASTRAY, _WITHDRAWN, _STORED = State


@dataclass(slots=True, eq=False)
class Job:
    """Entries that are committed together, and who waits for that.

    INVARIANT: callers of a method that reads or changes the state hold the queue's lock.
    """

    entries: Sequence[Entry]
    loop: asyncio.AbstractEventLoop | None = None
    committed: asyncio.Future[Any] | None = None
    claim: Claim | None = None
    request: int | None = None
    is_last: bool = False
    must_stay: bool = True
    is_withdrawal: bool = False
    state: State = _WAITING
    result: Committed | Claimed | None = None

    def start(self) -> bool:
        """Be stored from now on; False: it was withdrawn, or is stored already."""
        if self.state is not _WAITING:
            return False
        self.state = _STORING
        return True

    def end(self, *, is_stored: bool) -> None:
        """Be stored no longer: wait for the next attempt, unless it was stored."""
        if is_stored:
            return
        if self.result is not None:
            self.state = _LATE if self.state is _LATE else _ASTRAY
        elif self.state is _STORING:
            self.state = _WAITING
        elif self.state in (_LATE, _OVERDUE):
            self.state = _WITHDRAWN

    def recognise(self, result: Committed | Claimed) -> None:
        """Have been stored by an attempt that was taken for a failed one."""
        self.result = result
        self.state = _LATE if self.state in (_WITHDRAWN, _LATE) else _STORING

    def give_up(self) -> bool:
        """Let its caller wait no longer, if that is possible; False: the caller has to."""
        match self.state:
            case State.WAITING:
                self.state = _WITHDRAWN
            case State.STORING | State.ASTRAY if self._may_be_taken_back():
                self.state = _LATE
            case State.STORING:
                self.state = _OVERDUE
                return False
            case State.WITHDRAWN | State.ASTRAY:  # its commit has failed, or is lost
                pass
            case _:
                return False  # it is stored: the loop is about to hear of it
        return True

    def settle(self) -> Job | None:
        """Have ended; a job that takes it back, where its caller was refused meanwhile."""
        is_late = self.state is _LATE and self.result is not None
        self.state = _STORED
        return self._taken_back() if is_late else None

    def _may_be_taken_back(self) -> bool:
        """Whether an outcome can still say of all entries that nothing was done."""
        return all(_is_unfinished(entry) for entry in self.entries)

    def _taken_back(self) -> Job | None:
        """Says of intents that were committed after their caller was refused that nothing was done."""
        if not isinstance(self.result, Committed):
            return None
        skipped = [
            Outcome(now_us(), number, ResultStatus.SKIPPED, None, _TOO_LATE)
            for number, entry in enumerate(self.entries, self.result.first)
            if _is_unfinished(entry)
        ]
        if not skipped and self.result.request is None:
            return None
        # Of a request whose start was refused nothing was done: it may be made again.
        is_withdrawal = self.claim is not None and not self.is_last
        return Job(skipped, request=self.result.request, is_last=True, is_withdrawal=is_withdrawal)


_TOO_LATE = "not executed: its record was committed too late"


@dataclass(slots=True)
class Attempt:
    """What a commit was to store, to know it again where it is unclear whether it did."""

    results: list[tuple[Job, Committed | Claimed]]
    appended: Appended


def _is_unfinished(entry: Entry) -> bool:
    return isinstance(entry, AuditRecord) and entry.result_status is ResultStatus.STARTED


def make_refusal(timeout_s: float, failure: str | None) -> AuditUnavailable:
    """What a caller gets whose entries were not committed in time."""
    because = f": {failure}" if failure else ""
    return AuditUnavailable(f"the audit record was not committed within {timeout_s:g} s{because}")


def resolve(jobs: Iterable[Job], error: AuditUnavailable | None) -> None:
    """Let those who wait for jobs go on; called on their loop."""
    for job in jobs:
        if job.committed is None or job.committed.done():
            continue
        if error is None:
            job.committed.set_result(job.result)
        else:
            job.committed.set_exception(error)
