"""Connections that would hold a server up: clients that take nothing, or send nothing, are let go.

granian waits for every connection when it ends, and for a client that reads nothing it would wait for
ever. It gives no way to close one, so it is closed here by its socket.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
import stat
import struct
import termios
from collections.abc import Callable, Iterator
from contextlib import suppress

__all__ = ["UNREAD_TIMEOUT_S", "Farewell", "limit_unread"]

UNREAD_TIMEOUT_S = 30.0
"""After which a client that takes nothing of its answer is let go."""
PATIENCE_S = 2.0
"""The same, while the server stops."""
_LOOK_AGAIN_S = 0.25
_TRANSFERRED = struct.Struct("=QQ")  # tcpi_bytes_acked, tcpi_bytes_received
_TRANSFERRED_AT = 120  # SOURCE: struct tcp_info of linux/tcp.h, the same since Linux 4.1

_Peer = tuple[str, int]


def limit_unread(port: int) -> None:
    """Let the kernel end each connection of this process whose client takes nothing for too long.

    Args:
        port: Where it listens already.
    """
    # SOURCE: tcp(7): accepted sockets inherit it; it also ends one whose peer's window stays shut.
    timeout_ms = round(UNREAD_TIMEOUT_S * 1_000)
    for ours in _sockets(port):
        with ours, suppress(OSError):
            ours.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, timeout_ms)


class Farewell:
    """Lets go of what holds up the end of this process.

    That is a connection on which nothing moves, where its client leaves its answer unread or no
    request is being served at all; and after the longest time every connection.

    Args:
        port: Where the server listens.
        is_serving: Whether any request is being served.
        longest_s: For all that runs.
    """

    def __init__(self, port: int, is_serving: Callable[[], bool], longest_s: float) -> None:
        self._port = port
        self._is_serving = is_serving
        self._longest_s = longest_s
        self._moved: dict[_Peer, tuple[bytes, float]] = {}  # what was transferred, since when

    def begin(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin, on the loop that requests are served on, until that ends."""
        self._look(loop, loop.time() + self._longest_s)

    def _look(self, loop: asyncio.AbstractEventLoop, end: float) -> None:
        now = loop.time()
        for connection in _sockets(self._port):
            with connection, suppress(OSError):  # it listens, or has just ended
                if self._is_stuck(connection, now) or now > end:
                    connection.shutdown(socket.SHUT_RDWR)
        loop.call_later(_LOOK_AGAIN_S, self._look, loop, end)

    def _is_stuck(self, connection: socket.socket, now: float) -> bool:
        peer = connection.getpeername()[:2]
        transferred = _transferred(connection)
        before, since = self._moved.get(peer, (b"", now))
        if before != transferred:
            self._moved[peer] = transferred, now
            return False
        return now - since >= PATIENCE_S and (_has_unread(connection) or not self._is_serving())


def _sockets(port: int) -> Iterator[socket.socket]:
    """The sockets of this process on a port, listening and connected; each is closed by who takes it."""
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # it was closed meanwhile
            # INVARIANT: only sockets are closed. To close any descriptor of a file drops all locks
            # that this process has on it, and SQLite relies on its own.
            if not stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                continue
            # Of its own, so that it stays what was looked at.
            number = os.dup(int(name))
            if not stat.S_ISSOCK(os.fstat(number).st_mode):
                continue  # it became a file just now, and stays open
            found = socket.socket(fileno=number)
            is_ours = found.family in (socket.AF_INET, socket.AF_INET6)
            if is_ours and found.getsockname()[1] == port:
                yield found
            else:
                found.close()


def _transferred(connection: socket.socket) -> bytes:
    """How much came and how much was taken so far."""
    size = _TRANSFERRED_AT + _TRANSFERRED.size
    return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, size)[_TRANSFERRED_AT:]


def _has_unread(connection: socket.socket) -> bool:
    """Whether its client has not taken all that was sent to it."""
    found = fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, struct.pack("i", 0))
    return bool(struct.unpack("i", found)[0])
