"""The kernel: what the fronts share between a request's head and the bytes of its response.

It knows no protocol between servers and applications: `asgi` and `rsgi` are its two fronts.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from itertools import chain, count
from time import perf_counter_ns

from aegis.errors import AegisError
from aegis.server.http.body import Deadlines, incomplete_body, known_lengths
from aegis.server.http.gate import Gate
from aegis.server.http.headers import HeaderNames, Headers, value_of
from aegis.server.http.lifecycle import Lifecycle
from aegis.server.http.messages import Response
from aegis.server.http.refusals import refusal
from aegis.server.http.routing import Route, RouteTable

__all__ = [
    "MAX_WHOLE_BYTES",
    "NO_RESPONSE",
    "EndHook",
    "Kernel",
    "call_hook",
    "chunks_of",
    "response_of",
]

_log = logging.getLogger("aegis.server")

MAX_WHOLE_BYTES = 512 * 1024
"""A larger response is sent in chunks, as its client takes them: it must not wait in memory."""
CHUNK_BYTES = 64 * 1024
_MAX_NAMES_BYTES = 4096
_MAX_NAMES_REMEMBERED = 1024
_SAFE_METHODS = frozenset({"GET", "HEAD"})
_SANE_REQUEST_ID = re.compile(r"[!-~]{1,128}")

NO_RESPONSE = Response(0, (), None)
"""Of a request that ends without one: its task was cancelled."""

EndHook = Callable[[str, str, int, int], None]
"""Called at the end of each request, served or refused, when its response has been handed over.

With the name of the route (`unmatched`: there is none), the method as sent, the status (0: there is no
response), and the duration in nanoseconds.
"""


class Kernel:
    """What the fronts have in common.

    Args:
        routes: What answers each method on each path.
        gate: Admits callers.
        lifecycle: Opens and closes what the routes need.
        body_timeout_s: For a body to arrive.
        on_end: Called at the end of each request.
    """

    def __init__(
        self,
        routes: RouteTable,
        gate: Gate,
        lifecycle: Lifecycle,
        *,
        body_timeout_s: float,
        on_end: EndHook | None = None,
    ) -> None:
        self.routes = routes
        self._by_path = routes.by_path
        self._admit = gate.admit
        self._lifecycle = lifecycle
        self._deadlines = Deadlines(body_timeout_s)
        self._request_ids = _request_ids()
        self._known_lengths = known_lengths(routes.all.values())
        self._names: dict[str, HeaderNames] = {}
        self._running = 0  # requests
        self._on_end = on_end

    async def open(self) -> None:
        """Open policy and audit now rather than when the server's life begins or with a request.

        Raises:
            NotReady: They cannot be opened, and why.
        """
        await self._lifecycle.open()

    def is_serving(self) -> bool:
        """Whether any request is being served; known of RSGI only."""
        return self._running > 0

    def stop(self) -> None:
        """Start to stop, before the server does: no new executions, a deadline for those that run."""
        self._lifecycle.stopping()

    def reload(self) -> None:
        """Load files again that are read by a running server; called in a thread."""
        self._lifecycle.reloading()

    def _names_of(self, joined: str) -> HeaderNames:
        """What the names of a request's headers say, given as one text with line feeds between them."""
        names = self._names.get(joined)
        if names is None:
            names = HeaderNames.of(joined.split("\n"))
            if len(self._names) < _MAX_NAMES_REMEMBERED and len(joined) < _MAX_NAMES_BYTES:
                self._names[joined] = names
        return names

    def _request_id(self, headers: Headers) -> str:
        """The id that a request has, or one of ours."""
        sent = value_of(headers, "x-request-id")
        if sent is not None and _SANE_REQUEST_ID.fullmatch(sent):
            return sent
        return next(self._request_ids)

    def _refusal(self, error: Exception, request_id: str) -> Response:
        """The response to a request that failed; called while the error is handled."""
        if not isinstance(error, AegisError):
            _log.exception("request %s failed by a defect", request_id)
            error = AegisError("a defect of the server; its log has this request's id")
        return refusal(error)


def call_hook(hook: EndHook, route: Route, method: str, status: int, started_ns: int) -> None:
    """Call the hook at the end of a request; its failures are not the client's."""
    try:
        hook(route.name, method, status, perf_counter_ns() - started_ns)
    except Exception:  # noqa: BLE001 - the response has been sent
        _log.exception("the hook at the end of requests failed")


def _request_ids() -> Iterator[str]:
    """Ids that no other process gives. To join two texts costs less than to write a number."""
    ours = os.urandom(6).hex()
    ends = [f"{number:02x}" for number in range(256)]
    return chain.from_iterable(map(f"{ours}-{block:x}".__add__, ends) for block in count())


def response_of(
    method: str, pending: Awaitable[Response], client_left: Callable[[], Awaitable[None]]
) -> Awaitable[Response]:
    """A response that a handler is still making; to a safe method (RFC 9110) only for a client that waits.

    Args:
        method: Of the request.
        pending: The response.
        client_left: Waits until the client has gone.
    """
    if method not in _SAFE_METHODS:
        return pending
    return _unless_client_leaves(pending, client_left())


async def _unless_client_leaves(
    pending: Awaitable[Response], client_left: Awaitable[None]
) -> Response:
    response, gone = asyncio.ensure_future(pending), asyncio.ensure_future(client_left)
    try:
        await asyncio.wait((response, gone), return_when=asyncio.FIRST_COMPLETED)
        if response.done():
            return response.result()
        raise incomplete_body()
    finally:
        response.cancel()
        gone.cancel()


async def chunks_of(content: bytes) -> AsyncIterator[bytes]:
    """A large body, chunk by chunk."""
    for start in range(0, len(content), CHUNK_BYTES):
        yield content[start : start + CHUNK_BYTES]
