"""Kept connections of a load: sends what is due as soon as one is free, and takes the answers.

On bare sockets, since every microsecond of the generator is one that a tail would be charged with.
"""

from __future__ import annotations

import re
import select
import socket
from collections import deque
from collections.abc import Sequence
from time import perf_counter
from urllib.parse import urlsplit

from aegis.errors import ConfigError
from aegis.messages import quote

__all__ = ["Connections", "address"]

MAX_READ_BYTES = 1 << 18
_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)


def address(url: str) -> tuple[str, int]:
    """Host and port of a server.

    Raises:
        ConfigError: It is not one as in `http://127.0.0.1:8000`.
    """
    if "@" in url:  # not shown: what stands before it may be a password
        raise ConfigError("the URL of a server has no user; write it as in `http://127.0.0.1:8000`")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, 80 if parts.port is None else parts.port
        is_server = parts.scheme == "http" and port > 0 and parts.path in ("", "/")
    except ValueError:
        host, port, is_server = None, 0, False
    if not is_server or not host:
        raise ConfigError(f"{quote(url)} must be as in `http://127.0.0.1:8000`")
    return host, port


class Connections:
    """Connections with at most one request on its way each; what is due beyond these waits.

    Args:
        url: Of the server.
        requests: What is sent, one after the other, as bytes of HTTP/1.1.
        count: How many connections.

    Attributes:
        good: How many requests were answered with 200.
        bad: How many were answered otherwise, or not at all.
        latencies_ms: From the moment at which a request was due to its answer.
        last: When the last answer came.

    Raises:
        ConfigError: The server cannot be reached.
    """

    def __init__(self, url: str, requests: Sequence[bytes], count: int) -> None:
        self.good = 0
        self.bad = 0
        self.latencies_ms: list[float] = []
        self.last = 0.0
        self._requests = requests
        self._sent = 0
        self._due: deque[float] = deque()
        self._since: dict[int, float] = {}
        self._parts: dict[int, bytes] = {}
        self._sockets: dict[int, socket.socket] = {}
        self._free: deque[int] = deque()
        self._poll = select.epoll()
        where = address(url)
        try:
            for _ in range(count):
                made = socket.create_connection(where)
                made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._sockets[made.fileno()] = made
                self._free.append(made.fileno())
                self._poll.register(made, select.EPOLLIN)
        except OSError as error:
            self.close()
            raise ConfigError(f"cannot reach {quote(url)}: {error}") from None

    @property
    def is_alive(self) -> bool:
        """Whether any connection is left."""
        return bool(self._sockets)

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits and nothing is on its way."""
        return not self._since and not self._due

    def add(self, since: float) -> None:
        """Send the next request, which was due at `since`, now or once a connection is free."""
        if self._free:
            self._send(self._free.popleft(), since)
        else:
            self._due.append(since)

    def _send(self, at: int, since: float) -> None:
        self._since[at] = since
        request = self._requests[self._sent % len(self._requests)]
        self._sent += 1
        try:
            self._sockets[at].sendall(request)
        except OSError:
            self._lost(at)

    def take(self, timeout_s: float) -> int:
        """Take what has been answered; how many.

        Args:
            timeout_s: How long to wait where nothing has; 0: not at all.
        """
        before = len(self.latencies_ms)
        for at, _ in self._poll.poll(timeout_s):
            try:
                data = self._sockets[at].recv(MAX_READ_BYTES)
            except OSError:
                data = b""
            if not data:
                self._lost(at)
            else:
                self._received(at, data)
        return len(self.latencies_ms) - before

    def _received(self, at: int, data: bytes) -> None:
        if self._parts:
            data = self._parts.pop(at, b"") + data
        end = data.find(b"\r\n\r\n")
        length = _LENGTH.search(data, 0, end) if end >= 0 else None
        if length is None or len(data) < end + 4 + int(length[1]):
            self._parts[at] = data
            return
        self.last = now = perf_counter()
        self.latencies_ms.append((now - self._since.pop(at, now)) * 1_000)
        if data[9:12] == b"200":
            self.good += 1
        else:
            self.bad += 1
        if self._due:
            self._send(at, self._due.popleft())
        else:
            self._free.append(at)

    def _lost(self, at: int) -> None:
        self._sockets.pop(at).close()
        self._parts.pop(at, None)
        if self._since.pop(at, None) is not None:
            self.bad += 1
        if at in self._free:
            self._free.remove(at)

    def close(self) -> None:
        """Close all of them; what waits or is on its way then was not answered."""
        self.bad += len(self._due) + len(self._since)
        self._due.clear()
        self._since.clear()
        for kept in self._sockets.values():
            kept.close()
        self._sockets.clear()
        self._poll.close()
