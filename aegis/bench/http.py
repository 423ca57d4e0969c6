"""Servers under load, one beside the other: throughput, tails, CPU a request."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aegis.bench.load import open_loop, throughput
from aegis.bench.measure import figures, ratio, turns
from aegis.errors import ConfigError

__all__ = ["aegis_command", "free_port", "running", "servers", "url_only"]

WARM_UP_S = 1.0
START_S = 20.0


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
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment
    )
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
) -> dict[str, Any]:
    """One server, once: throughput, then CPU and tails at a fixed rate."""
    throughput(url, bodies, seconds=WARM_UP_S, key=key)
    before = None if pid is None else _cpu_s(pid)
    most = throughput(url, bodies, seconds=seconds, key=key)
    cpu_us = None
    if pid is not None and before is not None:
        cpu_us = (_cpu_s(pid) - before) * 1_000_000 / max(1, most.requests + most.errors)
    steady = open_loop(url, bodies, per_s=per_s, seconds=seconds, key=key)
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
    per_s: float,
    tick: Callable[[], None],
) -> dict[str, Any]:
    """Measure servers in turns.

    Each is started anew in each turn: which core a process comes to lie on moves its rate by a
    third, for as long as it lives.

    Args:
        starts: What starts each of them on a port.
        bodies: What each of them is asked.
        rounds: How often, after one that does not count.
        seconds: Of each throughput and each open loop.
        per_s: Rate of the open loop.
        tick: Called after each round.

    Returns:
        The figures of each, and ratios to the last of them.
    """
    raw: dict[str, list[dict[str, Any]]] = {name: [] for name in starts}

    def once(name: str) -> float:
        port = free_port()
        with running(starts[name](port), port) as pid:
            found = _measured(f"http://127.0.0.1:{port}", pid, bodies[name], seconds, per_s)
        raw[name].append(found)
        return float(found["requests_per_s"])

    turns({name: lambda name=name: once(name) for name in starts}, rounds, tick)  # type: ignore[misc]
    counted = {name: found[1:] for name, found in raw.items()}
    *others, base = counted
    return {
        "seconds": seconds,
        "open_loop_per_s": per_s,
        "servers": {name: _summary(found) for name, found in counted.items()},
        "ratios": {
            f"{name} {what} over {base}": ratio(
                [found[member] for found in counted[name]],
                [found[member] for found in counted[base]],
            )
            for name in others
            for what, member in (("rate", "requests_per_s"), ("CPU", "cpu_us_a_request"))
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
