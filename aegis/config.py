"""Settings: every option, limit and default of the server, each declared once.

`aegis serve`, `create_app`, the environment and the tables of the documents are made from `OPTIONS`. An
option has one name: the field `max_batch` is `--max-batch`, `AEGIS_MAX_BATCH` and
`create_app(max_batch=…)`.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any, TypedDict, TypeVar

from aegis.errors import ConfigError
from aegis.option_types import (
    Choice,
    File,
    Flag,
    Hosts,
    Integer,
    KeysFile,
    Names,
    Number,
    OptionType,
    Processes,
    SecretKey,
    Text,
)
from aegis_core import DEFAULT_BUDGET

__all__ = [
    "OPTIONS",
    "AuditDecisions",
    "Durability",
    "Option",
    "Options",
    "Settings",
    "beside",
    "keys_from",
    "settings_from",
]

_log = logging.getLogger("aegis.config")

_Default = TypeVar("_Default")
_Value = TypeVar("_Value")

_DAY_S = 86_400
_MIB = 1024 * 1024
_SERVICE_LINK = re.compile(r"(tcp|udp|sctp)://\S*")
"""What Kubernetes sets `AEGIS_PORT` to in every pod next to a Service called `aegis`."""


class Durability(StrEnum):
    """What a commit that was acknowledged survives."""

    COMMIT = "commit"
    """All that the disk survives: it is synced first."""
    PROCESS = "process"
    """The end of any process, but not of the machine's power."""


class AuditDecisions(StrEnum):
    """Which decisions are recorded that nothing is executed by."""

    NONE = "none"
    BLOCKED = "blocked"
    ALL = "all"


@dataclass(frozen=True, slots=True)
class Option:
    """One option of the server.

    Attributes:
        name: Of the field and of the argument of `create_app`.
        type: What it takes.
        default: Its value if it is not given.
        help: What it is, in a sentence.
        is_argument: Whether `create_app` takes it; if not, it belongs to the process that serves, which
            is another program's there.
        has_flag: Whether the command line takes it by a flag: secrets have no place there.
    """

    name: str
    type: OptionType[Any]
    default: Any
    help: str
    is_argument: bool
    has_flag: bool

    @property
    def variable(self) -> str:
        """The variable of the environment."""
        return f"AEGIS_{self.name.upper()}"

    @property
    def flag(self) -> str:
        """What the command line calls it."""
        return f"--{self.name.replace('_', '-')}"

    @property
    def default_text(self) -> str:
        """Its default; empty if that is nothing."""
        is_nothing = self.default is None or self.default is False or self.default == frozenset()
        return "" if is_nothing else str(self.default)

    def read(self, value: object, name: str) -> object:
        """A value of it, checked.

        Args:
            value: Text, or a value of Python.
            name: What the operator calls it, for messages.

        Raises:
            ConfigError: It cannot be one.
        """
        try:
            return self.type.parse(value)
        except ValueError as error:
            raise ConfigError(f"{name} {error}") from None

    def variable_in(self, environment: Mapping[str, str]) -> str | None:
        """The text of its variable; None where that is not set, or empty, or not meant for Aegis."""
        text = environment.get(self.variable)
        if self.type.guards_access:  # what guards the server is never passed over
            return text
        if text and _SERVICE_LINK.fullmatch(text):
            _log.warning(
                "%s=%s is passed over: Kubernetes set it for a Service; use %s, or"
                " enableServiceLinks: false in the pod",
                self.variable,
                text,
                self.flag,
            )
            return None
        return text or None


def _option(
    default: _Default,
    takes: OptionType[_Value],
    text: str,
    *,
    is_argument: bool = True,
    has_flag: bool = True,
) -> _Default | _Value:
    """A field of `Settings` that is an option."""
    declared: _Default = field(
        default=default,
        repr=not isinstance(takes, SecretKey),
        metadata={"type": takes, "help": text, "is_argument": is_argument, "has_flag": has_flag},
    )
    return declared


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a server is started with. Times are in seconds, sizes in bytes.

    The fields that are not options are limits that nobody has to set.

    Attributes:
        max_policy_bytes: Largest body of a `PUT` of the policy.
        drain_timeout: For running executions when the server stops.
        max_queued_records: Records that may wait for their commit.
    """

    policy: str | None = _option(None, File(), "The policy file.", has_flag=False)
    host: str = _option("127.0.0.1", Text(), "Address to listen on.", is_argument=False)
    port: int = _option(8000, Integer(0, 65_535), "Port; 0 takes a free one.", is_argument=False)
    workers: int = _option(
        1, Processes(1, 256), "Processes; `auto`: one a core.", is_argument=False
    )
    audit_db: str = _option("aegis_audit.db", File(), "Database; `:memory:` keeps nothing.")
    executor: str | None = _option(None, Text(), "What does the actions: `module:Class`.")
    reset_policy: bool = _option(
        False, Flag(), "Go back to the file where a policy was put since.", is_argument=False
    )
    watch: bool = _option(False, Flag(), "Load the policy file again when it changes.")
    api_key: str | None = _option(
        None, SecretKey(), "A key that may decide, execute and read.", has_flag=False
    )
    admin_key: str | None = _option(
        None,
        SecretKey(),
        "A key that may do everything; without it the API key may.",
        has_flag=False,
    )
    keys: str | None = _option(
        None, KeysFile(), "A file of keys and their roles; read again when it changes."
    )
    allow_unauthenticated: bool = _option(False, Flag(), "Serve other machines without keys.")
    allowed_hosts: frozenset[str] = _option(
        frozenset(),
        Hosts(),
        "Further Host names, without keys; by commas. `.example.com`: with all below it.",
    )
    max_body_bytes: int = _option(_MIB, Integer(1, 128 * _MIB), "Largest body of a request.")
    max_policy_bytes: int = 16 * _MIB
    max_batch: int = _option(10_000, Integer(1), "Most actions in one request.")
    # Deeper values could not be written again.
    max_nesting: int = _option(64, Integer(2, 200), "Deepest nesting of a request's JSON.")
    condition_budget: int = _option(
        DEFAULT_BUDGET,
        Integer(1),
        "Units of work that the conditions of one request may spend.",
    )
    # SQLite must hold a record, and write all of it in its canonical form.
    max_result_bytes: int = _option(
        _MIB, Integer(256, 64 * _MIB), "Most data of an executor's result; more is left out."
    )
    body_timeout: float = _option(
        10.0, Number(0, _DAY_S, excludes_minimum=True), "Seconds for a body to arrive."
    )
    keep_alive: float = _option(
        65.0,
        Number(1, _DAY_S),
        "Seconds that a connection may be idle; also for a request's head to arrive.",
        is_argument=False,
    )
    execute_timeout: float = _option(
        30.0,
        Number(0, _DAY_S, excludes_minimum=True),
        "Seconds for an executor to run one action.",
    )
    audit_timeout: float = _option(
        5.0,
        Number(0, _DAY_S, excludes_minimum=True),
        "Seconds for a record to be committed before its answer is withheld.",
    )
    drain_delay: float = _option(
        0.0,
        Number(0, _DAY_S),
        "Seconds to go on serving after a signal to stop, while /health/ready says 503 already.",
        is_argument=False,
    )
    drain_timeout: float = 10.0
    max_queued_records: int = 100_000
    audit_durability: Durability = _option(
        Durability.COMMIT,
        Choice(Durability),
        "commit: a record is on the disk before its answer; process: it outlives the server, but not"
        " the machine's power.",
    )
    audit_decisions: AuditDecisions = _option(
        AuditDecisions.NONE,
        Choice(AuditDecisions),
        "Which answers of `evaluate` are recorded as well.",
    )
    audit_signing_key: str | None = _option(
        None, File(), "An Ed25519 private key in PEM that signs the head of the audit."
    )
    redact: frozenset[str] = _option(
        frozenset(), Names(), "Further names of secrets that are not recorded; by commas."
    )
    redact_except: frozenset[str] = _option(
        frozenset(), Names(), "Names that are not secrets; by commas."
    )

    @property
    def is_keyless(self) -> bool:
        """Whether anyone who reaches the server may use it."""
        return self.api_key is None and self.admin_key is None and self.keys is None


OPTIONS: Mapping[str, Option] = MappingProxyType(
    {
        declared.name: Option(declared.name, default=declared.default, **declared.metadata)
        for declared in dataclasses.fields(Settings)
        if declared.metadata
    }
)
"""Every option by its name, in the order of help."""


class Options(TypedDict, total=False):
    """The options as arguments of `create_app`, for type checkers; a test holds them to `OPTIONS`.

    None is the same as leaving an argument out.
    """

    audit_db: str | os.PathLike[str] | None
    watch: bool | None
    api_key: str | None
    admin_key: str | None
    keys: str | os.PathLike[str] | None
    allow_unauthenticated: bool | None
    allowed_hosts: Iterable[str] | None
    max_body_bytes: int | None
    max_batch: int | None
    max_nesting: int | None
    condition_budget: int | None
    max_result_bytes: int | None
    body_timeout: float | None
    execute_timeout: float | None
    audit_timeout: float | None
    audit_durability: str | None
    audit_decisions: str | None
    audit_signing_key: str | os.PathLike[str] | None
    redact: Iterable[str] | None
    redact_except: Iterable[str] | None


def settings_from(
    arguments: Mapping[str, object],
    options: Iterable[Option] = OPTIONS.values(),
    environment: Mapping[str, str] = os.environ,
) -> Settings:
    """Settings by arguments, by variables of the environment, and by defaults, in this order.

    Args:
        arguments: Values by the names of options; None: left out.
        options: Those that are looked for.
        environment: Where the variables are.

    Raises:
        ConfigError: A value cannot be one of its option.
    """
    values: dict[str, Any] = {}
    for option in options:
        value, name = arguments.get(option.name), option.name
        if value is None:
            value, name = option.variable_in(environment), option.variable
        if value is not None:
            values[option.name] = option.read(value, name)
    return Settings(**values)


def keys_from(environment: Mapping[str, str] = os.environ) -> tuple[str | None, str | None]:
    """The API key and the admin key of the environment.

    Raises:
        ConfigError: One is set, but blank: that is a mistake, not "no key"; or no header can carry it.
    """
    settings = settings_from({}, (OPTIONS["api_key"], OPTIONS["admin_key"]), environment)
    return settings.api_key, settings.admin_key


def beside(database: str, ending: str) -> str:
    """A file of ours beside a database: one and the same, whatever links lead to that."""
    return f"{os.path.realpath(database)}{ending}"
