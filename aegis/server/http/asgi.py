"""The ASGI front: the kernel as any ASGI server calls it."""

from __future__ import annotations

import asyncio
import logging
from asyncio import current_task
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any

from aegis.errors import NotReady
from aegis.server.http.connections import UNREAD_TIMEOUT_S
from aegis.server.http.kernel import (
    LARGEST_WHOLE_BYTES,
    PLAIN_JSON,
    Header,
    Kernel,
    Route,
    broken_off,
    check_declared,
    check_headers_size,
    declared_size,
    made_for,
    pieces_of,
    too_large,
)

__all__ = ["Asgi"]

Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Send = Callable[[Mapping[str, Any]], Awaitable[None]]
RawHeader = tuple[bytes, bytes]

_log = logging.getLogger("aegis.server")

_JSON: RawHeader = (b"content-type", b"application/json")
_LENGTHS: list[RawHeader] = [(b"content-length", b"%d" % length) for length in range(1024)]


class Asgi(Kernel):
    """The kernel as an ASGI application."""

    _loop: Any = object()  # where requests are served: nowhere so far

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:  # noqa: C901 - below
        """Serve one request, or the life cycle."""
        if scope["type"] != "http":
            await self._serve_other(scope, receive, send)
            return
        # The way of every request: what stands here costs more than the decision, so each line
        # counts, and nothing is taken out into a coroutine of its own.
        headers = _Headers(scope["headers"])
        joined = headers.joined_names()
        names = self._names.get(joined) or self._names_of(joined)
        request_id = self._request_id(headers) if names.has_request_id else next(self._request_ids)
        method = scope["method"]
        try:
            if not names.is_usual:
                check_headers_size(headers.size())
            head = _Head(scope)
            path = head.path
            route = self._routes.get((method, path)) or self._route(
                method, path, scope.get("root_path", "")
            )
            caller = self._admit(route.permission, headers, names, head)
            if route.largest_body_bytes and (
                names.is_encoded or headers.get_all("content-type") != PLAIN_JSON
            ):
                check_declared(route, headers)
            body = b""
            largest = route.largest_body_bytes
            if largest:
                length = headers.get_all("content-length")
                declared = -1
                if length:
                    said = ", ".join(length)
                    declared = self._sizes.get(said) or declared_size(said, route)
                task = current_task(self._loop) or self._begin()
                self._deadlines.waiting[task] = self._deadlines.tick
                try:
                    message = await receive()
                    if message["type"] != "http.request":
                        raise broken_off()
                    body = message.get("body", b"")
                    # granian says that more comes even where the whole body is here, and asking
                    # for the rest would cost as much again: the declared length settles it
                    # unless the body is chunked (RFC 9112 section 6.3).
                    if message.get("more_body", False) and (
                        len(body) != declared or names.is_chunked
                    ):
                        body = await _rest(body, receive, route)
                except asyncio.CancelledError:
                    self._end_of(task)
                    raise
                finally:
                    del self._deadlines.waiting[task]
                if len(body) > largest:
                    raise too_large(route)
            query = (
                scope["query_string"].decode("latin-1") if not largest or route.takes_query else ""
            )
            if route.needs_service and not self._lifecycle.is_open:
                await self._lifecycle.open()
            answer = route.handler(body, headers, query, caller)
            made = (
                answer
                if isinstance(answer, tuple)
                else await made_for(method, answer, lambda: _hung_up(receive))
            )
            status, more, content = made
        except Exception as error:  # noqa: BLE001 - the edge: no failure may end the connection unsaid
            status, more, content = self._refusal(error, request_id)
        sent = [(b"x-request-id", request_id.encode()), *_raw(tuple(more))]
        if isinstance(content, bytes):
            sent.append(_JSON)
        if type(content) is not bytes or len(content) > LARGEST_WHOLE_BYTES or method == "HEAD":
            await _send_other(receive, send, status, sent, content, method)
            return
        size = len(content)
        sent.append(_LENGTHS[size] if size < len(_LENGTHS) else _length(size))
        await send({"type": "http.response.start", "status": status, "headers": sent})
        await send({"type": "http.response.body", "body": content})

    def _begin(self) -> asyncio.Task[Any] | None:
        """The present task, where the loop is not the one that was served before."""
        self._loop = asyncio.get_running_loop()
        self._deadlines.begin(self._loop)
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


async def _send_other(
    receive: Receive,
    send: Send,
    status: int,
    headers: list[RawHeader],
    content: bytes | AsyncIterator[bytes],
    method: str,
) -> None:
    """Send an answer that is streamed or large, or whose body is left out."""
    if isinstance(content, bytes):
        headers.append(_length(len(content)))
        content = pieces_of(content)
    await send({"type": "http.response.start", "status": status, "headers": headers})
    if method != "HEAD":
        gone = asyncio.create_task(_hung_up(receive))
        try:
            async for part in content:
                if gone.done():
                    return
                message = {"type": "http.response.body", "body": part, "more_body": True}
                await asyncio.wait_for(send(message), UNREAD_TIMEOUT_S)
        except TimeoutError:
            _log.warning("a client that took nothing for %g s was let go", UNREAD_TIMEOUT_S)
            return  # without an end, so that what it has cannot be taken for whole
        finally:
            gone.cancel()
    await send({"type": "http.response.body", "body": b""})


async def _hung_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _rest(start: bytes, receive: Receive, route: Route) -> bytes:
    largest = route.largest_body_bytes
    parts = [start]
    size = len(start)
    while True:
        if size > largest:
            raise too_large(route)
        message = await receive()
        if message["type"] != "http.request":
            raise broken_off()
        part = message.get("body", b"")
        parts.append(part)
        size += len(part)
        if not message.get("more_body", False):
            if size > largest:
                raise too_large(route)
            return b"".join(parts)
