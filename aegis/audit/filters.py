"""Filters as text: what queries over HTTP and options of commands say, read the same way."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import StrEnum
from typing import Any
from urllib.parse import parse_qsl

from aegis.audit.members import Operation, ResultStatus
from aegis.audit.reader import AuditFilter
from aegis.errors import InvalidQuery, did_you_mean, shown
from aegis.timestamps import parse_rfc3339
from aegis_core import RiskLevel

__all__ = [
    "AUDIT_PARAMETERS",
    "LARGEST_ID",
    "LARGEST_LIMIT",
    "filter_of",
    "pairs_of",
    "read_filter",
]

LARGEST_LIMIT = 1_000_000_000
LARGEST_ID = 2**63 - 1


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
            hint = did_you_mean(name, AUDIT_PARAMETERS)
            raise InvalidQuery(f"unknown parameter {shown(name)}{hint}")
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
        raise InvalidQuery(f"`{name}` {shown(value)} does not exist; use one of {levels}") from None


def _one_of(kind: type[StrEnum]) -> Callable[[str, str], StrEnum]:
    def read(name: str, value: str) -> StrEnum:
        try:
            return kind(value)
        except ValueError:
            known = ", ".join(kind)
            said = f"`{name}` {shown(value)} does not exist; use one of {known}"
            raise InvalidQuery(said) from None

    return read


def _number(largest: int) -> Callable[[str, str], int]:
    def read(name: str, value: str) -> int:
        if not (value.isascii() and value.isdigit() and len(value) < 20 and int(value) <= largest):
            raise InvalidQuery(f"`{name}` must be a number from 0 to {largest}, not {shown(value)}")
        return int(value)

    return read


def _time(name: str, value: str) -> int:
    try:
        return parse_rfc3339(value)
    except ValueError:
        raise InvalidQuery(
            f"`{name}` must be a time as in `2026-01-31T18:00:00Z` (RFC 3339), not {shown(value)}"
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
    "after": ("after", _number(LARGEST_ID)),
    "before": ("before", _number(LARGEST_ID)),
    "since_seq": ("since_seq", _number(LARGEST_ID)),
    "limit": ("limit", _number(LARGEST_LIMIT)),
}
