"""Instructions a decision, counted by valgrind: the same on a busy machine as on an idle one.

Each figure is the difference between asking a thousand actions once and twice, so that nothing but
decisions is in it. Two counts are comparable only where Python, compiler and machine are the same.

Run: python -m benchmarks.instructions [--write]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

STORED = Path(__file__).parent / "results" / "instructions.json"
MAX_GROWTH = 0.03

# SOURCE: Callgrind's manual, "Client request reference".
LIBRARY = """\
#include <valgrind/callgrind.h>
void begin(void) { CALLGRIND_START_INSTRUMENTATION; CALLGRIND_ZERO_STATS; }
void end(const char *name) { CALLGRIND_DUMP_STATS_AT(name); CALLGRIND_STOP_INSTRUMENTATION; }
"""
_DUMP = re.compile(r"Client Request: (\d+) ([^\n]+)\n(?:[^\n]*\n)*?summary: (\d+)\n")


def _compiler() -> str:
    """The compiler that the engine is built with."""
    return os.environ.get("CC") or str(sysconfig.get_config_var("CC")).split()[0]


def missing() -> str | None:
    """What cannot be counted without, where it is not there."""
    for command in ("valgrind", _compiler()):
        if shutil.which(command.split()[0]) is None:
            return f"{command} is not installed"
    found = _compiled(["-E", "-o", os.devnull])
    return None if found.returncode == 0 else "the headers of valgrind are not installed"


def _compiled(options: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*_compiler().split(), "-x", "c", "-", *options],
        input=LIBRARY,
        capture_output=True,
        text=True,
        check=False,
    )


def comparable() -> dict[str, str]:
    """What must be the same for two counts to be comparable."""
    said = subprocess.run(
        [*_compiler().split(), "--version"], capture_output=True, text=True, check=True
    )
    return {
        "python": f"{platform.python_implementation()} {platform.python_version()}"
        f" {' '.join(platform.python_build())}, {platform.python_compiler()}",
        "compiler": said.stdout.splitlines()[0],
        "machine": f"{platform.machine()}{' with AVX2' if _has_avx2() else ''}",
        "libc": " ".join(platform.libc_ver()),
    }


def _has_avx2() -> bool:
    """Whether the C library and the compiler's dispatch take the wider instructions, as valgrind does."""
    cpu = Path("/proc/cpuinfo")
    return cpu.exists() and " avx2 " in cpu.read_text(encoding="utf-8")


def counted() -> dict[str, float]:
    """Instructions a decision, by what decided.

    Raises:
        RuntimeError: Valgrind or the compiler failed.
    """
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        library = folder / "counting.so"
        built = _compiled(["-O1", "-shared", "-fPIC", "-o", str(library)])
        if built.returncode:
            raise RuntimeError(built.stderr)
        done = subprocess.run(
            [
                "valgrind",
                "--tool=callgrind",
                "--instr-atstart=no",
                f"--callgrind-out-file={folder}/dump",
                sys.executable,
                "-m",
                "benchmarks.counted",
                library,
            ],
            cwd=Path(__file__).parents[1],
            env={**os.environ, "PYTHONHASHSEED": "0"},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(done.stderr[-2_000:])
        return _differences([path.read_text() for path in folder.glob("dump.*")])


def _differences(dumps: list[str]) -> dict[str, float]:
    totals: dict[str, dict[int, int]] = {}
    for dump in dumps:
        if (found := _DUMP.search(dump)) is not None:
            totals.setdefault(found[2], {})[int(found[1])] = int(found[3])
    return {
        name: round((of[max(of)] - of[min(of)]) / min(of), 1) for name, of in sorted(totals.items())
    }


def grown(stored: dict[str, float], now: dict[str, float]) -> list[str]:
    """Each count that is more than it may be, or that only one of the two has."""
    said = []
    for name in sorted(stored.keys() | now.keys()):
        if name not in stored or name not in now:
            said.append(f"{name}: {'is not stored' if name in now else 'was not counted'}")
        elif now[name] > stored[name] * (1 + MAX_GROWTH):
            growth = now[name] / stored[name] - 1
            said.append(f"{name}: {stored[name]:,.0f} to {now[name]:,.0f}, {growth:+.1%}")
    return said


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.instructions")
    parser.add_argument("--write", action="store_true", help=f"renew {STORED.name}")
    options = parser.parse_args()
    if (lacking := missing()) is not None:
        sys.exit(lacking)
    result: dict[str, Any] = {**comparable(), "instructions": counted()}
    for name, count in result["instructions"].items():
        print(f"{name:40} {count:>12,.0f}")
    if options.write:
        STORED.write_text(json.dumps(result, indent=1) + "\n")
    elif STORED.exists():
        said = grown(json.loads(STORED.read_text())["instructions"], result["instructions"])
        sys.exit("\n".join(said) or None)


if __name__ == "__main__":
    main()
