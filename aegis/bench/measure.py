"""How it is measured: contestants in turns, medians, ratios within each turn; the machine."""

from __future__ import annotations

import gc
import os
import platform
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

__all__ = ["calm_ratio", "figures", "machine", "quiet", "ratio", "turns", "versions"]

PACKAGES = ("agent-aegis", "granian", "uvloop", "orjson", "apsw", "google-re2", "pyyaml", "click")


def turns(
    contestants: Mapping[str, Callable[[], float]], rounds: int, tick: Callable[[], None]
) -> dict[str, list[float]]:
    """Let contestants run in turns, so that all of them meet the same moods of the machine.

    Args:
        contestants: Each measures itself once and returns its figure.
        rounds: How often, after one round that does not count; every other in reverse order.
        tick: Called after each round.

    Returns:
        The figures of each, one a round.
    """
    found: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name in list(contestants)[:: 1 if number % 2 else -1]:
            figure = contestants[name]()
            if number:
                found[name].append(figure)
        tick()
    return found


def figures(values: Sequence[float]) -> dict[str, Any]:
    """Median, least and most of the rounds, and the rounds themselves."""
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "rounds": list(values),
    }


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median of the ratios within each round."""
    return statistics.median(our / their for our, their in zip(ours, theirs, strict=True))


def calm_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The ratio of the medians of each one's calmer half: what disturbs a tail only lengthens it."""
    our, their = (statistics.median(sorted(of)[: (len(of) + 1) // 2]) for of in (ours, theirs))
    return our / their


@contextmanager
def quiet() -> Iterator[None]:
    """No garbage collection inside a measurement: it would fall on whoever is running."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def machine() -> dict[str, Any]:
    """What it ran on."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def versions() -> dict[str, str]:
    """The releases of what it ran with."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
