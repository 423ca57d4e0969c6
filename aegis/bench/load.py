"""Load over HTTP: an open loop for tails, a closed loop (or wrk) for throughput.

The open loop sends at moments that are fixed beforehand and counts from those, so that a server
which stalls cannot hide the requests that would have come meanwhile.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

from aegis.bench.connections import Connections, address
from aegis.errors import ConfigError
from aegis.messages import quote

__all__ = ["CONNECTIONS", "EVALUATE", "Load", "open_loop", "throughput"]

NEAR_S = 0.002
PATIENCE_S = 10.0
EVALUATE = "/api/v1/evaluate"
CONNECTIONS = 32
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
  return wrk.format(nil, "%(path)s", nil, bodies[at])
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


def _requests(url: str, bodies: Sequence[bytes], key: str | None, path: str) -> list[bytes]:
    host, port = address(url)
    named = "" if key is None else f"X-API-Key: {key}\r\n"
    return [
        b"POST %b HTTP/1.1\r\nHost: %b\r\nContent-Type: application/json\r\n%b"
        b"Content-Length: %d\r\n\r\n%b"
        % (path.encode(), f"{host}:{port}".encode(), named.encode(), len(body), body)
        for body in bodies
    ]


def open_loop(
    url: str,
    bodies: Sequence[bytes],
    *,
    per_s: float,
    seconds: float,
    connections: int = CONNECTIONS,
    key: str | None = None,
    path: str = EVALUATE,
) -> Load:
    """Send requests at a fixed rate, whatever the server does.

    Args:
        url: Of the server, as in `http://127.0.0.1:8000`.
        bodies: Of the requests, one after the other.
        per_s: How many a second.
        seconds: How long.
        connections: How many may be on their way at once; what is due beyond waits, and its
            latency counts.
        key: Sent as X-API-Key.
        path: What is asked for.

    Raises:
        ConfigError: The server cannot be reached.
    """
    going = Connections(url, _requests(url, bodies, key, path), connections)
    start = perf_counter()
    total = max(1, int(per_s * seconds))
    planned = 0
    while planned < total and going.is_alive:
        now = perf_counter()
        while planned < total and start + planned / per_s <= now:
            going.add(start + planned / per_s)
            planned += 1
        wait_s = start + planned / per_s - perf_counter()
        # What sleeps wakes up late, which would count as latency.
        going.take(wait_s - NEAR_S if wait_s > NEAR_S else 0)
    return _ended(going, start, "open loop", total - planned)


def throughput(
    url: str,
    bodies: Sequence[bytes],
    *,
    seconds: float,
    connections: int = CONNECTIONS,
    key: str | None = None,
    path: str = EVALUATE,
) -> Load:
    """As many requests as the server takes: by wrk where that is installed.

    Raises:
        ConfigError: The server cannot be reached.
    """
    if shutil.which("wrk") is not None:
        return _by_wrk(url, bodies, seconds, connections, key, path)

    going = Connections(url, _requests(url, bodies, key, path), connections)
    start = perf_counter()
    for _ in range(connections):
        going.add(start)
    while going.is_alive and perf_counter() < start + seconds:
        for _ in range(going.take(NEAR_S)):
            going.add(perf_counter())
    return _ended(going, start, "closed loop", 0)


def _ended(going: Connections, start: float, by: str, unsent: int) -> Load:
    """Wait for the last answers; what a load found."""
    deadline = perf_counter() + PATIENCE_S
    while going.is_alive and not going.is_idle and perf_counter() < deadline:
        going.take(NEAR_S)
    going.close()
    took = max(going.last - start, NEAR_S)
    return Load(going.good, going.bad + unsent, took, going.latencies_ms, by)


def _by_wrk(
    url: str,
    bodies: Sequence[bytes],
    seconds: float,
    connections: int,
    key: str | None,
    path: str,
) -> Load:
    address(url)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "bodies").write_bytes(b"\n".join(bodies) + b"\n")
        named = "" if key is None else f'wrk.headers["X-API-Key"] = "{key}"'
        script = Path(folder) / "wrk.lua"
        script.write_text(_WRK % {"bodies": Path(folder) / "bodies", "key": named, "path": path})
        whole = max(1, round(seconds))
        done = subprocess.run(
            ["wrk", "-t1", f"-c{connections}", f"-d{whole}s", "-s", str(script), url],  # noqa: S607
            capture_output=True,
            text=True,
            check=False,
        )
    total = re.search(r"(\d+) requests in ([\d.]+)(m?s)", done.stdout)
    if done.returncode or total is None:
        raise ConfigError(f"cannot reach {quote(url)}: {' '.join(done.stderr.split())}")
    bad = sum(map(int, re.findall(r"Non-2xx or 3xx responses: (\d+)", done.stdout)))
    lost = sum(map(int, re.findall(r"(?:connect|read|write|timeout) (\d+)", done.stdout)))
    took = float(total[2]) / (1_000 if total[3] == "ms" else 1)
    return Load(int(total[1]) - bad, bad + lost, took, [], "wrk")
