"""The server as an application: `create_app`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

from aegis.audit.signing import HeadSigner
from aegis.auth.keys_file import read_keys
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
from aegis.errors import ConfigError, shown
from aegis.execution.executors import Executor
from aegis.policy.compiled_cache import CompiledFiles, PolicyText, compile_policy
from aegis.policy.file_source import log_oddities
from aegis.policy.loader import LoadedPolicy, Policy, load_text, read_policy
from aegis.server.composition import build_app
from aegis.server.http.app import App
from aegis_core import DEFAULT_BUDGET

__all__ = ["create_app", "load_policy_file", "policy_text_of"]

_Kind = TypeVar("_Kind", bound=StrEnum)


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
        file = PolicyText(policy.source, compile_policy(LoadedPolicy(policy, policy.source)))
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
