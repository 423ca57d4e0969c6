"""The engine keeps nothing of what it was asked: each kind of work in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.leaking import TIMES, WORK

ROOT = Path(__file__).parents[2]

FEW = TIMES // 100
"""Far below one a turn, or one a compilation; above what Python's own caches come to."""

LITTLE_BYTES = 1 << 20
"""Below 64 bytes a turn; above the last pages of arenas that Python is slow to give back."""

LEAKS = [name for name in WORK if name.startswith("leak")]


def grown(work: str) -> dict[str, int]:
    """What has grown, by its name."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.unit.leaking", work],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    sizes: dict[str, int] = json.loads(done.stdout)
    return {
        name: size
        for name, size in sizes.items()
        if size > (LITTLE_BYTES if name == "resident_bytes" else FEW)
    }


@pytest.mark.slow
@pytest.mark.parametrize("work", [name for name in WORK if name not in LEAKS])
def test_memory_stays_flat(work: str) -> None:
    assert grown(work) == {}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("leak", "seen"),
    [
        ("leak objects", "blocks"),
        ("leak memory", "resident_bytes"),
        ("leak references", "references"),
    ],
)
def test_leak_is_caught(leak: str, seen: str) -> None:
    assert seen in grown(leak)
