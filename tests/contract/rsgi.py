"""Stand-ins for granian's RSGI scope and protocol, as strict as they and with their gaps.

What they do is what granian 2.8.7 was seen to do; the tests in `process` see the same over sockets.
"""

from __future__ import annotations

import asyncio
import string
from collections.abc import Sequence
from typing import Any

_READABLE = frozenset(string.printable) - frozenset("\n\r\x0b\x0c")


class Headers:
    """Without the values that are not visible ASCII; their names stand there all the same."""

    def __init__(self, sent: Sequence[tuple[str, bytes]]) -> None:
        self._sent = [(name.lower(), value.decode("latin-1")) for name, value in sent]

    def items(self) -> list[tuple[str, str]]:
        return [(name, value) for name, value in self._sent if _READABLE.issuperset(value)]

    def keys(self) -> list[str]:
        """Each name once."""
        return list(dict.fromkeys(name for name, _ in self._sent))

    def values(self) -> list[str]:
        return [value for _, value in self.items()]

    def get_all(self, name: str) -> list[str]:
        return [value for known, value in self.items() if known == name]

    def get(self, name: str, default: Any = None) -> Any:
        return (self.get_all(name) or [default])[0]

    def __contains__(self, name: str) -> bool:
        return any(known == name for known, _ in self._sent)


class Scope:
    """One request's."""

    proto = "http"
    rsgi_version = "1.5"
    server = "127.0.0.1:8000"
    scheme = "http"

    def __init__(
        self,
        method: str,
        path: str,
        query_string: str,
        headers: Sequence[tuple[str, bytes]],
        client: str,
        authority: str | None = None,
        http_version: str = "1.1",
    ) -> None:
        self.authority = authority
        self.http_version = http_version
        self.method = method
        self.path = path
        self.query_string = query_string
        self.client = client
        self._headers = headers

    @property
    def headers(self) -> Headers:
        """Copied each time, as granian does."""
        return Headers(self._headers)


class Protocol:
    """The body of one request, and the answer to it.

    Args:
        method: Of the request.
        parts: What comes of the body.
        then: What follows them: None ends the body, `leave` does and hangs up, `silence` leaves it
            open, `disconnect` hangs up in it.

    Attributes:
        received: How often a part of the body, or all of it, was asked for.
        status: Of the answer; 0: there was none.
        headers: Of the answer.
        body: Of the answer.
        parts: In how many it came.
    """

    def __init__(self, method: str, parts: Sequence[bytes], then: str | None) -> None:
        self._method = method
        self._left = [part for part in parts if part]  # an empty chunk ends a body: none is one
        self._then = then
        self._is_taken = False
        self._ends_left = 2 if then == "disconnect" else 1
        self._sending: asyncio.Task[None] | None = None
        self.received = 0
        self.status = 0
        self.headers: list[tuple[str, str]] = []
        self.body = b""
        self.parts = 0

    def __call__(self) -> asyncio.Future[bytes]:
        """The whole body, of any size."""
        self._take()
        self.received += 1
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        if self._then == "disconnect":
            future.set_exception(RuntimeError("RSGI transport is closed"))
        elif self._then != "silence":
            future.set_result(b"".join(self._left))
        return future

    def client_disconnect(self) -> asyncio.Future[None]:
        """Done when the client has gone."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self._then in ("leave", "disconnect"):
            future.set_result(None)
        return future

    def __aiter__(self) -> Protocol:
        self._take()
        return self

    async def __anext__(self) -> bytes:
        """The next part; then an empty one, and one more where the client has gone."""
        if not self._ends_left:
            raise StopAsyncIteration
        self.received += 1
        if self._left:
            return self._left.pop(0)
        if self._then == "silence":
            await asyncio.Event().wait()
        self._ends_left -= 1
        return b""

    def response_bytes(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        assert type(body) is bytes
        self._answer(status, headers)
        if not any(name == "content-length" for name, _ in headers):
            self.headers.append(("content-length", str(len(body))))
        if self._method != "HEAD":
            self.body = body
            self.parts = 1

    def response_empty(self, status: int, headers: list[tuple[str, str]]) -> None:
        self._answer(status, headers)
        if self._method != "HEAD":
            self.headers.append(("content-length", "0"))

    def response_file(self, status: int, headers: list[tuple[str, str]], file: str) -> None:
        assert self._method != "HEAD", "granian would read none of it"
        self._answer(status, headers)
        self._sending = asyncio.create_task(self._send_file(file))

    async def end(self) -> None:
        """Wait for the end of the answer."""
        if self._sending is not None:
            await self._sending

    def _take(self) -> None:
        if self._is_taken:
            raise RuntimeError("RSGI protocol error")
        self._is_taken = True

    def _answer(self, status: int, headers: list[tuple[str, str]]) -> None:
        assert not self.status, "it was answered twice"
        assert type(status) is int
        assert type(headers) is list
        for name, value in headers:
            assert type(name) is type(value) is str
            assert name == name.lower()
            assert name.isascii()
            assert _READABLE.issuperset(value), "granian would answer 500"
        self.status = status
        self.headers = list(headers)

    async def _send_file(self, path: str) -> None:
        file = await asyncio.to_thread(open, path, "rb", buffering=0)
        with file:
            while part := await asyncio.to_thread(file.read, 128 * 1024):
                self.body += part
                self.parts += 1
