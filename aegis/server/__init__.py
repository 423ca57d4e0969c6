"""The server as an application: `create_app`."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Unpack, get_type_hints

from aegis.audit.signing import HeadSigner
from aegis.auth.keys_file import read_keys
from aegis.config import OPTIONS, Options, settings_from
from aegis.errors import ConfigError
from aegis.execution.executors import Executor
from aegis.execution.loading import load_executor
from aegis.messages import quote
from aegis.policy.compiled_cache import CompiledFiles, PolicyText, compile_policy
from aegis.policy.file_source import log_oddities
from aegis.policy.loader import LoadedPolicy, Policy, load_text, read_policy
from aegis.server.composition import build_app
from aegis.server.http.app import App

__all__ = ["create_app", "load_policy_file", "policy_text_of"]

_ARGUMENTS = {option.name: option for option in OPTIONS.values() if option.is_argument}


def create_app(
    policy_path: str | os.PathLike[str] | None = None,
    audit_db_path: str | os.PathLike[str] | None = None,
    executor: Executor | str | None = None,
    policy: Policy | str | os.PathLike[str] | None = None,
    *,
    keys_path: str | os.PathLike[str] | None = None,
    **options: Unpack[Options],
) -> App:
    """Build the server as an ASGI application, for any ASGI server.

    It opens its database when the server's life begins, or with the first request where the
    server runs no lifespan. What is left out, or None, comes from the variable of the environment
    that belongs to it (`AEGIS_MAX_BATCH` to `max_batch`), else from its default.

    Args:
        policy_path: Another name of `policy`.
        audit_db_path: Another name of `audit_db`.
        executor: Does the actions, or says as `module:Class` what does; without one they are only
            decided and recorded.
        policy: The policy file, or a `Policy`, which counts as the file does.
        keys_path: Another name of `keys`.
        options: The options of `aegis serve`.

    Raises:
        PolicyError: The policy is refused.
        ConfigError: Something else is missing or wrong.
    """
    if unknown := options.keys() - _ARGUMENTS.keys():
        raise TypeError(f"create_app() got an unexpected keyword argument {min(unknown)!r}")
    aliases = {"policy": policy_path, "audit_db": audit_db_path, "keys": keys_path}
    given = _merged({**options, "policy": policy, "executor": executor}, aliases)
    wanted = dict(_ARGUMENTS)
    if isinstance(policy, Policy):
        del wanted["policy"]  # nor is AEGIS_POLICY looked at
    if not isinstance(executor, str | None):
        del wanted["executor"]
    settings = settings_from(given, wanted.values())
    if settings.keys is not None:
        read_keys(settings.keys)
    if settings.audit_signing_key is not None:
        HeadSigner(settings.audit_signing_key)
    if isinstance(executor, str | None):
        executor = None if settings.executor is None else load_executor(settings.executor)
    if isinstance(policy, Policy):
        file = PolicyText(policy.source, compile_policy(LoadedPolicy(policy, policy.source)))
    elif settings.policy is not None:
        file = policy_text_of(settings.policy, settings.audit_db)
        log_oddities(settings.policy, file.compiled.warnings)
    else:
        file = CompiledFiles(settings.audit_db).load("")
    return build_app(settings, file=file, executor=executor)


def _merged(given: dict[str, object], aliases: Mapping[str, object]) -> dict[str, object]:
    """The arguments by the names of their options."""
    for name, value in aliases.items():
        if value is not None:
            if given.get(name) is not None:
                raise ConfigError(f"{name} is given by two names; give one of them")
            given[name] = value
    return given


def _describe() -> None:
    """Let `help`, and whoever else looks at the signature, see every option by its name."""
    signature = inspect.signature(create_app)
    parameters = list(signature.parameters.values())[:-1]
    hints = get_type_hints(Options)
    parameters += [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=hints[name]
        )
        for name in hints
    ]
    create_app.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    lines = [f"{name}: {_ARGUMENTS[name].help}" for name in hints]
    told = "options: The options of `aegis serve`."
    create_app.__doc__ = (create_app.__doc__ or "").replace(told, ("\n" + " " * 8).join(lines))


_describe()


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
        raise ConfigError(f"cannot read the policy {quote(str(path))}: {error.strerror}") from None
