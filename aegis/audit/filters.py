"""Filters as text: what queries over HTTP and options of commands say, read the same way."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from urllib.parse import parse_qsl

from aegis.audit.members import Operation, ResultStatus
from aegis.errors import InvalidQuery
from aegis.messages import quote, suggest
from aegis.timestamps import parse_rfc3339
from aegis_core import RiskLevel

__all__ = [
    "AUDIT_PARAMETERS",
    "MAX_ID",
    "MAX_LIMIT",
    "AuditFilter",
    "filter_of",
    "pairs_of",
    "read_filter",
]

MAX_LIMIT = 1_000_000_000
MAX_ID = 2**63 - 1


@dataclass(frozen=True, slots=True)
class AuditFilter:
    """Which records are asked for; None asks for any. Times are inclusive, numbers exclusive.

    Attributes:
        since_seq: Only records that have got an entry after this one; they come in that order.
        limit: The newest so many; with `after` or `since_seq` the first so many after it.
    """

    session_id: str | None = None
    action_type: str | None = None
    risk_level: RiskLevel | None = None
    result_status: ResultStatus | None = None
    agent_id: str | None = None
    matched_rule: str | None = None
    operation: Operation | None = None
    since_us: int | None = None
    until_us: int | None = None
    after: int | None = None
    before: int | None = None
    since_seq: int | None = None
    limit: int | None = None


def read_filter(query: str) -> AuditFilter:
    """The filter of a query string; an empty value is left out.

    Raises:
        InvalidQuery: A parameter is unknown, repeated, or has an impossible value.
    """
    return filter_of(pairs_of(query))


def pairs_of(query: str) -> list[tuple[str, str]]:
    """The names and values of a query string.

    Raises:
        InvalidQuery: It cannot be read.
    """
    try:
        if not query.isascii():
            raise ValueError
        return parse_qsl(query, keep_blank_values=True, errors="strict", max_num_fields=64)
    except ValueError:
        raise InvalidQuery(
            "the query string is not UTF-8 in percent encoding, or has over 64 parameters"
        ) from None


def filter_of(pairs: Iterable[tuple[str, str]]) -> AuditFilter:
    """The filter of names and values; an empty value is left out.

    Raises:
        InvalidQuery: A name is unknown, repeated, or has an impossible value.
    """
    wanted: dict[str, Any] = {}
    for name, value in pairs:
        if name not in AUDIT_PARAMETERS:
            hint = suggest(name, AUDIT_PARAMETERS)
            raise InvalidQuery(f"unknown parameter {quote(name)}{hint}")
        member, read = AUDIT_PARAMETERS[name]
        if not value:
            continue
        if member in wanted:
            raise InvalidQuery(f"`{name}` stands twice; give it once")
        wanted[member] = read(name, value)
    return AuditFilter(**wanted)


def _text(_: str, value: str) -> str:
    return value


def _risk_level(name: str, value: str) -> RiskLevel:
    try:
        return RiskLevel[value.upper() if value.isascii() else ""]
    except KeyError:
        levels = ", ".join(level.name for level in RiskLevel)
        raise InvalidQuery(f"`{name}` {quote(value)} does not exist; use one of {levels}") from None


def _one_of(kind: type[StrEnum]) -> Callable[[str, str], StrEnum]:
    def read(name: str, value: str) -> StrEnum:
        try:
            return kind(value)
        except ValueError:
            known = ", ".join(kind)
            said = f"`{name}` {quote(value)} does not exist; use one of {known}"
            raise InvalidQuery(said) from None

    return read


def _number(largest: int) -> Callable[[str, str], int]:
    def read(name: str, value: str) -> int:
        if not (value.isascii() and value.isdigit() and len(value) < 20 and int(value) <= largest):
            raise InvalidQuery(f"`{name}` must be a number from 0 to {largest}, not {quote(value)}")
        return int(value)

    return read


def _time(name: str, value: str) -> int:
    try:
        return parse_rfc3339(value)
    except ValueError:
        raise InvalidQuery(
            f"`{name}` must be a time as in `2026-01-31T18:00:00Z` (RFC 3339), not {quote(value)}"
        ) from None


AUDIT_PARAMETERS: dict[str, tuple[str, Callable[[str, str], Any]]] = {
    "session_id": ("session_id", _text),
    "action_type": ("action_type", _text),
    "risk_level": ("risk_level", _risk_level),
    "result_status": ("result_status", _one_of(ResultStatus)),
    "agent_id": ("agent_id", _text),
    "matched_rule": ("matched_rule", _text),
    "operation": ("operation", _one_of(Operation)),
    "since": ("since_us", _time),
    "until": ("until_us", _time),
    "after": ("after", _number(MAX_ID)),
    "before": ("before", _number(MAX_ID)),
    "since_seq": ("since_seq", _number(MAX_ID)),
    "limit": ("limit", _number(MAX_LIMIT)),
}
