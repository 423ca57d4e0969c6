"""agent-aegis 1.0.0 from PyPI, in an environment of its own: in process and as a server.

Its package is called `aegis` too, so its Python is isolated (`-I`) from the working folder.
"""

from __future__ import annotations

import json
import subprocess
import venv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

RELEASE = "agent-aegis[server]==1.0.0"

IN_PROCESS = """
import json, sys
from time import perf_counter_ns
from aegis import Action, Policy

with open(sys.argv[1]) as file:
    policy = Policy.from_dict(json.load(file))
with open(sys.argv[2]) as file:
    asked = [Action(kind, target) for kind, target in json.load(file)]
for count in map(int, sys.stdin):
    start = perf_counter_ns()
    for action in asked[:count]:
        policy.evaluate(action)
    print((perf_counter_ns() - start) / count, flush=True)
"""
"""Measures a round for each number of actions that it reads."""


def installed(folder: Path) -> Path:
    """Its Python, made once."""
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", RELEASE], check=True)
        (folder / "ready").touch()
    return python


@contextmanager
def in_process(
    python: Path, policy: Path, asked: list[tuple[str, str]]
) -> Iterator[Callable[[int], float]]:
    """Its `Policy.evaluate` in a process of its own; measures nanoseconds a decision of so many."""
    actions = policy.with_suffix(".asked.json")
    actions.write_text(json.dumps(asked))
    with subprocess.Popen(
        [python, "-I", "-c", IN_PROCESS, policy, actions],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=policy.parent,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        ask, answer = process.stdin, process.stdout

        def measure(count: int) -> float:
            print(count, file=ask, flush=True)
            return float(answer.readline())

        yield measure
        ask.close()


def command(python: Path, policy: Path, port: int, database: Path) -> list[str]:
    """What starts its server."""
    start = "import sys; from aegis.cli.main import main; sys.exit(main())"
    options = ["--port", str(port), "--audit-db", str(database), "--no-dashboard"]
    return [str(python), "-I", "-c", start, "serve", str(policy), *options]
