"""The audit: records committed in groups before they are acknowledged, and read in pages."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from queue import Empty, SimpleQueue
from typing import Any

from aegis.errors import AuditUnavailable, StoreError
from aegis.store import Connection, Store, insert_many, word_ids
from aegis_core import Approval, RiskLevel

__all__ = ["AuditFilter", "AuditLog", "AuditRecord", "ResultStatus"]

_log = logging.getLogger("aegis.audit")

MOST_ROWS_A_COMMIT = 1_000
MOST_ROWS_A_PAGE = 500
LARGEST_PAGE_BYTES = 4 * 1024 * 1024
MOST_WORDS_REMEMBERED = 100_000
_RETRY_FIRST_S, _RETRY_LAST_S = 0.05, 1.0
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class ResultStatus(StrEnum):
    """What became of an action."""

    SUCCESS = "success"
    FAILED = "failed"
    BLOCKED = "blocked"
    DENIED = "denied"
    SKIPPED = "skipped"
    STARTED = "started"
    INTERRUPTED = "interrupted"


# INVARIANT: these numbers are in every file; new ones are only added at the end.
_STATUS_CODES = {status: code for code, status in enumerate(ResultStatus, 1)}
_STATUSES = {code: status.value for status, code in _STATUS_CODES.items()}
_APPROVAL_CODES = {Approval.AUTO: 1, Approval.APPROVE: 2, Approval.BLOCK: 3}
_APPROVALS = {code: approval.value for approval, code in _APPROVAL_CODES.items()}


@dataclass(slots=True)
class AuditRecord:
    """What is kept of an action. Texts that repeat are stored once, as words.

    Attributes:
        timestamp_us: Microseconds since the epoch.
        action_params: JSON, redacted.
        result_data: JSON, redacted; None where there is none.
        key_name: Whose key asked for it; None where there are no keys.
    """

    timestamp_us: int
    session_id: str
    action_type: str
    action_target: str
    action_params: str
    action_desc: str | None
    risk_level: RiskLevel
    approval: Approval
    matched_rule: str
    human_decision: str | None
    result_status: ResultStatus
    result_data: str | None
    result_error: str | None
    agent_id: str | None
    parent_agent_id: str | None
    chain_id: str | None
    chain_depth: int
    policy_version: int
    key_name: str | None = None

    def words(self) -> tuple[str | None, ...]:
        """The texts that are stored as words."""
        return (
            self.session_id,
            self.action_type,
            self.matched_rule,
            self.human_decision,
            self.agent_id,
            self.parent_agent_id,
            self.chain_id,
            self.key_name,
        )

    def row(self, words: dict[str | None, int | None]) -> tuple[str | int | None, ...]:
        """The record as the table has it, in the order of `_COLUMNS`."""
        return (
            self.timestamp_us,
            words[self.session_id],
            words[self.action_type],
            self.action_target,
            self.action_params,
            self.action_desc,
            int(self.risk_level),
            _APPROVAL_CODES[self.approval],
            words[self.matched_rule],
            words[self.human_decision],
            _STATUS_CODES[self.result_status],
            self.result_data,
            self.result_error,
            words[self.agent_id],
            words[self.parent_agent_id],
            words[self.chain_id],
            self.chain_depth,
            self.policy_version,
            words[self.key_name],
        )


_COLUMNS = (
    "record (timestamp_us, session, action_type, action_target, action_params, action_desc,"
    " risk_level, approval, matched_rule, human_decision, result_status, result_data, result_error,"
    " agent, parent_agent, chain, chain_depth, policy_version, key_name)"
)

_SELECT = """
SELECT r.id, session.text, r.timestamp_us, type.text, r.action_target, r.action_params,
    r.action_desc, r.risk_level, r.approval, rule.text, human.text, r.result_status, r.result_data,
    r.result_error, agent.text, parent.text, chain.text, r.chain_depth, r.policy_version,
    key_name.text
FROM record AS r
    JOIN word AS session ON session.id = r.session
    JOIN word AS type ON type.id = r.action_type
    JOIN word AS rule ON rule.id = r.matched_rule
    LEFT JOIN word AS human ON human.id = r.human_decision
    LEFT JOIN word AS agent ON agent.id = r.agent
    LEFT JOIN word AS parent ON parent.id = r.parent_agent
    LEFT JOIN word AS chain ON chain.id = r.chain
    LEFT JOIN word AS key_name ON key_name.id = r.key_name
"""

_MEMBERS = (
    "id", "session_id", "timestamp", "action_type", "action_target", "action_params", "action_desc",
    "risk_level", "approval", "matched_rule", "human_decision", "result_status", "result_data",
    "result_error", "agent_id", "parent_agent_id", "chain_id", "chain_depth", "policy_version",
    "key_name",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class AuditFilter:
    """Which records are asked for; None asks for any. Times are inclusive, ids exclusive."""

    session_id: str | None = None
    action_type: str | None = None
    risk_level: RiskLevel | None = None
    result_status: ResultStatus | None = None
    agent_id: str | None = None
    matched_rule: str | None = None
    since_us: int | None = None
    until_us: int | None = None
    after: int | None = None
    before: int | None = None
    limit: int | None = None

    def where(self) -> tuple[list[str], list[str | int]]:
        """The conditions and their bindings, without the limit."""
        clauses: list[str] = []
        bindings: list[str | int] = []
        for part in fields(self):
            value = getattr(self, part.name)
            if value is None or part.name == "limit":
                continue
            clauses.append(_CLAUSES[part.name])
            bindings.append(_STATUS_CODES[value] if isinstance(value, ResultStatus) else value)
        return clauses, bindings


_WORD = "(SELECT id FROM word WHERE text = ?)"
_CLAUSES = {
    "session_id": f"r.session = {_WORD}",
    "action_type": f"r.action_type = {_WORD}",
    "risk_level": "r.risk_level = ?",
    "result_status": "r.result_status = ?",
    "agent_id": f"r.agent = {_WORD}",
    "matched_rule": f"r.matched_rule = {_WORD}",
    "since_us": "r.timestamp_us >= ?",
    "until_us": "r.timestamp_us <= ?",
    "after": "r.id > ?",
    "before": "r.id < ?",
}


@dataclass(slots=True)
class _Waiting:
    """Records on their way to one commit, and who waits for it."""

    records: list[AuditRecord]
    loop: asyncio.AbstractEventLoop
    committed: asyncio.Future[None]


class AuditLog:
    """Writes and reads the records of one database.

    Invariant: `append` returns after the commit, in the order of the calls; a record once taken is
    tried until it is stored or the log is closed.

    Args:
        store: Where the records are.
        most_queued: How many records may wait.
        timeout_s: How long `append` waits for the commit.
    """

    def __init__(self, store: Store, *, most_queued: int, timeout_s: float) -> None:
        self._store = store
        self._most_queued = most_queued
        self._timeout_s = timeout_s
        self._queue: SimpleQueue[_Waiting | None] = SimpleQueue()
        self._queued = 0
        self._queued_lock = threading.Lock()
        self._words: dict[str | None, int | None] = {None: None}
        self._closing = threading.Event()
        self._readers = ThreadPoolExecutor(2, "aegis-audit-read")
        self._writer = threading.Thread(target=self._write, name="aegis-audit", daemon=True)
        self._writer.start()
        self.failure: str | None = None
        """Why records cannot be stored now; None: they can."""

    # --- writing ---------------------------------------------------------------------------------

    @property
    def queued(self) -> int:
        """How many records wait for their commit."""
        return self._queued

    def refuse_when_unavailable(self) -> None:
        """Say no before something is done that could not be recorded.

        Raises:
            AuditUnavailable: Records cannot be stored, or too many wait already.
        """
        if self._closing.is_set():
            raise AuditUnavailable("the server is stopping; ask another one")
        if self.failure is not None:
            raise AuditUnavailable(f"the audit cannot be written: {self.failure}")
        if not self._store.is_in_place():
            raise AuditUnavailable("the database was replaced or removed; restart the server")
        if self._queued >= self._most_queued:
            raise AuditUnavailable(f"{self._queued} audit records wait to be written; try again")

    async def probe(self) -> None:
        """See that a record could be written now.

        Raises:
            StoreError: It could not.
        """
        self.refuse_when_unavailable()
        await asyncio.get_running_loop().run_in_executor(self._readers, self._store.probe)

    async def append(self, records: list[AuditRecord]) -> None:
        """Store records and wait until they are committed.

        Raises:
            AuditUnavailable: They were not committed in time. They are still tried.
        """
        if not records:
            return
        loop = asyncio.get_running_loop()
        waiting = _Waiting(records, loop, loop.create_future())
        with self._queued_lock:
            self._queued += len(records)
        self._queue.put(waiting)
        done, _ = await asyncio.wait([waiting.committed], timeout=self._timeout_s)
        if not done:
            waiting.committed.add_done_callback(_retrieve)
            raise AuditUnavailable(
                f"the audit record was not committed within {self._timeout_s:g} s"
                f"{f': {self.failure}' if self.failure else ''}"
            )
        waiting.committed.result()

    def close(self, timeout_s: float = 10.0) -> None:
        """Store what waits, for at most `timeout_s`, and stop."""
        if not self._closing.is_set():
            self._closing.set()
            self._queue.put(None)
        self._writer.join(timeout_s)
        self._readers.shutdown(wait=True)

    def _write(self) -> None:
        while (first := self._queue.get()) is not None:
            batch = [first]
            if not self._commit_with_retries(batch):
                return

    def _commit_with_retries(self, batch: list[_Waiting]) -> bool:
        pause = _RETRY_FIRST_S
        while True:
            try:
                self._commit(batch)
            except StoreError as error:
                if error.is_permanent:
                    self._isolate(batch, error)
                    return True
                if self.failure is None:
                    _log.error("%s; records wait in memory and are tried again", error)
                self.failure = str(error)
                if self._closing.wait(pause) and pause >= _RETRY_LAST_S:
                    _log.critical("%d audit records are lost: %s", self._queued, error)
                    self._settle(batch, AuditUnavailable(str(error)))
                    return False
                pause = min(2 * pause, _RETRY_LAST_S)
            except Exception as error:  # noqa: BLE001 - the thread must live: one bad record is left out
                self._isolate(batch, error)
                return True
            else:
                if self.failure is not None:
                    _log.warning("audit records are stored again")
                    self.failure = None
                self._settle(batch, None)
                return True

    def _commit(self, batch: list[_Waiting]) -> None:
        new_words: dict[str | None, int | None] = {}
        with self._store.transaction() as connection:
            # After the lock was taken: whoever came while we waited for it is in this commit too.
            rows = sum(len(waiting.records) for waiting in batch)
            while rows < MOST_ROWS_A_COMMIT:
                try:
                    waiting = self._queue.get_nowait()
                except Empty:
                    break
                if waiting is None:
                    self._queue.put(None)
                    break
                batch.append(waiting)
                rows += len(waiting.records)
            records = [record for waiting in batch for record in waiting.records]
            new_words = self._new_words(connection, records)
            words = self._words | new_words if new_words else self._words
            insert_many(connection, _COLUMNS, [record.row(words) for record in records])
        self._remember(new_words)

    def _new_words(
        self, connection: Connection, records: list[AuditRecord]
    ) -> dict[str | None, int | None]:
        unknown = {word for record in records for word in record.words() if word not in self._words}
        return word_ids(connection, [word for word in unknown if word is not None])

    def _remember(self, words: dict[str | None, int | None]) -> None:
        # Bounded against clients that send new words for ever.
        if len(self._words) + len(words) > MOST_WORDS_REMEMBERED:
            self._words = {None: None}
        self._words.update(words)

    def _isolate(self, batch: list[_Waiting], error: Exception) -> None:
        if len(batch) > 1:
            for waiting in batch:
                self._commit_with_retries([waiting])
            return
        _log.critical("an audit record cannot be stored at all: %r", error)
        self._settle(batch, AuditUnavailable("the audit record cannot be stored"))

    def _settle(self, batch: list[_Waiting], error: AuditUnavailable | None) -> None:
        with self._queued_lock:
            self._queued -= sum(len(waiting.records) for waiting in batch)
        by_loop: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
        for waiting in batch:
            by_loop.setdefault(waiting.loop, []).append(waiting.committed)
        for loop, futures in by_loop.items():
            try:
                loop.call_soon_threadsafe(_resolve, futures, error)
            except RuntimeError:  # that loop has ended: nobody waits any more
                continue

    # --- reading ---------------------------------------------------------------------------------

    async def pages(self, wanted: AuditFilter) -> AsyncIterator[list[dict[str, Any]]]:
        """The records of a filter, oldest first, in pages of bounded size.

        What is added while the pages are read is not in them. No lock is held between pages.

        Raises:
            StoreError: The database cannot be read.
        """
        loop = asyncio.get_running_loop()
        first, last, left = await loop.run_in_executor(self._readers, self._range, wanted)
        while left is None or left > 0:
            page, is_last = await loop.run_in_executor(
                self._readers, self._page, wanted, first, last, left
            )
            if page:
                yield page
                first = page[-1]["id"] + 1
                left = None if left is None else left - len(page)
            if is_last:
                break

    def _range(self, wanted: AuditFilter) -> tuple[int, int, int | None]:
        """First and last id to look at, and how many records at most."""
        with self._store.reading() as connection:
            last = connection.execute("SELECT max(id) FROM record").get or 0
            if wanted.limit is None or wanted.after is not None:
                return 0, last, wanted.limit
            clauses, bindings = wanted.where()
            first = connection.execute(
                f"SELECT min(id) FROM (SELECT r.id FROM record AS r WHERE"
                f" {' AND '.join([*clauses, 'r.id <= ?'])} ORDER BY r.id DESC LIMIT ?)",
                (*bindings, last, wanted.limit),
            ).get
        return (0, 0, 0) if first is None else (first, last, wanted.limit)

    def _page(
        self, wanted: AuditFilter, first: int, last: int, left: int | None
    ) -> tuple[list[dict[str, Any]], bool]:
        clauses, bindings = wanted.where()
        rows = MOST_ROWS_A_PAGE if left is None else min(left, MOST_ROWS_A_PAGE)
        page: list[dict[str, Any]] = []
        size = 0
        with self._store.reading() as connection:
            cursor = connection.execute(
                f"{_SELECT} WHERE {' AND '.join([*clauses, 'r.id >= ?', 'r.id <= ?'])}"
                " ORDER BY r.id LIMIT ?",
                (*bindings, first, last, rows),
            )
            for row in cursor:
                page.append(_as_members(row))
                size += sum(len(value) for value in row if isinstance(value, str))
                if size > LARGEST_PAGE_BYTES:
                    cursor.close()
                    return page, False
        return page, len(page) < rows


def _as_members(row: tuple[Any, ...]) -> dict[str, Any]:
    members = dict(zip(_MEMBERS, row, strict=True))
    members["timestamp"] = timestamp_text(members["timestamp"])
    members["risk_level"] = RiskLevel(members["risk_level"]).name
    members["approval"] = _APPROVALS[members["approval"]]
    members["result_status"] = _STATUSES[members["result_status"]]
    return members


def _retrieve(future: asyncio.Future[None]) -> None:
    if not future.cancelled():
        future.exception()  # nobody waits for it any more


def _resolve(futures: list[asyncio.Future[None]], error: AuditUnavailable | None) -> None:
    for future in futures:
        if future.done():
            continue
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)


def timestamp_text(timestamp_us: int) -> str:
    """A time as records show it: RFC 3339 in UTC, with microseconds."""
    return (_EPOCH + timedelta(microseconds=timestamp_us)).isoformat(timespec="microseconds")


def now_us() -> int:
    """The time, in microseconds since the epoch."""
    return time.time_ns() // 1000
