"""Load over HTTP: an open loop for tails, a closed loop (or wrk) for throughput.

The open loop sends at moments that are fixed beforehand and counts from those, so that a server
which stalls cannot hide the requests that would have come meanwhile.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
import tempfile
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from urllib.parse import urlsplit

from aegis.errors import ConfigError, shown

__all__ = ["Load", "open_loop", "throughput"]

TICK_S = 0.0005
NEAR_S = 0.002
PATIENCE_S = 10.0
_PERCENTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999}

_WRK = """\
local bodies = {}
for line in io.lines("%(bodies)s") do bodies[#bodies + 1] = line end
local at = math.random(#bodies)
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
%(key)s
request = function()
  at = at %% #bodies + 1
  return wrk.format(nil, "/api/v1/evaluate", nil, bodies[at])
end
"""


@dataclass(slots=True)
class Load:
    """What a load found.

    Attributes:
        requests: Those that were answered with 200.
        errors: All others, and those that were not answered.
        seconds: From the first intended moment to the last answer.
        latencies_ms: From the intended moment to the answer; empty for wrk.
        by: What made it: `open loop`, `closed loop` or `wrk`.
    """

    requests: int
    errors: int
    seconds: float
    latencies_ms: list[float] = field(repr=False)
    by: str

    @property
    def per_s(self) -> float:
        """Answers a second."""
        return self.requests / self.seconds

    @property
    def percentiles_ms(self) -> dict[str, float]:
        """p50, p90, p99, p99.9 and the most, in milliseconds."""
        ordered = sorted(self.latencies_ms) or [float("nan")]
        last = len(ordered) - 1
        found = {
            name: ordered[min(last, int(part * len(ordered)))]
            for name, part in _PERCENTILES.items()
        }
        return {**found, "max": ordered[-1]}


def _address(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    try:
        port = parts.port or 80
    except ValueError:
        port = 0
    if parts.scheme != "http" or not parts.hostname or not port or parts.path not in ("", "/"):
        raise ConfigError(f"{shown(url)} must be as in `http://127.0.0.1:8000`")
    return parts.hostname, port


def _requests(url: str, bodies: Sequence[bytes], key: str | None) -> list[bytes]:
    host, port = _address(url)
    named = "" if key is None else f"X-API-Key: {key}\r\n"
    return [
        b"POST /api/v1/evaluate HTTP/1.1\r\nHost: %b\r\nContent-Type: application/json\r\n%b"
        b"Content-Length: %d\r\n\r\n%b"
        % (f"{host}:{port}".encode(), named.encode(), len(body), body)
        for body in bodies
    ]


class _Connection(asyncio.Protocol):
    """A kept connection with at most one request on its way."""

    _LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)

    def __init__(self, run: _Run) -> None:
        self.run = run
        self.since = 0.0
        self.transport: asyncio.Transport | None = None
        self.buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - it is one of TCP
        self.transport = transport

    def send(self, request: bytes, since: float) -> None:
        self.since = since
        if self.transport is not None:
            self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, end, rest = self.buffer.partition(b"\r\n\r\n")
        length = self._LENGTH.search(head)
        if end and length is not None and len(rest) >= int(length[1]):
            self.buffer = b""
            self.run.answered(self, is_good=head[9:12] == b"200")

    def connection_lost(self, _: Exception | None) -> None:
        self.transport = None
        self.run.lost(self)


class _Run:
    """One load on its way: requests that are due wait for a free connection."""

    def __init__(self, requests: Sequence[bytes], closed_until: float | None) -> None:
        self.requests = requests
        self.closed_until = closed_until
        self.sent = 0
        self.good = 0
        self.errors = 0
        self.latencies: list[float] = []
        self.free: deque[_Connection] = deque()
        self.busy: set[_Connection] = set()
        self.due: deque[float] = deque()
        self.last = 0.0

    def add(self, since: float) -> None:
        if self.free:
            self._send(self.free.popleft(), since)
        else:
            self.due.append(since)

    def _send(self, connection: _Connection, since: float) -> None:
        self.busy.add(connection)
        connection.send(self.requests[self.sent % len(self.requests)], since)
        self.sent += 1

    def answered(self, connection: _Connection, *, is_good: bool) -> None:
        self.last = now = perf_counter()
        self.busy.discard(connection)
        self.latencies.append((now - connection.since) * 1_000)
        self.good += is_good
        self.errors += not is_good
        if self.due:
            self._send(connection, self.due.popleft())
        elif self.closed_until is not None and now < self.closed_until:
            self._send(connection, now)
        else:
            self.free.append(connection)

    def lost(self, connection: _Connection) -> None:
        if connection in self.busy:
            self.busy.discard(connection)
            self.errors += 1
        if connection in self.free:
            self.free.remove(connection)

    async def connect(self, url: str, connections: int) -> None:
        loop = asyncio.get_running_loop()
        host, port = _address(url)
        try:
            for _ in range(connections):
                _, made = await loop.create_connection(lambda: _Connection(self), host, port)
                self.free.append(made)
        except OSError as error:
            raise ConfigError(f"cannot reach {shown(url)}: {error}") from None

    async def end(self, by: str, start: float) -> Load:
        deadline = perf_counter() + PATIENCE_S
        while (self.due or self.busy) and (self.free or self.busy) and perf_counter() < deadline:  # noqa: ASYNC110 - as often as it sends
            await asyncio.sleep(TICK_S)
        errors = self.errors + len(self.due) + len(self.busy)
        for connection in [*self.free, *self.busy]:
            if connection.transport is not None:
                connection.transport.abort()
        self.busy.clear()
        return Load(self.good, errors, max(self.last - start, TICK_S), self.latencies, by)


def open_loop(
    url: str,
    bodies: Sequence[bytes],
    *,
    per_s: float,
    seconds: float,
    connections: int = 32,
    key: str | None = None,
) -> Load:
    """Send evaluates at a fixed rate, whatever the server does.

    Args:
        url: Of the server, as in `http://127.0.0.1:8000`.
        bodies: Of the requests, one after the other.
        per_s: How many a second.
        seconds: How long.
        connections: How many may be on their way at once; what is due beyond waits, and its
            latency counts.
        key: Sent as X-API-Key.

    Raises:
        ConfigError: The server cannot be reached.
    """

    async def run() -> Load:
        going = _Run(_requests(url, bodies, key), None)
        await going.connect(url, connections)
        start = perf_counter()
        total = max(1, int(per_s * seconds))
        planned = 0
        while planned < total:
            now = perf_counter()
            while planned < total and start + planned / per_s <= now:
                going.add(start + planned / per_s)
                planned += 1
            # A timer of the loop is late by up to a millisecond, which would count as latency.
            is_near = start + planned / per_s - perf_counter() < NEAR_S
            await asyncio.sleep(0 if is_near else TICK_S)
        return await going.end("open loop", start)

    return asyncio.run(run())


def throughput(
    url: str,
    bodies: Sequence[bytes],
    *,
    seconds: float,
    connections: int = 32,
    key: str | None = None,
) -> Load:
    """As many evaluates as the server takes: by wrk where that is installed.

    Raises:
        ConfigError: The server cannot be reached.
    """
    if shutil.which("wrk") is not None:
        return _by_wrk(url, bodies, seconds, connections, key)

    async def run() -> Load:
        start = perf_counter()
        going = _Run(_requests(url, bodies, key), start + seconds)
        await going.connect(url, connections)
        for _ in range(connections):
            going.add(perf_counter())
        await asyncio.sleep(seconds)
        return await going.end("closed loop", start)

    return asyncio.run(run())


def _by_wrk(
    url: str, bodies: Sequence[bytes], seconds: float, connections: int, key: str | None
) -> Load:
    _address(url)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "bodies").write_bytes(b"\n".join(bodies) + b"\n")
        named = "" if key is None else f'wrk.headers["X-API-Key"] = "{key}"'
        script = Path(folder) / "wrk.lua"
        script.write_text(_WRK % {"bodies": Path(folder) / "bodies", "key": named})
        whole = max(1, round(seconds))
        done = subprocess.run(
            ["wrk", "-t1", f"-c{connections}", f"-d{whole}s", "-s", str(script), url],  # noqa: S607
            capture_output=True,
            text=True,
            check=False,
        )
    total = re.search(r"(\d+) requests in ([\d.]+)(m?s)", done.stdout)
    if done.returncode or total is None:
        raise ConfigError(f"cannot reach {shown(url)}: {' '.join(done.stderr.split())}")
    bad = sum(map(int, re.findall(r"Non-2xx or 3xx responses: (\d+)", done.stdout)))
    lost = sum(map(int, re.findall(r"(?:connect|read|write|timeout) (\d+)", done.stdout)))
    took = float(total[2]) / (1_000 if total[3] == "ms" else 1)
    return Load(int(total[1]) - bad, bad + lost, took, [], "wrk")
