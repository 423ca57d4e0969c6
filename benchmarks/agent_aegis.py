"""agent-aegis 1.0.0 from PyPI, in an environment of its own: in process and as a server.

Its package is called `aegis` too, so its Python is isolated (`-I`) from the working folder.
"""

from __future__ import annotations

import json
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

RELEASE = "agent-aegis[server]==1.0.0"

IN_PROCESS = """
import json, statistics, sys
from time import perf_counter_ns
from aegis import Action, Policy

policy = Policy.from_yaml(sys.argv[1])
with open(sys.argv[2]) as file:
    asked = [Action(kind, target) for kind, target in json.load(file)]
times = []
for _ in range(5):
    start = perf_counter_ns()
    for action in asked:
        policy.evaluate(action)
    times.append((perf_counter_ns() - start) / len(asked))
print(json.dumps(times))
"""


def installed(folder: Path) -> Path:
    """Its Python, made once."""
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", RELEASE], check=True)
        (folder / "ready").touch()
    return python


def in_process(python: Path, policy: Path, asked: list[tuple[str, str]]) -> list[float]:
    """Nanoseconds a decision of its `Policy.evaluate`, one figure a round."""
    actions = policy.with_suffix(".asked.json")
    actions.write_text(json.dumps(asked))
    done = subprocess.run(
        [python, "-I", "-c", IN_PROCESS, policy, actions],
        check=True,
        stdout=subprocess.PIPE,
        stderr=sys.stderr,
        cwd=policy.parent,
    )
    times: Any = json.loads(done.stdout)
    return [float(time) for time in times]


def command(python: Path, policy: Path, port: int, database: Path) -> list[str]:
    """What starts its server."""
    start = "import sys; from aegis.cli.main import main; sys.exit(main())"
    options = ["--port", str(port), "--audit-db", str(database), "--no-dashboard"]
    return [str(python), "-I", "-c", start, "serve", str(policy), *options]
