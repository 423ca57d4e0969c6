"""The ASGI front: the kernel as any ASGI server calls it."""

from __future__ import annotations

import asyncio
import logging
from asyncio import current_task
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from functools import lru_cache
from itertools import chain
from time import perf_counter_ns
from typing import Any

from aegis.errors import NotReady
from aegis.server.http.body import (
    PLAIN_JSON,
    check_declared,
    declared_length,
    incomplete_body,
    oversized_body,
)
from aegis.server.http.connections import UNREAD_TIMEOUT_S
from aegis.server.http.headers import HeaderNames, check_headers_size
from aegis.server.http.kernel import (
    MAX_WHOLE_BYTES,
    NO_RESPONSE,
    Kernel,
    call_hook,
    chunks_of,
    response_of,
)
from aegis.server.http.messages import NO_PARAMETERS, Header, Request, Response
from aegis.server.http.routing import UNMATCHED, Route

__all__ = ["Asgi"]

Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Send = Callable[[Mapping[str, Any]], Awaitable[None]]
RawHeader = tuple[bytes, bytes]

_log = logging.getLogger("aegis.server")

_LENGTHS: list[RawHeader] = [(b"content-length", b"%d" % length) for length in range(1024)]


class Asgi(Kernel):
    """The kernel as an ASGI application."""

    _loop: Any = object()  # where requests are served: nowhere so far

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Serve one request, or the life cycle."""
        if scope["type"] != "http":
            await self._serve_other(scope, receive, send)
            return
        headers = _Headers(scope["headers"])
        joined = headers.joined_names()
        names = self._names.get(joined) or self._names_of(joined)
        request_id = self._request_id(headers) if names.has_request_id else next(self._request_ids)
        method, head = scope["method"], _Head(scope)
        route, parameters, response = UNMATCHED, NO_PARAMETERS, NO_RESPONSE
        started_ns = 0 if self._on_end is None else perf_counter_ns()
        try:
            try:
                found = self._by_path.get((method, head.path))
                if found is None:
                    root = scope.get("root_path", "")
                    route, parameters = self.routes.match(method, head.path, root)
                else:
                    route = found
                if not names.is_usual:
                    check_headers_size(headers.size())
                caller = self._admit(route.permission, headers, names, head)
                takes_body = route.max_body_bytes
                body = (
                    await self._receive_body(receive, headers, names, route) if takes_body else b""
                )
                is_asked = not takes_body or route.takes_query
                query = scope["query_string"].decode("latin-1") if is_asked else ""
                if route.needs_service and not self._lifecycle.is_open:
                    await self._lifecycle.open()
                answer = route.handler(
                    Request(route.name, body, headers, query, caller, request_id, parameters)
                )
                if isinstance(answer, Response):
                    response = answer
                else:
                    response = await response_of(method, answer, lambda: _client_left(receive))
            except Exception as error:  # noqa: BLE001 - the edge: no failure may end the connection unsaid
                response = self._refusal(error, request_id)
            await _send(receive, send, method, response, request_id)
        finally:
            if self._on_end is not None:
                call_hook(self._on_end, route, method, response.status, started_ns)

    async def _receive_body(
        self, receive: Receive, headers: _Headers, names: HeaderNames, route: Route
    ) -> bytes:
        """The whole body, within its limit and its time."""
        if names.is_encoded or headers.get_all("content-type") != PLAIN_JSON:
            check_declared(route, headers)
        lengths = headers.get_all("content-length")
        declared = -1
        if lengths:
            text = ", ".join(lengths)
            declared = self._known_lengths.get(text) or declared_length(text, route)
        task = current_task(self._loop) or self._start()
        self._deadlines.waiting[task] = self._deadlines.tick
        try:
            message = await receive()
            if message["type"] != "http.request":
                raise incomplete_body()
            body: bytes = message.get("body", b"")
            # granian says that more comes even if the whole body is here, and asking for the rest
            # would cost as much again: the declared length settles it unless the body is chunked
            # (RFC 9112 section 6.3).
            if message.get("more_body", False) and (len(body) != declared or names.is_chunked):
                body = await _rest(body, receive, route)
        except asyncio.CancelledError:
            self._deadlines.check(task)
            raise
        finally:
            del self._deadlines.waiting[task]
        if len(body) > route.max_body_bytes:
            raise oversized_body(route)
        return body

    def _start(self) -> asyncio.Task[Any] | None:
        """The present task, on a loop other than the one that was served before."""
        self._loop = asyncio.get_running_loop()
        self._deadlines.start(self._loop)
        return current_task()

    async def _serve_other(self, scope: Any, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1003})

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


class _Head:
    """What a request says besides headers and body, from its scope."""

    __slots__ = ("_scope", "authority", "path")

    def __init__(self, scope: Mapping[str, Any]) -> None:
        self._scope = scope
        self.path: str = scope["path"]
        self.authority: str | None = None
        if not self.path.startswith("/"):
            self._split_target()

    def _split_target(self) -> None:
        # Some servers hand an absolute target over as the path (uvicorn by h11 does).
        scheme, separator, rest = self.path.partition("://")
        if separator and scheme.lower() in ("http", "https"):
            self.authority, slash, path = rest.partition("/")
            self.path = slash + path

    @property
    def client(self) -> str:
        client = self._scope.get("client")
        return f"{client[0]}:{client[1]}" if client else ""

    @property
    def http_version(self) -> str:
        return str(self._scope["http_version"])


class _Headers:
    """Headers as the kernel reads them; what it does not ask for is not decoded."""

    __slots__ = ("_last", "_sent")

    def __init__(self, sent: Sequence[RawHeader]) -> None:
        self._sent = sent
        self._last = dict(sent)

    def get_all(self, name: str) -> list[str]:
        raw = name.encode()
        value = self._last.get(raw)
        if value is None:
            return []
        if len(self._last) == len(self._sent):  # none is repeated
            return [value.decode("latin-1")]
        return [value.decode("latin-1") for known, value in self._sent if known == raw]

    def __contains__(self, name: str) -> bool:
        return name.encode() in self._last

    def joined_names(self) -> str:
        """All names in one text, with line feeds between them."""
        return b"\n".join(self._last).decode("latin-1")

    def size(self) -> int:
        """Of all names and values, in bytes."""
        return len(b"".join(chain.from_iterable(self._sent)))


@lru_cache(256)
def _raw(headers: tuple[Header, ...]) -> tuple[RawHeader, ...]:
    return tuple((name.encode(), value.encode()) for name, value in headers)


def _length(size: int) -> RawHeader:
    return (b"content-length", b"%d" % size)


async def _send(
    receive: Receive, send: Send, method: str, response: Response, request_id: str
) -> None:
    content = response.body
    headers = [(b"x-request-id", request_id.encode()), *_raw(tuple(response.headers))]
    if content is not None:
        headers += _raw((response.content_type,))
    if isinstance(content, bytes):
        size = len(content)
        headers.append(_LENGTHS[size] if size < len(_LENGTHS) else _length(size))
    await send({"type": "http.response.start", "status": response.status, "headers": headers})
    if content is None or method == "HEAD":
        await send({"type": "http.response.body", "body": b""})
    elif isinstance(content, bytes) and len(content) <= MAX_WHOLE_BYTES:
        await send({"type": "http.response.body", "body": content})
    else:
        chunks = chunks_of(content) if isinstance(content, bytes) else content
        await _send_chunks(receive, send, chunks)


async def _send_chunks(receive: Receive, send: Send, chunks: AsyncIterator[bytes]) -> None:
    gone = asyncio.create_task(_client_left(receive))
    try:
        async for chunk in chunks:
            if gone.done():
                return
            message = {"type": "http.response.body", "body": chunk, "more_body": True}
            await asyncio.wait_for(send(message), UNREAD_TIMEOUT_S)
    except TimeoutError:
        _log.warning("a client that took nothing for %g s was let go", UNREAD_TIMEOUT_S)
        return  # without an end, so that what it has cannot be taken for whole
    finally:
        gone.cancel()
    await send({"type": "http.response.body", "body": b""})


async def _client_left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _rest(start: bytes, receive: Receive, route: Route) -> bytes:
    limit = route.max_body_bytes
    parts = [start]
    size = len(start)
    while True:
        if size > limit:
            raise oversized_body(route)
        message = await receive()
        if message["type"] != "http.request":
            raise incomplete_body()
        part = message.get("body", b"")
        parts.append(part)
        size += len(part)
        if not message.get("more_body", False):
            if size > limit:
                raise oversized_body(route)
            return b"".join(parts)
