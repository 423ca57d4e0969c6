"""The ASGI kernel: life cycle, route table, limits while reading, errors to answers."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import re
from asyncio import current_task
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from aegis.auth import Gate
from aegis.codec import dumps
from aegis.errors import (
    AegisError,
    BodyTimeout,
    BodyTooLarge,
    InvalidBody,
    MethodNotAllowed,
    NotFound,
    NotReady,
    PolicyError,
    RequestError,
    UnsupportedMediaType,
    shown,
)
from aegis.keys import Key, Permission

__all__ = ["Answer", "App", "Caller", "Headers", "Lifecycle", "Route"]

_log = logging.getLogger("aegis.server")

Header = tuple[bytes, bytes]
Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Send = Callable[[Mapping[str, Any]], Awaitable[None]]

JSON: Header = (b"content-type", b"application/json")
_SANE_REQUEST_ID = re.compile(rb"[!-~]{1,128}")
_RETRY_AFTER: Header = (b"retry-after", b"1")
_REQUEST_ID = b"x-request-id"
_LENGTH = b"content-length"
_CLOSE: Header = (b"connection", b"close")


Headers = Mapping[bytes, bytes]
"""Names in lower case; the values of a repeated one joined by commas."""

Caller = Key | None
"""Who asks; None where no key is needed."""

Answer = tuple[int, Sequence[Header], "bytes | AsyncIterator[bytes]"]
"""Status, headers besides those that every answer has, and the body: whole, or as it comes."""

Handler = Callable[[bytes, Headers, bytes, Caller], "Answer | Awaitable[Answer]"]
"""Called with the body, the headers, the raw query string and who asks; may raise any `AegisError`."""


@dataclass(frozen=True, slots=True)
class Route:
    """What answers a method on a path.

    Attributes:
        handler: Answers.
        permission: What a key must have to call it; None: no key is needed.
        largest_body_bytes: 0: it takes no body.
        media_types: What its body may be declared as, besides types that end in `+json`.
        needs_service: Whether policy and audit must be open.
    """

    handler: Handler
    permission: Permission | None
    largest_body_bytes: int = 0
    media_types: frozenset[bytes] = frozenset((b"application/json", b"text/json"))
    needs_service: bool = True


@dataclass(slots=True)
class Lifecycle:
    """How the application is opened and closed; opening is tried again after a failure."""

    opening: Callable[[], Awaitable[None]]
    stopping: Callable[[], None]
    closing: Callable[[], Awaitable[None]]
    is_open: bool = False
    is_closing: bool = False
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def open(self) -> None:
        """Open once, whoever asks first.

        Raises:
            NotReady: It cannot be opened, and why.
        """
        async with self.lock:
            if self.is_open:
                return
            if self.is_closing:
                raise NotReady("the server is stopping")
            try:
                await self.opening()
            except AegisError as error:
                raise NotReady(str(error)) from error
            self.is_open = True

    async def close(self) -> None:
        """Close what was opened."""
        self.is_closing = True
        async with self.lock:
            if self.is_open:
                self.is_open = False
                await self.closing()


class _Deadlines:
    """Cancels tasks that wait for a body for too long.

    One timer serves all of them: a timer each would cost more than a decision does. A task is
    cancelled between `timeout_s` and an eighth more.

    Attributes:
        waiting: Tasks that wait, and the tick in which each began.
        tick: The present tick.
    """

    _TICKS = 8

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self.waiting: dict[asyncio.Task[Any] | None, int] = {}
        self.tick = 0
        self._passed: set[asyncio.Task[Any] | None] = set()
        self._loop: asyncio.AbstractEventLoop | None = None

    def begin(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to tick, on the loop that the tasks run on."""
        self._loop = loop
        loop.call_later(self.timeout_s / self._TICKS, self._next, loop)

    def end(self) -> None:
        """Tick no more."""
        self._loop = None

    def has_passed(self, task: asyncio.Task[Any] | None) -> bool:
        """Whether it is for its deadline that a task was cancelled; asked once."""
        if task in self._passed:
            self._passed.remove(task)
            return True
        return False

    def _next(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._loop is not loop:
            return
        self.tick += 1
        for task, begun in self.waiting.items():
            if task is not None and self.tick - begun > self._TICKS and task not in self._passed:
                self._passed.add(task)
                task.cancel()
        loop.call_later(self.timeout_s / self._TICKS, self._next, loop)


_LENGTHS: list[Header] = [(_LENGTH, b"%d" % length) for length in range(1024)]


class App:
    """An ASGI application.

    Args:
        routes: What answers each (method, path).
        gate: Admits callers.
        lifecycle: Opens and closes what the routes need.
        body_timeout_s: For a body to arrive.
    """

    def __init__(
        self,
        routes: Mapping[tuple[str, str], Route],
        gate: Gate,
        lifecycle: Lifecycle,
        *,
        body_timeout_s: float,
    ) -> None:
        self._routes = dict(routes)
        self._admit = gate.admit
        self._lifecycle = lifecycle
        self._deadlines = _Deadlines(body_timeout_s)
        self._loop: Any = object()  # where requests are served: nowhere so far
        prefix = os.urandom(6).hex().encode()
        self._request_ids = map((prefix + b"-%x").__mod__, itertools.count(1))
        for (method, path), route in routes.items():
            if method == "GET":
                self._routes.setdefault(("HEAD", path), route)

    async def open(self) -> None:
        """Open policy and audit now rather than with the lifespan or the first request.

        Raises:
            NotReady: They cannot be opened, and why.
        """
        await self._lifecycle.open()

    def stop(self) -> None:
        """Begin to stop, before the server does: no new executions, a deadline for those that run."""
        self._lifecycle.stopping()

    async def __call__(  # noqa: C901 - see below: calls are what it saves
        self, scope: Any, receive: Receive, send: Send
    ) -> None:
        """Serve one request, or the life cycle."""
        if scope["type"] != "http":
            await self._serve_other(scope, receive, send)
            return
        # The way of every request: what stands here costs more than the decision, so each line
        # counts, and nothing is taken out into a coroutine of its own.
        sent = scope["headers"]
        headers = dict(sent)
        if len(headers) != len(sent):
            headers = _joined(sent)
        request_id = headers.get(b"x-request-id")
        if request_id is None or _SANE_REQUEST_ID.fullmatch(request_id) is None:
            request_id = next(self._request_ids)
        method = scope["method"]
        try:
            route = self._routes.get((method, scope["path"])) or self._route(scope)
            caller = self._admit(route.permission, headers, scope.get("client"))
            body = b""
            largest = route.largest_body_bytes
            if largest:
                if headers.get(b"content-type") != b"application/json":
                    _check_media_type(route, headers)
                length = headers.get(b"content-length")
                declared = -1 if length is None else _declared_size(length, largest)
                task = current_task(self._loop) or self._begin()
                self._deadlines.waiting[task] = self._deadlines.tick
                try:
                    message = await receive()
                    if message["type"] != "http.request":
                        raise _broken_off()
                    body = message.get("body", b"")
                    # granian says that more comes even where the whole body is here, and asking
                    # for the rest would cost as much again: the declared length settles it
                    # unless the body is chunked (RFC 9112 section 6.3).
                    if message.get("more_body", False) and (
                        len(body) != declared or b"transfer-encoding" in headers
                    ):
                        body = await _rest(body, receive, largest)
                except asyncio.CancelledError:
                    if not self._deadlines.has_passed(task):
                        raise
                    raise self._late(task) from None
                finally:
                    del self._deadlines.waiting[task]
                if len(body) > largest:
                    raise _too_large(largest)
            if route.needs_service and not self._lifecycle.is_open:
                await self._lifecycle.open()
            answer = route.handler(body, headers, scope["query_string"], caller)
            status, more, content = answer if type(answer) is tuple else await answer  # type: ignore[misc]
        except AegisError as error:
            status, more, content = _refusal(error)
        except Exception:  # noqa: BLE001 - the edge: a defect must not end the connection unsaid
            _log.exception("request %s failed by a defect", request_id.decode())
            defect = AegisError("a defect of the server; its log has this request's id")
            status, more, content = _refusal(defect)
        if type(content) is not bytes or method == "HEAD":
            headers_out = [JSON, (_REQUEST_ID, request_id), *more]
            await _send_other(receive, send, status, headers_out, content, method)
            return
        size = len(content)
        length_out = _LENGTHS[size] if size < len(_LENGTHS) else (_LENGTH, b"%d" % size)
        headers_out = [JSON, (_REQUEST_ID, request_id), length_out, *more]
        await send({"type": "http.response.start", "status": status, "headers": headers_out})
        await send({"type": "http.response.body", "body": content})

    def _begin(self) -> asyncio.Task[Any] | None:
        """The present task, where the loop is not the one that was served before."""
        self._loop = asyncio.get_running_loop()
        self._deadlines.begin(self._loop)
        return current_task()

    def _late(self, task: asyncio.Task[Any] | None) -> BodyTimeout:
        if task is not None:
            task.uncancel()
        said = f"the body did not arrive within {self._deadlines.timeout_s:g} s"
        return BodyTimeout(said, headers=(_CLOSE,))

    async def _serve_other(self, scope: Any, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1003})

    def _route(self, scope: Any) -> Route:
        """The route of a request that the table has not as it stands."""
        method, path = scope["method"], scope["path"]
        root = scope.get("root_path")
        if root and path.startswith(root):  # mounted below another application
            path = path[len(root) :]
            route = self._routes.get((method, path))
            if route is not None:
                return route
        of_path = [route.permission for (_, known), route in self._routes.items() if known == path]

        def unknown(*_: object) -> Answer:
            raise self._unknown(method, path)

        # Whoever may not call is told that, and nothing about what there is.
        permission = None if None in of_path else Permission.DESCRIBE
        return Route(unknown, permission, needs_service=False)

    def _unknown(self, method: str, path: str) -> RequestError:
        allowed = sorted(known for known, of in self._routes if of == path)
        if not allowed:
            return NotFound(f"no such path: {shown(path)}")
        names = ", ".join(allowed)
        return MethodNotAllowed(
            f"{shown(method)} is not allowed here; use {names}",
            headers=((b"allow", names.encode()),),
        )

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            await self._lifecycle.open()
        except NotReady as error:
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        except Exception as error:  # noqa: BLE001 - the edge: see above
            _log.exception("the server cannot start")
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        self._deadlines.end()
        await self._lifecycle.close()
        await send({"type": "lifespan.shutdown.complete"})


def _joined(sent: Iterable[Header]) -> dict[bytes, bytes]:
    """Headers of which some are repeated, their values joined (RFC 9110 section 5.3).

    So a second value never hides the first: two keys, hosts or lengths are none.
    """
    joined: dict[bytes, bytes] = {}
    for name, value in sent:
        joined[name] = joined[name] + b", " + value if name in joined else value
    return joined


async def _send_other(
    receive: Receive,
    send: Send,
    status: int,
    headers: list[Header],
    content: bytes | AsyncIterator[bytes],
    method: str,
) -> None:
    """Send an answer that is streamed, or whose body is left out."""
    if isinstance(content, bytes):
        headers.append((_LENGTH, b"%d" % len(content)))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    if method != "HEAD" and not isinstance(content, bytes):
        gone = asyncio.create_task(_hung_up(receive))
        try:
            async for part in content:
                if gone.done():
                    return
                await send({"type": "http.response.body", "body": part, "more_body": True})
        finally:
            gone.cancel()
    await send({"type": "http.response.body", "body": b""})


async def _hung_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _declared_size(declared: bytes, largest: int) -> int:
    """The size that a body is declared to have, within its limit."""
    if not declared.isdigit():
        raise InvalidBody(f"content-length {shown(declared.decode('latin-1'))} is no number")
    # A number of 20 digits is too large whatever they are.
    size = int(declared) if len(declared) < 20 else largest + 1
    if size > largest:
        raise _too_large(largest)
    return size


def _check_media_type(route: Route, headers: Mapping[bytes, bytes]) -> None:
    declared = headers.get(b"content-type")
    if declared is None:
        return
    media_type, _, parameters = declared.lower().partition(b";")
    media_type = media_type.strip()
    if media_type in route.media_types or (
        media_type.startswith(b"application/") and media_type.endswith(b"+json")
    ):
        charset = parameters.partition(b"charset=")[2].partition(b";")[0].strip(b' "')
        if charset in (b"", b"utf-8", b"utf8"):
            return
    known = ", ".join(sorted(known.decode() for known in route.media_types))
    raise UnsupportedMediaType(
        f"a body of {shown(declared.decode('latin-1'))} is not taken here; send {known} in UTF-8"
    )


async def _rest(start: bytes, receive: Receive, largest: int) -> bytes:
    parts = [start]
    size = len(start)
    while True:
        if size > largest:
            raise _too_large(largest)
        message = await receive()
        if message["type"] != "http.request":
            raise _broken_off()
        part = message.get("body", b"")
        parts.append(part)
        size += len(part)
        if not message.get("more_body", False):
            if size > largest:
                raise _too_large(largest)
            return b"".join(parts)


def _broken_off() -> InvalidBody:
    # The client has gone, or its chunks make no sense: who is still there gets to know.
    return InvalidBody("the body ends before its end", headers=(_CLOSE,))


def _too_large(largest: int) -> BodyTooLarge:
    return BodyTooLarge(f"the body is over {largest} bytes", headers=(_CLOSE,))


def _refusal(error: AegisError) -> Answer:
    members: dict[str, Any] = {"error": str(error), "code": error.code}
    headers: tuple[Header, ...] = ()
    if isinstance(error, RequestError):
        headers = error.headers
    if isinstance(error, PolicyError):
        members["error"] = f"the policy is refused: {error}"
        members["problems"] = problems_json(error.problems)
    if error.status == 503:
        headers = (*headers, _RETRY_AFTER)
    return error.status, headers, dumps(members)


def problems_json(problems: Iterable[Any]) -> list[dict[str, Any]]:
    """Problems or warnings of a policy, as answers and commands show them."""
    return [
        {
            "line": problem.line,
            "rule": problem.rule,
            "key": problem.key,
            "message": problem.message,
        }
        for problem in problems
    ]
