"""Bodies of requests: what they may be declared as, how large they may be, and by when they arrive."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Protocol

from aegis.errors import BodyTimeout, BodyTooLarge, InvalidBody, UnsupportedMediaType
from aegis.messages import quote
from aegis.server.http.headers import Headers, value_of
from aegis.server.http.messages import CLOSE
from aegis.server.http.routing import Route

__all__ = [
    "PLAIN_JSON",
    "Deadlines",
    "check_declared",
    "declared_length",
    "incomplete_body",
    "known_lengths",
    "oversized_body",
]

PLAIN_JSON = ["application/json"]
"""What nearly every body is declared as."""
_MAX_KNOWN_LENGTH = 4096


class _Waiter(Protocol):
    """What waits for a body: a task, or a future of the server's."""

    def cancel(self) -> bool:
        """Wait no more; whether it still did."""


class Deadlines:
    """Cancels what waits for a body for too long.

    One timer serves all: a timer each would cost more than a decision does. A waiter is cancelled
    between `timeout_s` and an eighth more.

    Attributes:
        waiting: What waits, and the tick in which each started to.
        tick: The present tick.
    """

    _TICKS = 8

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self.waiting: dict[_Waiter | None, int] = {}
        self.tick = 0
        self._passed: set[_Waiter | None] = set()
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start to tick, on the loop that requests are served on."""
        if self._loop is not loop:
            self._loop = loop
            loop.call_later(self.timeout_s / self._TICKS, self._next, loop)

    def end(self) -> None:
        """Tick no more."""
        self._loop = None

    def check(self, waiter: _Waiter | None) -> None:
        """See why a wait was cancelled; called once, when it was.

        Raises:
            BodyTimeout: Its deadline has passed.
        """
        if waiter not in self._passed:
            return
        self._passed.remove(waiter)
        if isinstance(waiter, asyncio.Task):
            waiter.uncancel()
        message = f"the body did not arrive within {self.timeout_s:g} s"
        raise BodyTimeout(message, headers=(CLOSE,)) from None

    def _next(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._loop is not loop:
            return
        self.tick += 1
        for waiter, started in self.waiting.items():
            if waiter is None or self.tick - started <= self._TICKS or waiter in self._passed:
                continue
            if waiter.cancel():
                self._passed.add(waiter)
        loop.call_later(self.timeout_s / self._TICKS, self._next, loop)


def known_lengths(routes: Iterable[Route]) -> dict[str, int]:
    """Lengths that need no parsing and are within every limit, by their texts."""
    limits = [route.max_body_bytes for route in routes if route.max_body_bytes]
    return {str(length): length for length in range(1, min([_MAX_KNOWN_LENGTH, *limits]) + 1)}


def declared_length(text: str, route: Route) -> int:
    """The length that a body is declared to have, within its limit.

    Raises:
        InvalidBody: It is not a number.
        BodyTooLarge: It is over the limit.
    """
    if not (text.isascii() and text.isdigit()):
        raise InvalidBody(f"content-length {quote(text)} is not a number")
    # A number of 20 digits is too large whatever they are.
    limit = route.max_body_bytes
    length = int(text) if len(text) < 20 else limit + 1
    if length > limit:
        raise oversized_body(route)
    return length


def oversized_body(route: Route) -> BodyTooLarge:
    """The refusal of a body over its limit; what is left of it is not read, so the connection ends."""
    message = f"the body is over {route.max_body_bytes} bytes"
    if route.limit_option:
        message += f", the limit that {route.limit_option} sets; send less at once"
    return BodyTooLarge(message, headers=(CLOSE,))


def incomplete_body() -> InvalidBody:
    """The refusal of a body of which the rest will not come, or to a client that has gone.

    Chunks that make no sense look the same; a client that is still there learns of it.
    """
    return InvalidBody("the body ends before its end", headers=(CLOSE,))


def check_declared(route: Route, headers: Headers) -> None:
    """See that a body is declared as what a route takes, or not at all.

    Raises:
        UnsupportedMediaType: It is not.
    """
    # SOURCE: RFC 9110 section 15.5.16
    coding = value_of(headers, "content-encoding")
    if coding is not None and coding.strip().lower() not in ("", "identity"):
        raise UnsupportedMediaType(
            f"a body encoded as {quote(coding)} is not taken; send it as it is",
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
        f"a body of {quote(declared)} is not taken here; send {known} in UTF-8"
    )
