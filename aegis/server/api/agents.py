"""What agents and auditors call: health, decisions, executions, the audit."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from hashlib import sha256
from typing import Any

from aegis import codec, wire, wire_batch
from aegis._version import __version__
from aegis.audit import AuditLog, AuditReader, Claim, Operation
from aegis.audit.filters import read_filter
from aegis.config import Settings
from aegis.errors import AegisError, InvalidBody, NotReady, StoreError
from aegis.execution.decide import ActionService
from aegis.execution.executors import result_json
from aegis.execution.records import RequestContext
from aegis.policy.decision_point import PIECE, Snapshot
from aegis.server.http.headers import value_of
from aegis.server.http.messages import Header, Request, Response
from aegis.wire import Actions
from aegis.wire_batch import PLAIN_BATCH

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
        actions: Decides about actions, and executes them.
        audit: Writes the records.
        reader: Reads them.
        notices: What somebody should know although the server is ready; raises NotReady where it was
            told to stop.
    """

    def __init__(
        self,
        settings: Settings,
        actions: ActionService,
        audit: Callable[[], AuditLog],
        reader: Callable[[], AuditReader],
        notices: Callable[[], dict[str, object]],
    ) -> None:
        self._deepest = settings.max_nesting
        self._largest_batch = settings.max_batch
        self._actions = actions
        self._decide_object = actions.decide_object
        self._snapshot = actions.snapshot
        self._audit = audit
        self._notices = notices
        self._reader = reader

    def health(self, _request: Request) -> Response:
        """`GET /health`: the release that answers."""
        return Response(200, (), codec.dumps({"status": "ok", "version": __version__}))

    def live(self, _request: Request) -> Response:
        """`GET /health/live`: the process answers."""
        return Response(200, (), b'{"status":"ok"}')

    async def ready(self, _request: Request) -> Response:
        """`GET /health/ready`: decisions can be made and recorded."""
        notices = self._notices()
        self._actions.refuse_when_not_ready()
        try:
            await self._audit().probe()
        except StoreError as error:
            raise NotReady(str(error)) from error
        # The policy in force is a good one, so the server is ready; but somebody should know.
        return Response(200, (), codec.dumps({"status": "ok", **notices}))

    def evaluate(self, request: Request) -> Response | Awaitable[Response]:
        """`POST /api/v1/evaluate`: decide, without executing."""
        body, caller = request.body, request.caller
        snapshot = self._snapshot()
        if len(body) > LARGE_BYTES:
            answer = self._actions.decide_in_thread(
                partial(wire_batch.read_questions, body, self._largest_batch, self._deepest),
                caller,
                snapshot,
            )
            return _when_decided(snapshot, answer)
        # A single action is less than the start of a batch, and that costs less than to look for it.
        if body < PLAIN_BATCH or (
            (questions := wire_batch.read_plain(body, self._largest_batch, self._deepest)) is None
        ):
            value = codec.loads_inexact(body, self._deepest)
            decided = self._decide_object(value, body, caller, snapshot)
            if decided is not None:
                return Response(200, snapshot.headers, decided)
            questions = wire.read_questions(codec.exact(value, body), self._largest_batch)
        decisions = self._actions.decide(questions, caller, snapshot)
        if isinstance(decisions, bytes):
            return Response(200, snapshot.headers, decisions)
        return _when_decided(snapshot, decisions)

    async def evaluate_recorded(self, request: Request) -> Response:
        """`POST /api/v1/evaluate` if decisions are recorded: decide and record."""
        actions = await self._read(request.body)
        snapshot = self._snapshot()
        context = RequestContext(
            snapshot, request.caller, Operation.EVALUATE, _sent_request_id(request)
        )
        decisions = await self._actions.evaluate(actions, context)
        answers = [
            wire.decision(action, decision)
            for action, decision in zip(actions.items, decisions, strict=True)
        ]
        return Response(200, snapshot.headers, _list_or_one(answers, actions))

    async def execute(self, request: Request) -> Response:
        """`POST /api/v1/execute`: decide, approve, execute, audit."""
        body = request.body
        actions = await self._read(body) if len(body) > LARGE_BYTES else self._read_now(body)
        claim = _claim(request)
        snapshot = self._snapshot()
        context = RequestContext(snapshot, request.caller, request_id=_sent_request_id(request))
        results = await self._actions.execute(actions, context, claim)
        answers: list[bytes] = []
        for result in results:
            answers.append(result_json(result))
            if not len(answers) % PIECE:
                await asyncio.sleep(0)
        return Response(200, snapshot.headers, _list_or_one(answers, actions))

    async def _read(self, body: bytes) -> Actions:
        """The actions of a body that may be large."""
        if len(body) > LARGE_BYTES:
            return await self._actions.read_in_thread(self._read_now, body)
        return self._read_now(body)

    def _read_now(self, body: bytes) -> Actions:
        return wire.read_actions(codec.loads(body, self._deepest), self._largest_batch)

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


async def _when_decided(snapshot: Snapshot, decisions: Awaitable[bytes]) -> Response:
    return Response(200, snapshot.headers, await decisions)


def _list_or_one(items: list[bytes], actions: Actions) -> bytes:
    return b"[%b]" % b",".join(items) if actions.is_batch else items[0]


def _claim(request: Request) -> Claim | None:
    """The request by its `Idempotency-Key`; None: it has none."""
    headers, caller = request.headers, request.caller
    if "idempotency-key" not in headers:
        return None
    key = value_of(headers, "idempotency-key") or ""
    if not _IDEMPOTENCY_KEY.fullmatch(key):
        raise InvalidBody(
            "`Idempotency-Key` must be one text of 1 to 255 visible ASCII characters",
            "invalid_idempotency_key",
        )
    return Claim("" if caller is None else caller.name, key, sha256(request.body).digest())


def _sent_request_id(request: Request) -> str | None:
    """The id of a request, if its client knows it by one: those that we make up are not recorded."""
    return request.request_id if "x-request-id" in request.headers else None


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
