"""The RSGI front: the kernel as granian calls it where a request costs the least.

RSGI reports less than ASGI does, and holds nothing back; what is done about that is tested on real
connections, since a stand-in can only repeat what was found out about granian.
"""

from __future__ import annotations

import asyncio
from asyncio import CancelledError, current_task
from time import perf_counter_ns
from typing import Any

from aegis.server.http.body import (
    PLAIN_JSON,
    check_declared,
    declared_length,
    incomplete_body,
    oversized_body,
)
from aegis.server.http.headers import HeaderNames, Headers, check_headers_size
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
from aegis.server.http.rsgi_stream import send_stream

__all__ = ["Rsgi"]


class Rsgi(Kernel):
    """The kernel as an RSGI application."""

    def __rsgi_init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Open what the routes need, on the worker's loop before it runs.

        Raises:
            NotReady: It cannot be opened, and why.
        """
        # The loop must not run in vain: granian would forget a signal to stop that it meets here.
        if not self._lifecycle.is_open:
            loop.run_until_complete(self._lifecycle.open())
        self._deadlines.start(loop)

    def __rsgi_del__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Close it, after the last request."""
        self._deadlines.end()
        loop.run_until_complete(self._lifecycle.close())

    async def __rsgi__(self, scope: Any, proto: Any) -> None:
        """Serve one request."""
        # The way of every request. Each touch of the scope and of its headers is a call into granian,
        # and the scope's headers are copied each time.
        headers = scope.headers
        joined = "\n".join(headers.keys())
        names = self._names.get(joined) or self._names_of(joined)
        request_id = self._request_id(headers) if names.has_request_id else next(self._request_ids)
        method, path = scope.method, scope.path
        route, parameters, response = UNMATCHED, NO_PARAMETERS, NO_RESPONSE
        started_ns = 0 if self._on_end is None else perf_counter_ns()
        self._running += 1
        try:
            try:
                found = self._by_path.get((method, path))
                if found is None:
                    route, parameters = self.routes.match(method, path)
                else:
                    route = found
                if not names.is_usual:  # to look at the values of all requests would cost too much
                    check_headers_size(len(joined) + len("".join(headers.values())))
                caller = self._admit(route.permission, headers, names, scope)
                takes_body = route.max_body_bytes
                body = await self._read_body(proto, headers, names, route) if takes_body else b""
                query = scope.query_string if not takes_body or route.takes_query else ""
                if route.needs_service and not self._lifecycle.is_open:
                    await self._lifecycle.open()
                answer = route.handler(
                    Request(route.name, body, headers, query, caller, request_id, parameters)
                )
                if isinstance(answer, Response):
                    response = answer
                else:
                    response = await response_of(method, answer, proto.client_disconnect)
            except Exception as error:  # noqa: BLE001 - the edge: no failure may end the connection unsaid
                response = self._refusal(error, request_id)
            content = response.body
            if type(content) is bytes and len(content) <= MAX_WHOLE_BYTES:
                # The server adds the length, and leaves the body out if the method is HEAD.
                sent = [response.content_type, ("x-request-id", request_id), *response.headers]
                proto.response_bytes(response.status, sent, content)
            else:
                await _send_other(proto, method, response, request_id)
        finally:
            self._running -= 1
            if self._on_end is not None:
                call_hook(self._on_end, route, method, response.status, started_ns)

    async def _read_body(
        self, proto: Any, headers: Headers, names: HeaderNames, route: Route
    ) -> bytes:
        """The whole body, within its limit and its time."""
        if names.is_encoded or headers.get_all("content-type") != PLAIN_JSON:
            check_declared(route, headers)
        lengths = headers.get_all("content-length")
        if not lengths:
            return await self._chunks(proto, route) if names.is_chunked else b""
        text = ", ".join(lengths)
        declared = self._known_lengths.get(text) or declared_length(text, route)
        waiting = self._deadlines.waiting
        waiter = proto()
        waiting[waiter] = self._deadlines.tick
        try:
            body: bytes = await waiter
        except CancelledError:
            self._deadlines.check(waiter)
            raise
        except RuntimeError:  # granian's, which only the runner may import
            raise incomplete_body() from None
        finally:
            del waiting[waiter]
            # INVARIANT: no native awaitable stays in a frame of which an error may hold the
            # traceback: it holds the error, and the collector cannot see that.
            del waiter
        if len(body) != declared:
            raise oversized_body(route) if len(body) > route.max_body_bytes else incomplete_body()
        return body

    async def _chunks(self, proto: Any, route: Route) -> bytes:
        """A body that comes without a length."""
        task = current_task()
        self._deadlines.waiting[task] = self._deadlines.tick
        parts = []
        size = ends = 0
        try:
            async for part in proto:
                parts.append(part)
                size += len(part)
                ends += not part
                if size > route.max_body_bytes:
                    raise oversized_body(route)
        except CancelledError:
            self._deadlines.check(task)
            raise
        finally:
            del self._deadlines.waiting[task]
        # A whole body ends with one empty part. If the client goes before that, or its chunks make
        # no sense, granian gives an empty part for the failure too, and nothing else tells of it.
        if ends != 1:
            raise incomplete_body()
        return b"".join(parts)


async def _send_other(proto: Any, method: str, response: Response, request_id: str) -> None:
    """Send a response that is streamed or large, or has no body."""
    content = response.body
    headers: list[Header] = [("x-request-id", request_id), *response.headers]
    if content is None:
        proto.response_empty(response.status, headers)
        return
    headers.append(response.content_type)
    if isinstance(content, bytes):
        headers.append(("content-length", str(len(content))))
        content = chunks_of(content)
    if method == "HEAD":
        proto.response_empty(response.status, headers)
        return
    await send_stream(proto, response.status, headers, content)
