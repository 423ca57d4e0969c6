"""The RSGI front: the kernel as granian calls it where a request costs the least.

RSGI reports less than ASGI does, and holds nothing back; what is done about that is tested on real
connections, since a stand-in can only repeat what was found out about granian.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import struct
import termios
from asyncio import CancelledError, current_task
from collections.abc import AsyncIterator
from typing import Any

from aegis.server.http.kernel import (
    JSON,
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

__all__ = ["Rsgi"]

_log = logging.getLogger("aegis.server")

_LOOK_AGAIN_S = 0.001
_OPENING_S = 5.0


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
        self._deadlines.begin(loop)

    def __rsgi_del__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Close it, after the last request."""
        self._deadlines.end()
        loop.run_until_complete(self._lifecycle.close())

    async def __rsgi__(self, scope: Any, proto: Any) -> None:
        """Serve one request."""
        # The way of every request, on which the common case of each step stands in place: a call
        # costs as much as the step itself. Each touch of the scope and the headers is one as well,
        # and the scope's headers are copied each time.
        headers = scope.headers
        joined = "\n".join(headers.keys())
        names = self._names.get(joined) or self._names_of(joined)
        request_id = self._request_id(headers) if names.has_request_id else next(self._request_ids)
        self._running += 1
        try:
            try:
                if not names.is_usual:  # to look at the values of all requests would cost too much
                    check_headers_size(len(joined) + len("".join(headers.values())))
                method, path = scope.method, scope.path
                route = self._routes.get((method, path)) or self._route(method, path)
                caller = self._admit(route.permission, headers, names, scope)
                body = b""
                largest = route.largest_body_bytes
                if largest:
                    if names.is_encoded or headers.get_all("content-type") != PLAIN_JSON:
                        check_declared(route, headers)
                    length = headers.get_all("content-length")
                    if length:
                        said = ", ".join(length)
                        declared = self._sizes.get(said) or declared_size(said, route)
                        waiter = proto()
                        waiting = self._deadlines.waiting
                        waiting[waiter] = self._deadlines.tick
                        try:
                            body = await waiter
                        except CancelledError:
                            self._end_of(waiter)
                            raise
                        except RuntimeError:  # granian's, which only the runner may import
                            raise broken_off() from None
                        finally:
                            del waiting[waiter]
                            # INVARIANT: no native awaitable stays in a frame of which an error may hold
                            # the traceback: it holds the error, and the collector cannot see that.
                            del waiter
                        if len(body) != declared:
                            raise too_large(route) if len(body) > largest else broken_off()
                    elif names.is_chunked:
                        body = await self._chunks(proto, route)
                query = scope.query_string if not largest or route.takes_query else ""
                if route.needs_service and not self._lifecycle.is_open:
                    await self._lifecycle.open()
                answer = route.handler(body, headers, query, caller)
                made = (
                    answer
                    if isinstance(answer, tuple)
                    else await made_for(method, answer, proto.client_disconnect)
                )
                status, more, content = made
            except Exception as error:  # noqa: BLE001 - the edge: no failure may end the connection unsaid
                status, more, content = self._refusal(error, request_id)
            if type(content) is bytes and len(content) <= LARGEST_WHOLE_BYTES:
                # The server adds the length, and leaves the body out where the method is HEAD.
                proto.response_bytes(status, [JSON, ("x-request-id", request_id), *more], content)
            else:
                sent = [("x-request-id", request_id), *more]
                await _send_large(proto, scope.method, status, sent, content)
        finally:
            self._running -= 1

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
                if size > route.largest_body_bytes:
                    raise too_large(route)
        except CancelledError:
            self._end_of(task)
            raise
        finally:
            del self._deadlines.waiting[task]
        # A whole body ends with one empty part. Where the client goes before that, or its chunks
        # make no sense, granian says nothing, but gives an empty part for the failure too.
        if ends != 1:
            raise broken_off()
        return b"".join(parts)


async def _send_large(
    proto: Any,
    method: str,
    status: int,
    headers: list[Header],
    content: bytes | AsyncIterator[bytes],
) -> None:
    """Send an answer as it comes, or piece by piece."""
    if isinstance(content, bytes):
        headers += [JSON, ("content-length", str(len(content)))]
        content = pieces_of(content)
    if method == "HEAD":
        proto.response_empty(status, headers)
        return
    await _send_stream(proto, status, headers, content)


async def _send_stream(
    proto: Any, status: int, headers: list[Header], content: AsyncIterator[bytes]
) -> None:
    """Send an answer as it comes, no faster than the client takes it.

    RSGI's own streams take everything at once and keep it in memory. A file does not: granian reads
    it as the client takes it. So it is given a pipe to read, which holds 64 KiB and no more.
    """
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
        await asyncio.sleep(_LOOK_AGAIN_S)
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
