"""Settings: every limit and every default of the server lives here."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from aegis.errors import ConfigError, shown
from aegis_core import DEFAULT_BUDGET

__all__ = [
    "LARGEST_BODY_BYTES",
    "RESULT_BYTES",
    "AuditDecisions",
    "Durability",
    "Settings",
    "allowed_hosts_of",
    "beside",
    "checked_key",
    "host_of",
    "is_loopback",
    "keys_from",
    "names_in",
]

LARGEST_BODY_BYTES = 128 * 1024 * 1024
RESULT_BYTES = range(256, 64 * 1024 * 1024 + 1)
"""What the limits may be: SQLite must hold a record, and write all of it in its canonical form."""
_HOST = re.compile(
    r"(\[[0-9a-f:.]+\]|(?:[a-z0-9._~!$&'()*+,;=-]|%[0-9a-f]{2})+)(?::([0-9]*))?",
    re.ASCII | re.IGNORECASE,
)
_LARGEST_PORT = 65_535
_NAME = re.compile(r"(\*\.|\.)?[a-z0-9_-]+(\.[a-z0-9_-]+)*")


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
class Settings:
    """What a server is started with. Times are in seconds, sizes in bytes.

    Attributes:
        audit_db: The database file; `:memory:` keeps nothing.
        api_key: May decide, execute and read; None: no such key.
        admin_key: May do everything; None: the API key may.
        keys_file: Holds further keys, each with a role; None: there is none.
        allow_unauthenticated: Serve without keys on other addresses than the loopback.
        allowed_hosts: Names that a `Host` header may have besides the local ones, without keys.
        largest_body_bytes: Of a request.
        largest_policy_bytes: Of a `PUT` policy.
        largest_batch: Actions in one request.
        deepest_nesting: Of a request's JSON.
        condition_budget: Units of work that the conditions of one request may take.
        largest_result_bytes: Of the data of an executor's result, as JSON.
        body_timeout_s: For a body to arrive.
        keep_alive_s: For a connection without a request; also for a request's head to arrive.
        execute_timeout_s: For an executor to run one action.
        audit_timeout_s: For a record to be committed before the answer is withheld.
        drain_delay_s: For serving on, but not being ready, when the server is told to stop.
        drain_timeout_s: For running executions when the server stops.
        queued_records: Records that may wait for their commit.
        policy_file: Where the policy can be read again; None: there is no file.
        watch: Whether it is read again when it changes.
        audit_durability: What an acknowledged record survives.
        audit_decisions: Which answers of `evaluate` have a record.
        signing_key_file: Signs the head of the audit; None: it is not signed.
        redact: Further names of secrets, whose values are not recorded.
        redact_except: Names that are none.
    """

    audit_db: str = "aegis_audit.db"
    api_key: str | None = field(default=None, repr=False)
    admin_key: str | None = field(default=None, repr=False)
    keys_file: str | None = None
    allow_unauthenticated: bool = False
    allowed_hosts: frozenset[str] = frozenset()
    largest_body_bytes: int = 1024 * 1024
    largest_policy_bytes: int = 16 * 1024 * 1024
    largest_batch: int = 10_000
    deepest_nesting: int = 64
    condition_budget: int = DEFAULT_BUDGET
    largest_result_bytes: int = 1024 * 1024
    body_timeout_s: float = 10.0
    keep_alive_s: float = 65.0
    execute_timeout_s: float = 30.0
    audit_timeout_s: float = 5.0
    drain_delay_s: float = 0.0
    drain_timeout_s: float = 10.0
    queued_records: int = 100_000
    policy_file: str | None = None
    watch: bool = False
    audit_durability: Durability = Durability.COMMIT
    audit_decisions: AuditDecisions = AuditDecisions.NONE
    signing_key_file: str | None = None
    redact: frozenset[str] = frozenset()
    redact_except: frozenset[str] = frozenset()

    @property
    def is_keyless(self) -> bool:
        """Whether anyone who reaches the server may use it."""
        return self.api_key is None and self.admin_key is None and self.keys_file is None


def keys_from(
    environment: Mapping[str, str] = os.environ,
) -> tuple[str | None, str | None, str | None]:
    """The API key, the admin key and the keys file of the environment.

    Raises:
        ConfigError: One is set, but blank: that is a mistake, not "no key"; or no header can carry it.
    """
    keys_file = environment.get("AEGIS_KEYS")
    if keys_file is not None and not keys_file.strip():
        raise ConfigError("AEGIS_KEYS is set but empty; unset it to serve without keys")
    api_key, admin_key = (
        checked_key(environment.get(name), name) for name in ("AEGIS_API_KEY", "AEGIS_ADMIN_KEY")
    )
    return api_key, admin_key, keys_file and keys_file.strip()


def names_in(text: str) -> list[str]:
    """The names of a list that is written with commas or blanks."""
    return text.replace(",", " ").split()


def checked_key(key: str | None, name: str) -> str | None:
    """A key that callers can send: without the blanks around it, which a header's value loses.

    Args:
        key: As an operator gave it; None: there is none.
        name: What the operator calls it, for messages.

    Raises:
        ConfigError: It is blank, or has a character that no header carries.
    """
    if key is None:
        return None
    key = key.strip()
    if not key:
        raise ConfigError(f"{name} is set but empty; unset it to serve without keys")
    # SOURCE: RFC 6750 section 2.1 has no blanks in a token; servers keep other bytes to themselves.
    if not all("!" <= char <= "~" for char in key):
        raise ConfigError(
            f"{name} must be visible ASCII characters without blanks; make another key"
        )
    return key


def beside(database: str, ending: str) -> str:
    """A file of ours beside a database: one and the same, whatever links lead to that."""
    return f"{os.path.realpath(database)}{ending}"


def is_loopback(host: str) -> bool:
    """Whether an address or name only reaches this machine."""
    if host.lower() == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def host_of(text: str) -> tuple[str, str]:
    """Name and port of a `Host` value, lower case; the port is "" where there is none.

    Raises:
        ConfigError: It is none.

    Source: RFC 9110 section 7.2, RFC 3986 section 3.2.
    """
    match = _HOST.fullmatch(text)
    if match is None:
        raise ConfigError(f"{shown(text)} is not a host")
    name, port = match[1].lower(), match[2] or ""
    if port and int(port[:6]) > _LARGEST_PORT:
        raise ConfigError(f"{shown(text)} is not a host: ports end at {_LARGEST_PORT}")
    if name.startswith("["):
        try:
            name = f"[{ipaddress.IPv6Address(name[1:-1])}]"
        except ValueError:
            raise ConfigError(f"{shown(text)} is not a host") from None
    return name, port


def allowed_hosts_of(entries: Iterable[str]) -> frozenset[str]:
    """Hosts as `--allowed-hosts` has them, checked, in the form in which `host_of` gives names.

    Args:
        entries: Names and addresses; `.example.com` is a name and all below it, `*.example.com` what
            is below it.

    Raises:
        ConfigError: One of them could never be the name of a host, or would be every name.
    """
    return frozenset(map(_allowed_host, entries))


def _allowed_host(entry: str) -> str:
    text = entry.strip().lower()
    where = f"allowed host {shown(entry)}"
    if not text:
        raise ConfigError("an allowed host is empty; name one, or leave the option out")
    if text == "*":
        raise ConfigError(
            f"{where} would let web pages of any name call; name the hosts, or set AEGIS_API_KEY:"
            " with keys every host may"
        )
    if "://" in text:
        raise ConfigError(f"{where} is a URL; give its host alone")
    if "/" in text:
        raise ConfigError(f"{where} is a range of addresses; name each host")
    try:
        address = ipaddress.ip_address(text.strip("[]"))
    except ValueError:
        pass
    else:
        return f"[{address}]" if address.version == 6 else str(address)
    if ":" in text:
        raise ConfigError(f"{where} has a port; leave it out: every port of a host is allowed")
    if not _NAME.fullmatch(text):
        raise ConfigError(
            f"{where} is not a host; write `example.com`, or `.example.com` with all below it"
        )
    return text
