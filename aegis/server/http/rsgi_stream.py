"""Streams over RSGI, no faster than the client takes them.

RSGI's own streams take everything at once and keep it in memory. A file does not: granian reads it as
the client takes it. So it is given a pipe to read, which holds 64 KiB and no more.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import struct
import termios
from collections.abc import AsyncIterator
from typing import Any

from aegis.server.http.messages import Header

__all__ = ["send_stream"]

_log = logging.getLogger("aegis.server")

_POLL_S = 0.001
_OPENING_S = 5.0


async def send_stream(
    proto: Any, status: int, headers: list[Header], content: AsyncIterator[bytes]
) -> None:
    """Send a response as its body comes, no faster than the client takes it."""
    first = await anext(content, b"")
    if not first:  # a pipe that is never filled would be gone before granian opens it
        proto.response_bytes(status, headers, b"")
        return
    gone = asyncio.ensure_future(proto.client_disconnect())
    reader, writer = os.pipe()
    try:
        os.set_blocking(writer, False)
        proto.response_file(status, headers, f"/proc/self/fd/{reader}")
        part: bytes | None = first
        while part is not None:
            rest = memoryview(part)
            while rest:
                try:
                    size = os.write(writer, rest)
                except BlockingIOError:
                    await _writable(writer)
                    continue
                rest = rest[size:]
                if reader >= 0:
                    if not await _is_opened(reader, size, gone):
                        if not gone.done():
                            _log.warning("an answer was not sent: /proc cannot be read")
                        return
                    # From now on granian alone can read it, so that writing fails when the client
                    # has gone.
                    os.close(reader)
                    reader = -1
            part = await anext(content, None)
    except BrokenPipeError:
        pass  # the client has gone
    finally:
        gone.cancel()
        if reader >= 0:
            os.close(reader)
        os.close(writer)


async def _is_opened(reader: int, size: int, gone: asyncio.Future[None]) -> bool:
    """Whether granian reads from a pipe in which there are so many bytes, in a time that is ample."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _OPENING_S
    while _unread_bytes(reader) == size:
        if gone.done() or loop.time() > deadline:
            return False
        await asyncio.sleep(_POLL_S)
    return True


def _unread_bytes(pipe: int) -> int:
    found = fcntl.ioctl(pipe, termios.FIONREAD, struct.pack("i", 0))
    return int(struct.unpack("i", found)[0])


async def _writable(pipe: int) -> None:
    loop = asyncio.get_running_loop()
    is_writable = asyncio.Event()
    loop.add_writer(pipe, is_writable.set)
    try:
        await is_writable.wait()
    finally:
        loop.remove_writer(pipe)
