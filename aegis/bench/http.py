"""Servers under load, one beside the other: throughput, tails, CPU a request.

A server has one core and the load has the others: which core a process comes to lie on, and with
whom, would else move its rate by a third and its tails tenfold.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aegis.bench.load import CONNECTIONS, EVALUATE, open_loop, throughput
from aegis.bench.measure import calm_ratio, figures, ratio, turns
from aegis.errors import ConfigError

__all__ = ["aegis_command", "free_port", "running", "servers", "url_only"]

WARM_UP_S = 1.0
START_S = 60.0
SLOW_PER_S = 1_000.0

RATIOS: Mapping[str, Callable[[dict[str, Any]], float]] = {
    "rate": lambda found: found["requests_per_s"],
    "CPU": lambda found: found["cpu_us_a_request"],
    "p99": lambda found: found["tails_ms"]["p99"],
}
"""What servers are compared by, from the figures of one round."""


def free_port() -> int:
    """A port of the loopback that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def aegis_command(policy: Path, port: int, database: Path) -> list[str]:
    """What starts a server of ours, with one worker."""
    start = "from aegis.cli import main; main()"
    options = ["--port", str(port), "--audit-db", str(database)]
    return [sys.executable, "-c", start, "serve", str(policy), *options]


@contextmanager
def running(command: Sequence[str], port: int) -> Iterator[int]:
    """A server while it is measured; its process.

    Raises:
        ConfigError: It does not answer.
    """
    environment = {name: text for name, text in os.environ.items() if not name.startswith("AEGIS_")}
    cores = os.sched_getaffinity(0)
    of_server = {max(cores)}
    # What is started inherits the cores of this process, whose own are the others from then on.
    os.sched_setaffinity(0, of_server)
    try:
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment
        )
    finally:
        os.sched_setaffinity(0, cores - of_server or cores)
    try:
        deadline = time.monotonic() + START_S
        while not _listens(port):
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                said = process.communicate()[1].decode(errors="replace").strip()
                raise ConfigError(f"the server to be measured did not start: {said[-500:]}")
            time.sleep(0.02)
        yield process.pid
    finally:
        os.sched_setaffinity(0, cores)
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stderr is not None:
            process.stderr.close()


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def _cpu_s(pid: int) -> float:
    """CPU seconds of a process and its children so far."""
    ticks = 0
    for process in [pid, *_children(pid)]:
        try:
            fields = (
                Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
            )
        except OSError:
            continue
        ticks += int(fields[11]) + int(fields[12])  # SOURCE: proc_pid_stat(5): utime, stime
    return ticks / os.sysconf("SC_CLK_TCK")


def _children(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text(encoding="utf-8").split()):
            found += [child, *_children(child)]
    return found


def _measured(
    url: str,
    pid: int | None,
    bodies: Sequence[bytes],
    seconds: float,
    per_s: float,
    key: str | None = None,
    path: str = EVALUATE,
    connections: int = CONNECTIONS,
) -> dict[str, Any]:
    """One server, once: throughput, then CPU and tails at a fixed rate."""
    throughput(url, bodies, seconds=WARM_UP_S, key=key, path=path, connections=connections)
    before = None if pid is None else _cpu_s(pid)
    most = throughput(url, bodies, seconds=seconds, key=key, path=path, connections=connections)
    cpu_us = None
    if pid is not None and before is not None:
        cpu_us = (_cpu_s(pid) - before) * 1_000_000 / max(1, most.requests + most.errors)
    steady = open_loop(
        url, bodies, per_s=per_s, seconds=seconds, key=key, path=path, connections=connections
    )
    return {
        "requests_per_s": most.per_s,
        "cpu_us_a_request": cpu_us,
        "by": most.by,
        "tails_ms": steady.percentiles_ms,
        "rate_per_s": steady.per_s,
        "errors": most.errors + steady.errors,
    }


def servers(
    starts: Mapping[str, Callable[[int], Sequence[str]]],
    bodies: Mapping[str, Sequence[bytes]],
    *,
    rounds: int,
    seconds: float,
    per_s: float | Collection[str],
    tick: Callable[[], None],
    paths: Mapping[str, str] | None = None,
    connections: int = CONNECTIONS,
) -> dict[str, Any]:
    """Measure a server, and others beside it in turns.

    Each is started anew in each turn: how its memory came to lie moves its rate, for as long as it
    lives.

    Args:
        starts: What starts each of them on a port; the others come after the one that is measured.
        bodies: What each of them is asked.
        rounds: How often, after one that does not count.
        seconds: Of each throughput and each open loop.
        per_s: Rate of the open loop; or servers: half of what the fastest of these took in the
            round that does not count.
        tick: Called after each round.
        paths: What each is asked for, where that is not to evaluate.
        connections: How many requests may be on their way at once.

    Returns:
        The figures of each, and ratios of the first one to each of the others.
    """
    ours, *others = starts
    raw: dict[str, list[dict[str, Any]]] = {name: [] for name in starts}
    rate = SLOW_PER_S if isinstance(per_s, Collection) else per_s

    def once(name: str) -> float:
        port = free_port()
        with running(starts[name](port), port) as pid:
            found = _measured(
                f"http://127.0.0.1:{port}",
                pid,
                bodies[name],
                seconds,
                rate,
                path=(paths or {}).get(name, EVALUATE),
                connections=connections,
            )
        raw[name].append(found)
        return float(found["requests_per_s"])

    def next_round() -> None:
        nonlocal rate
        if isinstance(per_s, Collection):
            rate = max(raw[name][0]["requests_per_s"] for name in per_s) / 2
        tick()

    turns(
        {name: lambda name=name: once(name) for name in starts},  # type: ignore[misc]
        rounds,
        next_round,
    )
    counted = {name: found[1:] for name, found in raw.items()}
    return {
        "seconds": seconds,
        "open_loop_per_s": rate,
        "servers": {name: _summary(found) for name, found in counted.items()},
        "ratios": {
            f"{ours} {what} over {other}": (calm_ratio if what == "p99" else ratio)(
                [figure(found) for found in counted[ours]],
                [figure(found) for found in counted[other]],
            )
            for other in others
            for what, figure in RATIOS.items()
        },
    }


def url_only(
    url: str, bodies: Sequence[bytes], *, seconds: float, per_s: float, key: str | None
) -> dict[str, Any]:
    """Measure a server that runs already."""
    found = [_measured(url, None, bodies, seconds, per_s, key)]
    return {
        "seconds": seconds,
        "open_loop_per_s": per_s,
        "servers": {url: _summary(found)},
        "ratios": {},
    }


def _summary(found: list[dict[str, Any]]) -> dict[str, Any]:
    cpu = [one["cpu_us_a_request"] for one in found if one["cpu_us_a_request"] is not None]
    return {
        "by": found[0]["by"],
        "requests_per_s": figures([one["requests_per_s"] for one in found]),
        "cpu_us_a_request": figures(cpu) if cpu else None,
        "tails_ms": {
            name: figures([one["tails_ms"][name] for one in found]) for name in found[0]["tails_ms"]
        },
        "errors": sum(one["errors"] for one in found),
    }
