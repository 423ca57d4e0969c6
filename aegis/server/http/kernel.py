"""The kernel: life cycle, route table, admission, limits of bodies, errors to answers.

It knows no protocol between servers and applications: `asgi` and `rsgi` are its two fronts.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from dataclasses import dataclass, field, replace
from itertools import chain, count
from typing import Any, Protocol

from aegis.auth.keys import Key, Permission
from aegis.codec import dumps
from aegis.errors import (
    AegisError,
    BodyTimeout,
    BodyTooLarge,
    HeadersTooLarge,
    InvalidBody,
    MethodNotAllowed,
    NotFound,
    NotReady,
    PolicyError,
    RequestError,
    UnsupportedMediaType,
    shown,
)
from aegis.server.http.gate import Gate
from aegis.server.http.headers import HeaderNames, Headers, value_of

__all__ = [
    "CLOSE",
    "JSON",
    "LARGEST_HEADERS_BYTES",
    "LARGEST_WHOLE_BYTES",
    "PLAIN_JSON",
    "Answer",
    "Caller",
    "Deadlines",
    "Handler",
    "Header",
    "Kernel",
    "Lifecycle",
    "Route",
    "broken_off",
    "check_declared",
    "check_headers_size",
    "declared_size",
    "made_for",
    "pieces_of",
    "problems_json",
    "too_large",
]

_log = logging.getLogger("aegis.server")

Header = tuple[str, str]

JSON: Header = ("content-type", "application/json")
CLOSE: Header = ("connection", "close")
LARGEST_WHOLE_BYTES = 512 * 1024
"""A larger answer is sent in pieces, as its client takes them: it must not wait in memory."""
PIECE_BYTES = 64 * 1024
LARGEST_HEADERS_BYTES = 64 * 1024
"""Of all names and values of a request's headers together."""
_KNOWN_SIZES = 4096
_MOST_NAMES_REMEMBERED = 1024
_RETRY_AFTER: Header = ("retry-after", "1")
_SAFE = frozenset({"GET", "HEAD"})
PLAIN_JSON = ["application/json"]
"""What nearly every body is declared as."""
_SANE_REQUEST_ID = re.compile(r"[!-~]{1,128}")

Caller = Key | None
"""Who asks; None where no key is needed."""

Answer = tuple[int, Sequence[Header], "bytes | AsyncIterator[bytes]"]
"""Status, headers besides those that every answer has, and the body: whole, or as it comes."""

Handler = Callable[[bytes, Headers, str, Caller], "Answer | Awaitable[Answer]"]
"""Called with the body, the headers, the raw query string and who asks; may raise any `AegisError`.

The query string is "" where the route takes a body and no query.
"""


@dataclass(frozen=True, slots=True)
class Route:
    """What answers a method on a path.

    Attributes:
        handler: Answers.
        permission: What a key must have to call it; None: no key is needed, and anyone may from
            anywhere.
        largest_body_bytes: 0: it takes no body, and changes nothing.
        limit_option: What sets that limit; empty: nothing does.
        media_types: What its body may be declared as, besides types that end in `+json`.
        needs_service: Whether policy and audit must be open.
        takes_query: Whether it takes a query string beside its body.
        of_item: Makes the handler for the last part of the path, where that stands in braces.
    """

    handler: Handler
    permission: Permission | None
    largest_body_bytes: int = 0
    limit_option: str = "--max-body-bytes"
    media_types: frozenset[str] = frozenset(("application/json", "text/json"))
    needs_service: bool = True
    takes_query: bool = False
    of_item: Callable[[str], Handler] | None = None


@dataclass(slots=True)
class Lifecycle:
    """How the application is opened and closed; opening is tried again after a failure."""

    opening: Callable[[], Awaitable[None]]
    stopping: Callable[[], None]
    closing: Callable[[], Awaitable[None]]
    reloading: Callable[[], None] = lambda: None
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


class _Waiter(Protocol):
    """What waits for a body: a task, or a future of the server's."""

    def cancel(self) -> bool:
        """Wait no more; whether it still did."""


class Deadlines:
    """Cancels what waits for a body for too long.

    One timer serves all: a timer each would cost more than a decision does. A waiter is cancelled
    between `timeout_s` and an eighth more.

    Attributes:
        waiting: What waits, and the tick in which each began.
        tick: The present tick.
    """

    _TICKS = 8

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self.waiting: dict[_Waiter | None, int] = {}
        self.tick = 0
        self._passed: set[_Waiter | None] = set()
        self._loop: asyncio.AbstractEventLoop | None = None

    def begin(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to tick, on the loop that requests are served on."""
        if self._loop is not loop:
            self._loop = loop
            loop.call_later(self.timeout_s / self._TICKS, self._next, loop)

    def end(self) -> None:
        """Tick no more."""
        self._loop = None

    def has_passed(self, waiter: _Waiter | None) -> bool:
        """Whether it is for its deadline that a waiter was cancelled; asked once."""
        if waiter in self._passed:
            self._passed.remove(waiter)
            return True
        return False

    def _next(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._loop is not loop:
            return
        self.tick += 1
        for waiter, begun in self.waiting.items():
            if waiter is None or self.tick - begun <= self._TICKS or waiter in self._passed:
                continue
            if waiter.cancel():
                self._passed.add(waiter)
        loop.call_later(self.timeout_s / self._TICKS, self._next, loop)


class Kernel:
    """What the fronts have in common.

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
        self._deadlines = Deadlines(body_timeout_s)
        self._request_ids = _request_ids()
        self._sizes = _sizes(routes.values())
        self._names: dict[str, HeaderNames] = {}
        self._running = 0  # requests
        self._templates: dict[str, str] = {}  # of paths that end in braces: by what is before
        for (method, path), route in routes.items():
            if route.of_item is not None:
                self._templates[path.rpartition("/")[0]] = path
            if method == "GET":
                self._routes.setdefault(("HEAD", path), route)

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
        """Begin to stop, before the server does: no new executions, a deadline for those that run."""
        self._lifecycle.stopping()

    def reload(self) -> None:
        """Load files again that are read by a running server; called in a thread."""
        self._lifecycle.reloading()

    def _names_of(self, joined: str) -> HeaderNames:
        """What the names of a request's headers say, given as one text with line feeds between them."""
        names = self._names.get(joined)
        if names is None:
            names = HeaderNames.of(joined.split("\n"))
            if len(self._names) < _MOST_NAMES_REMEMBERED and len(joined) < _KNOWN_SIZES:
                self._names[joined] = names
        return names

    def _request_id(self, headers: Headers) -> str:
        """The id that a request has, or one of ours."""
        sent = value_of(headers, "x-request-id")
        if sent is not None and _SANE_REQUEST_ID.fullmatch(sent):
            return sent
        return next(self._request_ids)

    def _refusal(self, error: Exception, request_id: str) -> Answer:
        """The answer to a request that failed; called while the error is handled."""
        if not isinstance(error, AegisError):
            _log.exception("request %s failed by a defect", request_id)
            error = AegisError("a defect of the server; its log has this request's id")
        return _refused(error)

    def _end_of(self, waiter: _Waiter | None) -> None:
        """What a cancelled wait for a body ends with, unless its deadline did not cancel it.

        Raises:
            BodyTimeout: It did.
        """
        if not self._deadlines.has_passed(waiter):
            return
        if isinstance(waiter, asyncio.Task):
            waiter.uncancel()
        said = f"the body did not arrive within {self._deadlines.timeout_s:g} s"
        raise BodyTimeout(said, headers=(CLOSE,)) from None

    def _route(self, method: str, path: str, root: str = "") -> Route:
        """The route of a request that the table has not as it stands."""
        if root and path.startswith(root):  # mounted below another application
            path = path[len(root) :]
            route = self._routes.get((method, path))
            if route is not None:
                return route
        parent, _, item = path.rpartition("/")
        if item and parent in self._templates:
            path = self._templates[parent]
            route = self._routes.get((method, path))
            if route is not None and route.of_item is not None:
                return replace(route, handler=route.of_item(item))
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
            f"{shown(method)} is not allowed here; use {names}", headers=(("allow", names),)
        )


def _request_ids() -> Iterator[str]:
    """Ids that no other process gives. To join two texts costs less than to write a number."""
    ours = os.urandom(6).hex()
    ends = [f"{number:02x}" for number in range(256)]
    return chain.from_iterable(map(f"{ours}-{block:x}".__add__, ends) for block in count())


def _sizes(routes: Iterable[Route]) -> dict[str, int]:
    """Sizes that need no reading and no limit, by their texts."""
    limits = [route.largest_body_bytes for route in routes if route.largest_body_bytes]
    return {str(size): size for size in range(1, min([_KNOWN_SIZES, *limits]) + 1)}


def made_for(
    method: str, making: Awaitable[Answer], hung_up: Callable[[], Awaitable[None]]
) -> Awaitable[Answer]:
    """An answer; to a safe method (RFC 9110) it is made while there is somebody to take it.

    Args:
        method: Of the request.
        making: The answer.
        hung_up: Waits until the client has gone.
    """
    return _while_awaited(making, hung_up()) if method in _SAFE else making


async def _while_awaited(making: Awaitable[Answer], hung_up: Awaitable[None]) -> Answer:
    answer, gone = asyncio.ensure_future(making), asyncio.ensure_future(hung_up)
    try:
        await asyncio.wait((answer, gone), return_when=asyncio.FIRST_COMPLETED)
        if answer.done():
            return answer.result()
        raise broken_off()
    finally:
        answer.cancel()
        gone.cancel()


async def pieces_of(content: bytes) -> AsyncIterator[bytes]:
    """A large answer, piece by piece."""
    for start in range(0, len(content), PIECE_BYTES):
        yield content[start : start + PIECE_BYTES]


def declared_size(declared: str, route: Route) -> int:
    """The size that a body is declared to have, within its limit.

    Raises:
        InvalidBody: It is no number.
        BodyTooLarge: It is over the limit.
    """
    if not (declared.isascii() and declared.isdigit()):
        raise InvalidBody(f"content-length {shown(declared)} is no number")
    # A number of 20 digits is too large whatever they are.
    largest = route.largest_body_bytes
    size = int(declared) if len(declared) < 20 else largest + 1
    if size > largest:
        raise too_large(route)
    return size


def too_large(route: Route) -> BodyTooLarge:
    """The refusal of a body over its limit; what is left of it is not read, so the connection ends."""
    said = f"the body is over {route.largest_body_bytes} bytes"
    if route.limit_option:
        said += f", the limit that {route.limit_option} sets; send less at once"
    return BodyTooLarge(said, headers=(CLOSE,))


def broken_off() -> InvalidBody:
    """The refusal of a body of which the rest will not come, or of an answer that nobody will take.

    The client has gone, or its chunks make no sense: who is still there gets to know.
    """
    return InvalidBody("the body ends before its end", headers=(CLOSE,))


def check_headers_size(size: int) -> None:
    """See that the headers of a request are within their limit.

    Raises:
        HeadersTooLarge: They are not.
    """
    if size > LARGEST_HEADERS_BYTES:
        raise HeadersTooLarge(
            f"the headers are over {LARGEST_HEADERS_BYTES} bytes together; send less of them"
        )


def check_declared(route: Route, headers: Headers) -> None:
    """See that a body is declared as what a route takes, or not at all.

    Raises:
        UnsupportedMediaType: It is not.
    """
    # SOURCE: RFC 9110 section 15.5.16
    coding = value_of(headers, "content-encoding")
    if coding is not None and coding.strip().lower() not in ("", "identity"):
        raise UnsupportedMediaType(
            f"a body encoded as {shown(coding)} is not taken; send it as it is",
            headers=(("accept-encoding", "identity"),),
        )
    declared = value_of(headers, "content-type")
    if declared is None:
        return
    media_type, _, parameters = declared.lower().partition(";")
    media_type = media_type.strip()
    if media_type in route.media_types or (
        media_type.startswith("application/") and media_type.endswith("+json")
    ):
        charset = parameters.partition("charset=")[2].partition(";")[0].strip(' "')
        if charset in ("", "utf-8", "utf8"):
            return
    known = ", ".join(sorted(route.media_types))
    raise UnsupportedMediaType(
        f"a body of {shown(declared)} is not taken here; send {known} in UTF-8"
    )


def _refused(error: AegisError) -> Answer:
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
