"""The composition root: `create_app` builds the server; nothing else constructs its parts."""

from __future__ import annotations

import asyncio
import logging
import os
import uuid
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

from aegis.audit import AuditLog, AuditReader
from aegis.audit.journal import Journal
from aegis.audit.signing import HeadSigner
from aegis.auth.keys import KeyRing, Permission, environment_keys, read_keys
from aegis.config import (
    RESULT_BYTES,
    AuditDecisions,
    Durability,
    Settings,
    allowed_hosts_of,
    checked_key,
    keys_from,
    names_in,
)
from aegis.errors import ConfigError, NotFound, NotReady, shown
from aegis.execution.enforcer import Enforcer, Executor, NoOpExecutor
from aegis.host.memory import SharedBytes
from aegis.policy.compile_process import YAML_TYPES
from aegis.policy.compiled_cache import CompiledFiles, PolicyText, compiled
from aegis.policy.decision_point import Decider, DecisionPoint
from aegis.policy.file_source import PolicyFile, log_oddities
from aegis.policy.history import PolicyHistory
from aegis.policy.loader import LoadedPolicy, Policy, load_text, read_policy
from aegis.policy.rollout import InForce, PolicyVersions
from aegis.redaction import Redaction
from aegis.server.api.agents import Api
from aegis.server.api.operators import Admin, Change
from aegis.server.http.app import App
from aegis.server.http.gate import Gate
from aegis.server.http.kernel import Lifecycle, Route
from aegis.server.openapi import spec
from aegis.server.runner.state import ServerState
from aegis.store.database import Store
from aegis_core import DEFAULT_BUDGET

__all__ = ["build_app", "create_app", "load_policy_file", "policy_text_of"]

_log = logging.getLogger("aegis.server")

_Kind = TypeVar("_Kind", bound=StrEnum)

_JSON_TYPES = frozenset(("application/json", "text/json"))


def create_app(
    policy_path: str | Path | None = None,
    audit_db_path: str | Path | None = None,
    executor: Executor | None = None,
    policy: Policy | None = None,
    *,
    api_key: str | None = None,
    admin_key: str | None = None,
    keys_path: str | Path | None = None,
    allow_unauthenticated: bool | None = None,
    allowed_hosts: Iterable[str] | None = None,
    audit_durability: str | None = None,
    audit_decisions: str | None = None,
    audit_signing_key: str | Path | None = None,
    condition_budget: int | None = None,
    max_result_bytes: int | None = None,
    redact: Iterable[str] | None = None,
    redact_except: Iterable[str] | None = None,
) -> App:
    """Build the server as an ASGI application, for any ASGI server.

    It opens its database when the server's life begins, or with the first request where the
    server runs no lifespan.

    Args:
        policy_path: The policy file.
        audit_db_path: The database; `aegis_audit.db` by default, `:memory:` keeps nothing.
        executor: Does the actions; without one they are only decided and recorded.
        policy: A policy instead of a file; it counts as the file does.
        api_key: May decide, execute and read; `AEGIS_API_KEY` by default.
        admin_key: May do everything; `AEGIS_ADMIN_KEY` by default.
        keys_path: A file of further keys, each with a role; `AEGIS_KEYS` by default.
        allow_unauthenticated: Serve other machines without keys; `AEGIS_ALLOW_UNAUTHENTICATED`.
        allowed_hosts: Names that a `Host` header may have, without keys; `AEGIS_ALLOWED_HOSTS`.
        audit_durability: `commit` or `process`; `AEGIS_AUDIT_DURABILITY`, or `commit`.
        audit_decisions: `none`, `blocked` or `all`; `AEGIS_AUDIT_DECISIONS`, or `none`.
        audit_signing_key: A file that signs the head; `AEGIS_AUDIT_SIGNING_KEY` by default.
        condition_budget: Units of work that the conditions of one request may take;
            `AEGIS_CONDITION_BUDGET`, or 6,000,000.
        max_result_bytes: How much data a result may have; `AEGIS_MAX_RESULT_BYTES`, or 1 MiB.
        redact: Further names of secrets; `AEGIS_REDACT` by default.
        redact_except: Names that are none; `AEGIS_REDACT_EXCEPT` by default.

    Raises:
        PolicyError: The policy is refused.
        ConfigError: Something else is missing or wrong.
    """
    environment = os.environ
    keys = keys_from(environment)
    api_key = keys[0] if api_key is None else checked_key(api_key, "api_key")
    admin_key = keys[1] if admin_key is None else checked_key(admin_key, "admin_key")
    if allow_unauthenticated is None:
        allow_unauthenticated = _is_true(environment.get("AEGIS_ALLOW_UNAUTHENTICATED", ""))
    if allowed_hosts is None:
        allowed_hosts = names_in(environment.get("AEGIS_ALLOWED_HOSTS", ""))
    if redact is None:
        redact = names_in(environment.get("AEGIS_REDACT", ""))
    if redact_except is None:
        redact_except = names_in(environment.get("AEGIS_REDACT_EXCEPT", ""))
    keys_file = keys[2] if keys_path is None else str(keys_path)
    if keys_file is not None:
        read_keys(keys_file)
    signing_key = audit_signing_key or environment.get("AEGIS_AUDIT_SIGNING_KEY") or None
    if signing_key is not None:
        HeadSigner(str(signing_key))
    settings = Settings(
        audit_db=str(audit_db_path or environment.get("AEGIS_AUDIT_DB") or "aegis_audit.db"),
        api_key=api_key,
        admin_key=admin_key,
        keys_file=keys_file,
        allow_unauthenticated=allow_unauthenticated,
        allowed_hosts=allowed_hosts_of(allowed_hosts),
        policy_file=None if policy_path is None or policy is not None else str(policy_path),
        audit_durability=_chosen(Durability, "audit_durability", audit_durability, environment),
        audit_decisions=_chosen(AuditDecisions, "audit_decisions", audit_decisions, environment),
        signing_key_file=None if signing_key is None else str(signing_key),
        condition_budget=_budget(condition_budget, environment),
        largest_result_bytes=_result_bytes(max_result_bytes, environment),
        redact=frozenset(filter(None, redact)),
        redact_except=frozenset(redact_except),
    )
    if policy is not None:
        file = PolicyText(policy.source, compiled(LoadedPolicy(policy, policy.source)))
    elif policy_path is not None:
        file = policy_text_of(policy_path, settings.audit_db)
        log_oddities(str(policy_path), file.compiled.warnings)
    else:
        file = CompiledFiles(settings.audit_db).load("")
    return build_app(settings, file=file, executor=executor)


def load_policy_file(path: str | Path) -> LoadedPolicy:
    """Load a policy file.

    Raises:
        PolicyError: It is refused.
        ConfigError: It cannot be read.
    """
    return load_text(_read(path))


def policy_text_of(path: str | Path, database: str) -> PolicyText:
    """Load a policy file for a server.

    Args:
        path: The policy file.
        database: The server's; what was compiled for it before is not parsed again.

    Raises:
        PolicyError: It is refused.
        ConfigError: It cannot be read.
    """
    return CompiledFiles(database).load(_read(path))


def _read(path: str | Path) -> bytes:
    try:
        return read_policy(path)
    except OSError as error:
        raise ConfigError(f"cannot read the policy {shown(str(path))}: {error.strerror}") from None


def build_app(
    settings: Settings,
    *,
    file: PolicyText | None,
    executor: Executor | None = None,
    session_id: str | None = None,
    server: ServerState | None = None,
    known_keys: SharedBytes | None = None,
) -> App:
    """Build the server from settings; `create_app` is the door for everybody else.

    Args:
        settings: Limits and keys.
        file: The policy file; None: the version in force in the database.
        executor: Does the actions.
        session_id: Of actions that name none; the same for all workers of a server.
        server: Of the `aegis serve` whose worker this is.
        known_keys: What its workers know of the keys file.
    """
    fixed = environment_keys(settings.api_key, settings.admin_key)
    keys = KeyRing(fixed, settings.keys_file, shared=known_keys)
    service = _Service(
        settings, file, executor or NoOpExecutor(), session_id or uuid.uuid4().hex, server, keys
    )
    api = Api(
        settings,
        service.decisions.snapshot,
        service.decider,
        service.enforcer,
        service.audit,
        service.reader,
        service.notices,
    )
    admin = Admin(
        deepest=settings.deepest_nesting,
        snapshot=service.decisions.snapshot,
        history=service.history,
        changes=service,
    )
    body = settings.largest_body_bytes
    routes = {
        **{
            ("GET", path): Route(api.health, None, needs_service=False)
            for path in ("/health", "/api/v1/health")
        },
        **{
            ("GET", path): Route(api.live, None, needs_service=False)
            for path in ("/health/live", "/healthz")
        },
        **{("GET", path): Route(api.ready, None) for path in ("/health/ready", "/readyz")},
        ("GET", "/openapi.json"): Route(
            spec.handler(settings), Permission.DESCRIBE, needs_service=False
        ),
        ("POST", "/api/v1/evaluate"): Route(
            api.evaluate if settings.audit_decisions is AuditDecisions.NONE else api.evaluate_noted,
            Permission.DECIDE,
            body,
        ),
        ("POST", "/api/v1/execute"): Route(api.execute, Permission.DECIDE, body),
        ("GET", "/api/v1/audit"): Route(api.audit, Permission.READ),
        ("GET", "/api/v1/audit/head"): Route(api.audit_head, Permission.READ),
        ("GET", "/api/v1/policy"): Route(admin.policy, Permission.READ),
        ("PUT", "/api/v1/policy"): Route(
            admin.put_policy,
            Permission.CHANGE_POLICY,
            settings.largest_policy_bytes,
            limit_option="",
            media_types=_JSON_TYPES | YAML_TYPES,
            takes_query=True,
        ),
        ("POST", "/api/v1/policy/rollback"): Route(admin.rollback, Permission.CHANGE_POLICY, body),
        ("POST", "/api/v1/policy/reload"): Route(admin.reload, Permission.CHANGE_POLICY, body),
        ("GET", "/api/v1/policy/versions"): Route(admin.versions, Permission.READ),
        ("GET", "/api/v1/policy/versions/{version}"): Route(
            admin.version("{version}"), Permission.READ, of_item=admin.version
        ),
    }

    async def close() -> None:
        admin.close()
        await service.close()

    lifecycle = Lifecycle(service.open, service.stop, close, service.reload_files)
    return App(routes, Gate(settings, keys), lifecycle, body_timeout_s=settings.body_timeout_s)


@dataclass(frozen=True, slots=True)
class _Open:
    """What an open service holds, and how all of it is closed again."""

    versions: PolicyVersions
    policy_file: PolicyFile | None
    audit: AuditLog
    reader: AuditReader
    enforcer: Enforcer
    closing: ExitStack


class _Service:
    """Policy, audit and executor of one process: closed, or open as a whole."""

    def __init__(
        self,
        settings: Settings,
        file: PolicyText | None,
        executor: Executor,
        session_id: str,
        server: ServerState | None,
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
        if settings.signing_key_file is not None:
            self._signer = HeadSigner(settings.signing_key_file)
        self.decisions = DecisionPoint()
        self.decider = Decider(settings.condition_budget)

    async def open(self) -> None:
        settings = self._settings
        with ExitStack() as opened:
            store = Store(settings.audit_db, durability=settings.audit_durability)
            opened.callback(store.close)
            versions = PolicyVersions(store, Journal(store))
            opened.callback(versions.close)
            snapshot = versions.start(self._file)
            audit = AuditLog(
                store, most_queued=settings.queued_records, timeout_s=settings.audit_timeout_s
            )
            opened.callback(audit.close)
            reader = AuditReader(store, signer=self._signer)
            opened.callback(reader.close)
            enforcer = Enforcer(
                audit,
                reader,
                self._executor,
                decider=self.decider,
                session_id=self._session_id,
                timeout_s=settings.execute_timeout_s,
                largest_data_bytes=settings.largest_result_bytes,
                redaction=Redaction(settings.redact, settings.redact_except),
            )
            try:
                await enforcer.setup()
            except (Exception, SystemExit) as error:
                raise ConfigError(f"the executor's setup failed: {error}") from error
            versions.follow(snapshot, self.decisions.switch, watches=settings.watch)
            policy_file = None
            if settings.policy_file is not None:
                policy_file = PolicyFile(settings.policy_file, versions)
                opened.callback(policy_file.stop)
                if settings.watch:
                    policy_file.watch()
            self._parts = _Open(versions, policy_file, audit, reader, enforcer, opened.pop_all())
        self.decisions.begin(snapshot, versions.newest, versions.load_newest, versions.renew)

    def stop(self) -> None:
        """Begin no more executions; give those that run their time."""
        if self._parts is not None and self._draining is None:
            drain = self._parts.enforcer.drain(self._settings.drain_timeout_s)
            self._draining = asyncio.create_task(drain)

    async def close(self) -> None:
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
        return self._open.versions.history

    def enforcer(self) -> Enforcer:
        if self._draining is not None:
            raise NotReady("the server is stopping")
        return self._open.enforcer

    def audit(self) -> AuditLog:
        return self._open.audit

    def reader(self) -> AuditReader:
        return self._open.reader


def _chosen(
    kinds: type[_Kind], name: str, value: str | None, environment: Mapping[str, str]
) -> _Kind:
    """A setting by its argument, by its variable of the environment, or by its default."""
    if value is None:
        value = environment.get(f"AEGIS_{name.upper()}") or getattr(Settings(), name)
    try:
        return kinds(value)
    except ValueError:
        known = ", ".join(kind.value for kind in kinds)
        raise ConfigError(f"{name} {shown(value)} is unknown; known: {known}") from None


def _budget(value: int | None, environment: Mapping[str, str]) -> int:
    if value is None:
        written = environment.get("AEGIS_CONDITION_BUDGET") or str(DEFAULT_BUDGET)
        value = int(written) if written.isascii() and written.isdigit() else 0
    if value < 1:
        raise ConfigError("condition_budget must be a number of at least 1")
    return value


def _result_bytes(value: int | None, environment: Mapping[str, str]) -> int:
    written = environment.get("AEGIS_MAX_RESULT_BYTES") or Settings().largest_result_bytes
    given = written if value is None else value
    try:
        size = int(given)
    except ValueError:
        size = -1
    if size not in RESULT_BYTES:
        raise ConfigError(
            f"max_result_bytes {shown(given)} must be an integer from {RESULT_BYTES.start} to"
            f" {RESULT_BYTES.stop - 1}"
        )
    return size


def _is_true(text: str) -> bool:
    return text.strip().lower() in ("1", "true", "yes", "on", "t", "y")
