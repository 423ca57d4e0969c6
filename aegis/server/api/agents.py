"""What agents and auditors call: health, decisions, executions, the audit."""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from hashlib import sha256
from typing import Any

from aegis import codec, wire, wire_batch
from aegis._version import __version__
from aegis.audit import AuditLog, AuditReader, Claim
from aegis.audit.filters import read_filter
from aegis.auth.keys import Key
from aegis.config import AuditDecisions, Settings
from aegis.errors import AegisError, Forbidden, InvalidBody, NotReady, StoreError, shown
from aegis.execution.enforcer import Enforcer, result_json
from aegis.policy.decision_point import Decider, Snapshot, decide_all, in_pieces
from aegis.server.http.headers import Headers, value_of
from aegis.server.http.messages import Caller, Header, Request, Response
from aegis_core import Action, Batch, Engine

__all__ = ["Api"]

_log = logging.getLogger("aegis.server")

LINES: Header = ("content-type", "application/x-ndjson")
LARGE_BYTES = 256 * 1024
"""Of a body that is read in a thread: the event loop would be held for milliseconds."""
_IDEMPOTENCY_KEY = re.compile(r"[!-~]{1,255}")


class Api:
    """The handlers.

    Args:
        settings: Limits.
        snapshot: The policy in force, at least as new as any that was answered for.
        decider: Decides by it.
        enforcer: Executes.
        audit: Writes the records.
        reader: Reads them.
        notices: What somebody should know although the server is ready; raises NotReady where it was
            told to stop.
    """

    def __init__(
        self,
        settings: Settings,
        snapshot: Callable[[], Snapshot],
        decider: Decider,
        enforcer: Callable[[], Enforcer],
        audit: Callable[[], AuditLog],
        reader: Callable[[], AuditReader],
        notices: Callable[[], dict[str, object]],
    ) -> None:
        self._deepest = settings.deepest_nesting
        self._largest_batch = settings.largest_batch
        self._snapshot = snapshot
        self._decider = decider
        self._at_once = decider.at_once
        self._enforcer = enforcer
        self._audit = audit
        self._notices = notices
        self._reader = reader
        self._notes_allowed = settings.audit_decisions is AuditDecisions.ALL

    def health(self, _request: Request) -> Response:
        """`GET /health`: the release that answers."""
        return Response(200, (), codec.dumps({"status": "ok", "version": __version__}))

    def live(self, _request: Request) -> Response:
        """`GET /health/live`: the process answers."""
        return Response(200, (), b'{"status":"ok"}')

    async def ready(self, _request: Request) -> Response:
        """`GET /health/ready`: decisions can be made and recorded."""
        notices = self._notices()
        self._enforcer()
        try:
            await self._audit().probe()
        except StoreError as error:
            raise NotReady(str(error)) from error
        self._snapshot()
        # The policy in force is a good one, so the server is ready; but somebody should know.
        return Response(200, (), codec.dumps({"status": "ok", **notices}))

    def evaluate(self, request: Request) -> Response | Awaitable[Response]:
        """`POST /api/v1/evaluate`: decide, without executing."""
        body, caller = request.body, request.caller
        snapshot = self._snapshot()
        engine = snapshot.engine
        if len(body) > LARGE_BYTES:
            return self._evaluate_aside(body, caller, snapshot)
        if caller is not None and caller.agents:
            return self._answer(
                snapshot, *self._begin(codec.loads(body, self._deepest), engine, caller)
            )
        if (
            body >= wire_batch.PLAIN_BATCH
        ):  # a single action is less, and a look at its start costs more
            plain = wire_batch.plain_batch(body, self._largest_batch, self._deepest)
            if plain is not None:
                batch = engine.begin_json(plain, self._decider.work(wire_batch.plain_params))
                return self._answer(snapshot, batch, is_batch=True)
        asked = codec.loads(body, self._deepest, is_exact=False)
        answer = engine.evaluate_object_json(asked, body, self._at_once)
        if answer is None:  # it is no plain action, or not one, or takes long
            return self._answer(snapshot, *self._begin(codec.exact(asked, body), engine))
        return Response(200, snapshot.headers, answer)

    def _begin(
        self, asked: Any, engine: Engine, key: Key | None = None
    ) -> tuple[Batch[bytes], bool]:
        """What decides about the actions of a body, and whether that has several."""
        is_batch = type(asked) is not dict or "actions" in asked
        if is_batch:
            items = wire.batch(asked, self._largest_batch)
            questions = [wire.question(item, index) for index, item in enumerate(items)]
        else:
            questions = [wire.question(asked)]
        if key is not None and key.agents:
            questions = [
                (kind, target, _agent(key, agent_id, index if is_batch else None), params)
                for index, (kind, target, agent_id, params) in enumerate(questions)
            ]
        return engine.begin_json(questions, self._decider.work()), is_batch

    def _answer(
        self, snapshot: Snapshot, batch: Batch[bytes], is_batch: bool
    ) -> Response | Awaitable[Response]:
        """The decisions of a batch: all by one policy, however long they take."""
        if not self._decider.is_decided_at_once(batch):
            return self._answer_later(snapshot, batch, is_batch)
        return Response(200, snapshot.headers, batch.result if is_batch else batch.result[1:-1])

    async def _answer_later(
        self, snapshot: Snapshot, batch: Batch[bytes], is_batch: bool
    ) -> Response:
        whole = await self._decider.aside(decide_all, batch)
        return Response(200, snapshot.headers, whole if is_batch else whole[1:-1])

    async def _evaluate_aside(self, body: bytes, caller: Caller, snapshot: Snapshot) -> Response:
        """`evaluate` where to read the body alone would hold the event loop for long."""

        def evaluated() -> bytes:
            if caller is None or not caller.agents:
                plain = wire_batch.plain_batch(body, self._largest_batch, self._deepest)
                if plain is not None:
                    work = self._decider.work(wire_batch.plain_params)
                    return decide_all(snapshot.engine.begin_json(plain, work))
            asked = codec.loads(body, self._deepest)
            batch, is_batch = self._begin(asked, snapshot.engine, caller)
            return decide_all(batch) if is_batch else decide_all(batch)[1:-1]

        return Response(200, snapshot.headers, await self._decider.aside(evaluated))

    async def evaluate_noted(self, request: Request) -> Response:
        """`POST /api/v1/evaluate` where decisions are recorded: decide and record."""
        caller = request.caller
        actions, is_batch = await self._actions(request.body, caller)
        snapshot = self._snapshot()
        decisions = await self._decider.decide(snapshot.engine, actions)
        noted = [
            place
            for place, decision in enumerate(decisions)
            if self._notes_allowed or not decision.is_allowed
        ]
        if noted:
            await self._enforcer().note(
                [actions[place] for place in noted],
                [decisions[place] for place in noted],
                snapshot.version,
                None if caller is None else caller.name,
            )
        answers = [
            wire.decision(action, decision)
            for action, decision in zip(actions, decisions, strict=True)
        ]
        return Response(
            200, snapshot.headers, b"[%b]" % b",".join(answers) if is_batch else answers[0]
        )

    async def execute(self, request: Request) -> Response:
        """`POST /api/v1/execute`: decide, approve, execute, audit."""
        body, headers, caller = request.body, request.headers, request.caller
        actions, is_batch = await self._actions(body, caller)
        key_name = None if caller is None else caller.name
        claim = None
        if "idempotency-key" in headers:
            claim = Claim(key_name or "", _idempotency_key(headers), sha256(body).digest())
        snapshot = self._snapshot()
        done = await self._enforcer().run(actions, snapshot, key_name, claim)
        results: list[bytes] = []
        async for piece in in_pieces(done):
            results += [result_json(result) for result in piece]
        return Response(
            200, snapshot.headers, b"[%b]" % b",".join(results) if is_batch else results[0]
        )

    async def _actions(self, body: bytes, caller: Caller) -> tuple[list[Action], bool]:
        """The actions of a body, as its caller may ask for them, and whether it is a batch."""
        if len(body) > LARGE_BYTES:
            return await self._decider.aside(self._read_actions, body, caller)
        return self._read_actions(body, caller)

    def _read_actions(self, body: bytes, caller: Caller) -> tuple[list[Action], bool]:
        asked = codec.loads(body, self._deepest)
        is_batch = type(asked) is not dict or "actions" in asked
        if is_batch:
            items = wire.batch(asked, self._largest_batch)
            actions = [wire.action(item, index) for index, item in enumerate(items)]
        else:
            actions = [wire.action(asked)]
        if caller is not None and caller.agents:
            actions = [
                replace(
                    action, agent_id=_agent(caller, action.agent_id, index if is_batch else None)
                )
                for index, action in enumerate(actions)
            ]
        return actions, is_batch

    async def audit_head(self, _request: Request) -> Response:
        """`GET /api/v1/audit/head`: the newest link of the chain."""
        return Response(200, (), codec.dumps(await self._reader().head()))

    async def audit(self, request: Request) -> Response:
        """`GET /api/v1/audit`: records, oldest first."""
        wanted, reader = read_filter(request.query), self._reader()
        as_lines = LINES[1] in (value_of(request.headers, "accept") or "")
        async with reader.turn():
            pages = reader.pages(wanted)
            # The first page is read before anything is sent, so that a failure has its status.
            first: list[dict[str, Any]] = await anext(pages, [])
            second = None if as_lines else await anext(pages, None)
        if as_lines:
            return Response(200, (), _lines(first, pages), LINES)
        if second is None:
            return Response(200, (), codec.dumps(first))
        return Response(200, (), _streamed(first, second, pages))


def _idempotency_key(headers: Headers) -> str:
    key = value_of(headers, "idempotency-key") or ""
    if not _IDEMPOTENCY_KEY.fullmatch(key):
        raise InvalidBody(
            "`Idempotency-Key` must be one text of 1 to 255 visible ASCII characters",
            "invalid_idempotency_key",
        )
    return key


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


async def _lines(first: list[Any], pages: AsyncIterator[list[Any]]) -> AsyncIterator[bytes]:
    page: list[Any] | None = first
    try:
        while page is not None:
            if page:
                yield b"".join(codec.dumps(record) + b"\n" for record in page)
            page = await anext(pages, None)
    except AegisError as error:
        # Its status has been sent; lines that only end would look as if they were all.
        _log.warning("a streamed audit is not whole: %s", error)
        yield codec.dumps({"error": str(error), "code": error.code}) + b"\n"
