"""Policy, audit and executor of one process, opened and closed as a whole."""

from __future__ import annotations

import asyncio
import logging
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Protocol

from aegis.audit import AuditLog, AuditReader
from aegis.audit.journal import Journal
from aegis.audit.signing import HeadSigner
from aegis.auth.ring import KeyRing
from aegis.config import Settings
from aegis.errors import ConfigError, NotFound, NotReady
from aegis.execution.approvals import AutoApprover
from aegis.execution.enforcer import Enforcer
from aegis.execution.executors import Executor, GuardedExecutor
from aegis.execution.records import Recorder
from aegis.policy.compiled_cache import PolicyText
from aegis.policy.decision_point import Decider, DecisionPoint
from aegis.policy.file_source import PolicyFile
from aegis.policy.history import PolicyHistory
from aegis.policy.rollout import InForce, PolicyVersions
from aegis.redaction import Redaction
from aegis.server.api.operators import Change
from aegis.store.database import Store

__all__ = ["Service", "Workers"]

_log = logging.getLogger("aegis.server")


class Workers(Protocol):
    """What a worker of `aegis serve` knows of all of them.

    Attributes:
        workers: How many there are to be.
    """

    workers: int

    @property
    def is_stopping(self) -> bool:
        """Whether the server was told to stop."""

    def missing(self) -> int:
        """How many cannot start, or take long to."""


@dataclass(frozen=True, slots=True)
class _Open:
    """What an open service holds, and how all of it is closed again."""

    versions: PolicyVersions
    policy_file: PolicyFile | None
    audit: AuditLog
    reader: AuditReader
    enforcer: Enforcer
    closing: ExitStack


class Service:
    """Policy, audit and executor of one process: closed, or open as a whole."""

    def __init__(
        self,
        settings: Settings,
        file: PolicyText | None,
        executor: Executor,
        session_id: str,
        server: Workers | None,
        keys: KeyRing,
    ) -> None:
        self._settings = settings
        self._file = file
        self._executor = executor
        self._session_id = session_id
        self._server = server
        self._keys = keys
        self._parts: _Open | None = None
        self._draining: asyncio.Task[None] | None = None
        self._signer = None
        if settings.audit_signing_key is not None:
            self._signer = HeadSigner(settings.audit_signing_key)
        self.decisions = DecisionPoint()
        self.decider = Decider(settings.condition_budget)

    async def open(self) -> None:
        """Open the database and all that works on it, or leave nothing open."""
        settings = self._settings
        with ExitStack() as opened:
            store = Store(settings.audit_db, durability=settings.audit_durability)
            opened.callback(store.close)
            versions = PolicyVersions(store, Journal(store))
            opened.callback(versions.close)
            snapshot = versions.start(self._file)
            audit = AuditLog(
                store, most_queued=settings.max_queued_records, timeout_s=settings.audit_timeout
            )
            opened.callback(audit.close)
            reader = AuditReader(store, signer=self._signer)
            opened.callback(reader.close)
            redaction = Redaction(settings.redact, settings.redact_except)
            enforcer = Enforcer(
                audit,
                reader,
                GuardedExecutor(
                    self._executor,
                    timeout_s=settings.execute_timeout,
                    max_data_bytes=settings.max_result_bytes,
                    redaction=redaction,
                ),
                approver=AutoApprover(),
                recorder=Recorder(
                    session_id=self._session_id, worker=audit.worker, redaction=redaction
                ),
            )
            try:
                await enforcer.setup()
            except (Exception, SystemExit) as error:
                raise ConfigError(f"the executor's setup failed: {error}") from error
            versions.follow(snapshot, self.decisions.switch, watches=settings.watch)
            policy_file = None
            if settings.policy is not None:
                policy_file = PolicyFile(settings.policy, versions)
                opened.callback(policy_file.stop)
                if settings.watch:
                    policy_file.watch()
            self._parts = _Open(versions, policy_file, audit, reader, enforcer, opened.pop_all())
        self.decisions.begin(snapshot, versions.newest, versions.load_newest, versions.renew)

    def stop(self) -> None:
        """Begin no more executions; give those that run their time."""
        if self._parts is not None and self._draining is None:
            drain = self._parts.enforcer.drain(self._settings.drain_timeout)
            self._draining = asyncio.create_task(drain)

    async def close(self) -> None:
        """Wait for what is executed, within its time, and close everything."""
        self.stop()
        parts, draining = self._parts, self._draining
        self._parts = self._draining = None
        self.decisions.end()
        self.decider.close()
        if parts is None or draining is None:
            return
        with parts.closing:
            try:
                await draining
                await parts.enforcer.teardown()
            except Exception:  # noqa: BLE001 - foreign code; the records must be written all the same
                _log.exception("the executor could not be stopped cleanly")

    @property
    def _open(self) -> _Open:
        if self._parts is None:
            raise NotReady("the server is stopping")
        return self._parts

    def put(self, text: PolicyText, change: Change) -> InForce:
        """Put a policy into force everywhere; called in a thread."""
        return self._open.versions.put(
            text, key_name=change.key_name, note=change.note, is_expected=change.is_expected
        )

    def rollback(self, version: int, change: Change) -> InForce:
        """Put an earlier version into force again; called in a thread."""
        return self._open.versions.rollback(
            version, key_name=change.key_name, note=change.note, is_expected=change.is_expected
        )

    def reload(self) -> InForce:
        """Load the policy file again; called in a thread."""
        policy_file = self._open.policy_file
        if policy_file is None:
            raise NotFound("this server was started without a policy file; put a policy instead")
        return policy_file.reload()

    def reload_files(self) -> None:
        """Load the policy file again, and say what becomes of it; called in a thread.

        The keys file needs no word: every process looks at it all the time.
        """
        parts = self._parts
        if parts is not None and parts.policy_file is not None:
            parts.policy_file.reload_and_log()

    def notices(self) -> dict[str, object]:
        """What somebody should know although the server is ready, as members of a JSON object.

        Anyone may read them: they name no key and no rule, and nothing that an executor says.

        Raises:
            NotReady: The server was told to stop.
        """
        server = self._server
        if server is not None and server.is_stopping:
            raise NotReady("the server is stopping")
        notices: dict[str, object] = {}
        failures, why = self._open.versions.file_failures()
        if failures:
            notices["policy_file"] = {"failures": failures, "error": why}
        failures, why = self._keys.failures()
        if failures:
            notices["keys_file"] = {"failures": failures, "error": why}
        if server is not None and (missing := server.missing()):
            notices["workers"] = {
                "running": server.workers - missing,
                "expected": server.workers,
                "error": "a worker cannot start and is tried again; the log says why",
            }
        return notices

    def history(self) -> PolicyHistory:
        """The versions of the policy."""
        return self._open.versions.history

    def enforcer(self) -> Enforcer:
        """What executes actions.

        Raises:
            NotReady: The server is stopping.
        """
        if self._draining is not None:
            raise NotReady("the server is stopping")
        return self._open.enforcer

    def audit(self) -> AuditLog:
        """The writer of the audit."""
        return self._open.audit

    def reader(self) -> AuditReader:
        """The reader of the audit."""
        return self._open.reader
