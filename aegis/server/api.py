"""What agents and auditors call: health, decisions, executions, the audit."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qsl

from aegis import __version__, codec
from aegis.audit import AuditFilter, AuditLog, ResultStatus
from aegis.config import Settings
from aegis.decisions import Snapshot
from aegis.errors import Forbidden, InvalidQuery, NotReady, StoreError, did_you_mean, shown
from aegis.execution import Enforcer, result_json
from aegis.headers import Headers
from aegis.keys import Key
from aegis.server.kernel import Answer, Caller
from aegis_core import Engine, RiskLevel

__all__ = ["AUDIT_PARAMETERS", "Api"]

LARGEST_LIMIT = 1_000_000_000
LARGEST_ID = 2**63 - 1
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)

# SOURCE: RFC 3339 section 5.6. A `+` that was not escaped in a query arrives as a space.
_TIME = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(?:([Zz])|([+\- ])(\d\d:\d\d))",
    re.ASCII,
)


class Api:
    """The handlers.

    Args:
        settings: Limits.
        snapshot: The policy in force, at least as new as any that was answered for.
        enforcer: Executes.
        audit: The records.
        file_failures: How often the policy file could not be loaded, and why it cannot be now.
    """

    def __init__(
        self,
        settings: Settings,
        snapshot: Callable[[], Snapshot],
        enforcer: Callable[[], Enforcer],
        audit: Callable[[], AuditLog],
        file_failures: Callable[[], tuple[int, str | None]],
    ) -> None:
        self._deepest = settings.deepest_nesting
        self._largest_batch = settings.largest_batch
        self._snapshot = snapshot
        self._enforcer = enforcer
        self._audit = audit
        self._file_failures = file_failures

    def health(self, _body: bytes, _headers: Headers, _query: str, _caller: Caller) -> Answer:
        """`GET /health`: the release that answers."""
        return 200, (), codec.dumps({"status": "ok", "version": __version__})

    def live(self, _body: bytes, _headers: Headers, _query: str, _caller: Caller) -> Answer:
        """`GET /health/live`: the process answers."""
        return 200, (), b'{"status":"ok"}'

    async def ready(self, _body: bytes, _headers: Headers, _query: str, _caller: Caller) -> Answer:
        """`GET /health/ready`: decisions can be made and recorded."""
        self._enforcer()
        try:
            await self._audit().probe()
        except StoreError as error:
            raise NotReady(str(error)) from error
        self._snapshot()
        failures, why = self._file_failures()
        if not failures:
            return 200, (), b'{"status":"ok"}'
        # The policy in force is a good one, so the server is ready; but somebody should know.
        about = {"failures": failures, "error": why}
        return 200, (), codec.dumps({"status": "ok", "policy_file": about})

    def evaluate(self, body: bytes, _headers: Headers, _query: str, caller: Caller) -> Answer:
        """`POST /api/v1/evaluate`: decide, without executing."""
        snapshot = self._snapshot()
        engine = snapshot.engine
        if caller is not None and caller.agents:
            asked = codec.loads(body, self._deepest)
            return 200, snapshot.headers, self._evaluate_for(caller, asked, engine)
        if body >= codec.PLAIN_BATCH:  # a single action is less, and a look at its start costs more
            plain = codec.plain_batch(body, self._largest_batch, self._deepest)
            if plain is not None:
                whole = engine.evaluate_many_json(plain, read=codec.plain_params)
                return 200, snapshot.headers, whole
        asked = codec.loads(body, self._deepest)
        answer = engine.evaluate_object_json(asked)
        if answer is None:  # it is no plain action, or not one
            answer = self._evaluate_with_care(asked, engine)
        return 200, snapshot.headers, answer

    def _evaluate_with_care(self, asked: Any, engine: Engine) -> bytes:
        """`evaluate` for a batch, and for what may be wrong."""
        if type(asked) is dict and "actions" not in asked:
            return engine.evaluate_json(*codec.question(asked))
        items = codec.batch(asked, self._largest_batch)
        answer = engine.evaluate_objects_json(items)
        if answer is None:
            questions = [codec.question(item, index) for index, item in enumerate(items)]
            answer = engine.evaluate_many_json(questions)
        return answer

    def _evaluate_for(self, key: Key, asked: Any, engine: Engine) -> bytes:
        """`evaluate` for a key that may not speak for every agent."""
        if type(asked) is dict and "actions" not in asked:
            kind, target, agent_id, params = codec.question(asked)
            return engine.evaluate_json(kind, target, _agent(key, agent_id), params)
        items = codec.batch(asked, self._largest_batch)
        questions = [codec.question(item, index) for index, item in enumerate(items)]
        return engine.evaluate_many_json(
            [
                (kind, target, _agent(key, agent_id, index), params)
                for index, (kind, target, agent_id, params) in enumerate(questions)
            ]
        )

    async def execute(self, body: bytes, _headers: Headers, _query: str, caller: Caller) -> Answer:
        """`POST /api/v1/execute`: decide, approve, execute, audit."""
        asked = codec.loads(body, self._deepest)
        is_batch = type(asked) is not dict or "actions" in asked
        if is_batch:
            items = codec.batch(asked, self._largest_batch)
            actions = [codec.action(item, index) for index, item in enumerate(items)]
        else:
            actions = [codec.action(asked)]
        key_name = None
        if caller is not None:
            key_name = caller.name
            actions = [
                replace(
                    action, agent_id=_agent(caller, action.agent_id, index if is_batch else None)
                )
                for index, action in enumerate(actions)
            ]
        snapshot = self._snapshot()
        done = await self._enforcer().run(actions, snapshot, key_name)
        results = [result_json(result) for result in done]
        return 200, snapshot.headers, b"[%b]" % b",".join(results) if is_batch else results[0]

    async def audit(self, _body: bytes, _headers: Headers, query: str, _caller: Caller) -> Answer:
        """`GET /api/v1/audit`: records, oldest first."""
        pages = self._audit().pages(read_filter(query))
        # The first page is read before anything is sent, so that a failure still has its status.
        first: list[dict[str, Any]] = await anext(pages, [])
        second = await anext(pages, None)
        if second is None:
            return 200, (), codec.dumps(first)
        return 200, (), _streamed(first, second, pages)


def _agent(key: Key, agent_id: str, index: int | None = None) -> str:
    """The agent of an action that a key asks about, `agent_id` if it may speak for that one."""
    agent = key.agent_for(agent_id)
    if agent is None:
        place = "agent_id" if index is None else f"actions[{index}].agent_id"
        known = ", ".join(map(shown, key.agents))
        raise Forbidden(
            f"`{place}` {shown(agent_id)}: this key speaks for {known} only", "forbidden_agent"
        )
    return agent


async def _streamed(
    first: list[Any], second: list[Any], pages: AsyncIterator[list[Any]]
) -> AsyncIterator[bytes]:
    yield codec.dumps(first)[:-1]
    yield b"," + codec.dumps(second)[1:-1]
    async for page in pages:
        yield b"," + codec.dumps(page)[1:-1]
    yield b"]"


def read_filter(query: str) -> AuditFilter:
    """The filter of a query string; an empty value is left out.

    Raises:
        InvalidQuery: A parameter is unknown, repeated, or has an impossible value.
    """
    try:
        if not query.isascii():
            raise ValueError
        pairs = parse_qsl(query, keep_blank_values=True, errors="strict", max_num_fields=64)
    except ValueError:
        raise InvalidQuery(
            "the query string is not UTF-8 in percent encoding, or has over 64 parameters"
        ) from None
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


def _status(name: str, value: str) -> ResultStatus:
    try:
        return ResultStatus(value)
    except ValueError:
        known = ", ".join(ResultStatus)
        raise InvalidQuery(f"`{name}` {shown(value)} does not exist; use one of {known}") from None


def _number(largest: int) -> Callable[[str, str], int]:
    def read(name: str, value: str) -> int:
        if not (value.isascii() and value.isdigit() and len(value) < 20 and int(value) <= largest):
            raise InvalidQuery(f"`{name}` must be a number from 0 to {largest}, not {shown(value)}")
        return int(value)

    return read


def _time(name: str, value: str) -> int:
    match = _TIME.fullmatch(value)
    if match is not None:
        day, clock, fraction, _, sign, offset = match.groups()
        zone = f"{'-' if sign == '-' else '+'}{offset}" if offset else "+00:00"
        try:
            moment = datetime.fromisoformat(f"{day}T{clock}.{(fraction or '0')[:6]:0<6}{zone}")
            return (moment - _EPOCH) // _MICROSECOND
        except (ValueError, OverflowError):
            pass
    raise InvalidQuery(
        f"`{name}` must be a time as in `2026-01-31T18:00:00Z` (RFC 3339), not {shown(value)}"
    )


AUDIT_PARAMETERS: dict[str, tuple[str, Callable[[str, str], Any]]] = {
    "session_id": ("session_id", _text),
    "action_type": ("action_type", _text),
    "risk_level": ("risk_level", _risk_level),
    "result_status": ("result_status", _status),
    "agent_id": ("agent_id", _text),
    "matched_rule": ("matched_rule", _text),
    "since": ("since_us", _time),
    "until": ("until_us", _time),
    "after": ("after", _number(LARGEST_ID)),
    "before": ("before", _number(LARGEST_ID)),
    "limit": ("limit", _number(LARGEST_LIMIT)),
}
