"""The ASGI kernel: life cycle, route table, limits while reading, errors to answers."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from aegis.auth import Gate, Role
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

__all__ = ["App", "Request", "Response", "Route"]

_log = logging.getLogger("aegis.server")

Header = tuple[bytes, bytes]
Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Send = Callable[[Mapping[str, Any]], Awaitable[None]]

JSON: Header = (b"content-type", b"application/json")
_SANE_REQUEST_ID = re.compile(rb"[!-~]{1,128}")
_RETRY_AFTER: Header = (b"retry-after", b"1")
_CLOSE: Header = (b"connection", b"close")


class Request:
    """One request, as handlers see it.

    Attributes:
        headers: Names in lower case; of a repeated one, the last.
        query: The raw query string.
        body: Whole, within its limit; empty where the route takes none.
    """

    __slots__ = ("body", "headers", "query")

    def __init__(self, headers: Mapping[bytes, bytes], query: bytes, body: bytes) -> None:
        self.headers = headers
        self.query = query
        self.body = body


@dataclass(slots=True)
class Response:
    """One answer.

    Attributes:
        body: The whole of it, or its parts as they come.
        headers: Besides those that every answer has.
    """

    body: bytes | AsyncIterator[bytes]
    headers: tuple[Header, ...] = ()
    status: int = 200


Handler = Callable[[Request], "Response | Awaitable[Response]"]


@dataclass(frozen=True, slots=True)
class Route:
    """What answers a method on a path.

    Attributes:
        handler: Answers; may raise any `AegisError`.
        role: Who may call it.
        largest_body_bytes: 0: it takes no body.
        media_types: What its body may be declared as, besides types that end in `+json`.
        needs_service: Whether policy and audit must be open.
    """

    handler: Handler
    role: Role = Role.USER
    largest_body_bytes: int = 0
    media_types: frozenset[bytes] = frozenset((b"application/json", b"text/json"))
    needs_service: bool = True


@dataclass(slots=True)
class Lifecycle:
    """How the application is opened and closed; opening is tried again after a failure."""

    opening: Callable[[], Awaitable[None]]
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


class _ClientGone(Exception):
    """Nobody waits for the answer any more."""


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
        self._gate = gate
        self._lifecycle = lifecycle
        self._body_timeout_s = body_timeout_s
        self._request_prefix = os.urandom(6).hex().encode()
        self._request_numbers = itertools.count(1)
        for (method, path), route in routes.items():
            if method == "GET":
                self._routes.setdefault(("HEAD", path), route)

    async def open(self) -> None:
        """Open policy and audit now rather than with the lifespan or the first request.

        Raises:
            NotReady: They cannot be opened, and why.
        """
        await self._lifecycle.open()

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Serve one connection's request, or the life cycle."""
        if scope["type"] == "http":
            await self._serve(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1003})

    async def _serve(self, scope: Any, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        request_id = headers.get(b"x-request-id")
        if request_id is None or _SANE_REQUEST_ID.fullmatch(request_id) is None:
            request_id = b"%b-%x" % (self._request_prefix, next(self._request_numbers))
        try:
            response = await self._answer(scope, headers, receive)
        except _ClientGone:
            return
        except AegisError as error:
            response = _refusal(error)
        except Exception:
            _log.exception("request %s failed by a defect", request_id.decode())
            response = _refusal(AegisError("a defect of the server; its log has this request's id"))
        await self._send(send, response, request_id, is_head=scope["method"] == "HEAD")

    async def _answer(
        self, scope: Any, headers: Mapping[bytes, bytes], receive: Receive
    ) -> Response:
        path = scope["path"]
        root = scope.get("root_path")
        if root and path.startswith(root):
            path = path[len(root) :]
        route = self._routes.get((scope["method"], path))
        if route is None:
            self._gate.admit(self._role_of_unknown(path), headers, scope.get("client"))
            raise self._unknown(scope["method"], path)
        self._gate.admit(route.role, headers, scope.get("client"))
        body = b""
        if route.largest_body_bytes:
            _check_media_type(route, headers)
            body = await self._body(headers, receive, route.largest_body_bytes)
        if route.needs_service and not self._lifecycle.is_open:
            await self._lifecycle.open()
        response = route.handler(Request(headers, scope["query_string"], body))
        return response if type(response) is Response else await response  # type: ignore[misc]

    def _role_of_unknown(self, path: str) -> Role:
        roles = [route.role for (_, known), route in self._routes.items() if known == path]
        return min(roles, default=Role.USER)

    def _unknown(self, method: str, path: str) -> RequestError:
        allowed = sorted(known for known, of in self._routes if of == path)
        if not allowed:
            return NotFound(f"no such path: {shown(path)}")
        names = ", ".join(allowed)
        return MethodNotAllowed(
            f"{shown(method)} is not allowed here; use {names}",
            headers=((b"allow", names.encode()),),
        )

    async def _body(self, headers: Mapping[bytes, bytes], receive: Receive, largest: int) -> bytes:
        declared = headers.get(b"content-length")
        if declared is not None and declared.isdigit() and int(declared[:20]) > largest:
            raise _too_large(largest)
        try:
            async with asyncio.timeout(self._body_timeout_s):
                message = await receive()
                if message["type"] != "http.request":
                    raise _ClientGone
                body: bytes = message.get("body", b"")
                if not message.get("more_body", False):
                    if len(body) > largest:
                        raise _too_large(largest)
                    return body
                return await _rest(body, receive, largest)
        except TimeoutError:
            said = f"the body did not arrive within {self._body_timeout_s:g} s"
            raise BodyTimeout(said, headers=(_CLOSE,)) from None

    async def _send(
        self, send: Send, response: Response, request_id: bytes, *, is_head: bool
    ) -> None:
        body = response.body
        headers = [JSON, (b"x-request-id", request_id), *response.headers]
        is_whole = isinstance(body, bytes)
        if isinstance(body, bytes):
            headers.append((b"content-length", b"%d" % len(body)))
        await send({"type": "http.response.start", "status": response.status, "headers": headers})
        if isinstance(body, bytes):
            await send({"type": "http.response.body", "body": b"" if is_head else body})
            return
        if not is_head:
            async for part in body:
                await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            await self._lifecycle.open()
        except NotReady as error:
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        except Exception as error:
            _log.exception("the server cannot start")
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self._lifecycle.close()
        await send({"type": "lifespan.shutdown.complete"})


def _check_media_type(route: Route, headers: Mapping[bytes, bytes]) -> None:
    declared = headers.get(b"content-type")
    if declared is None or declared == b"application/json":
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
            raise _ClientGone
        part = message.get("body", b"")
        parts.append(part)
        size += len(part)
        if not message.get("more_body", False):
            if size > largest:
                raise _too_large(largest)
            return b"".join(parts)


def _too_large(largest: int) -> BodyTooLarge:
    return BodyTooLarge(f"the body is over {largest} bytes", headers=(_CLOSE,))


def _refusal(error: AegisError) -> Response:
    members: dict[str, Any] = {"error": str(error), "code": error.code}
    headers: Iterable[Header] = ()
    if isinstance(error, RequestError):
        headers = error.headers
    if isinstance(error, PolicyError):
        members["error"] = f"the policy is refused: {error}"
        members["problems"] = problems_json(error.problems)
    if error.status == 503:
        headers = (*headers, _RETRY_AFTER)
    return Response(dumps(members), tuple(headers), error.status)


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
