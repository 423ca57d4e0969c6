"""What the README shows is what happens: its commands are run and its answers compared."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^\$ (curl .+)\n(.+)$", README, re.MULTILINE)
SHELL = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`make serve` as the README has it, on a free port and a database of its own."""
    folder = tmp_path_factory.mktemp("readme")
    with (folder / "output").open("w") as output:
        arguments = f"ARGS=--port 0 --audit-db {folder / 'audit.db'}"
        process = subprocess.Popen(
            ["make", "--no-print-directory", "serve", arguments],
            cwd=ROOT,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield _address(folder / "output", process)
    finally:
        process.terminate()  # make passes it on
        process.wait(30)


def _address(output: Path, process: subprocess.Popen[bytes]) -> str:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        found = re.search(r" at (http://\S+)", output.read_text(encoding="utf-8"))
        if found is not None:
            return found[1]
        time.sleep(0.05)
    raise AssertionError(output.read_text(encoding="utf-8"))


def _matches(found: object, shown: object) -> bool:
    """Whether an answer is the one that is shown; `…` stands for anything."""
    if shown == "…":
        return True
    if isinstance(shown, dict) and isinstance(found, dict):
        return list(found) == list(shown) and all(_matches(found[key], shown[key]) for key in shown)
    if isinstance(shown, list) and isinstance(found, list):
        return len(found) == len(shown) and all(map(_matches, found, shown))
    return found == shown


def test_readme_shows_examples() -> None:
    assert len(EXAMPLES) >= 6


@pytest.mark.slow
def test_commands_of_the_readme_answer_as_shown(server: str) -> None:
    assert shutil.which("curl") is not None
    for command, shown in EXAMPLES:
        line = command.replace("http://localhost:8000", server)
        done = subprocess.run(line, shell=True, capture_output=True, text=True, check=True)
        assert _matches(json.loads(done.stdout), json.loads(shown)), (line, done.stdout)


def test_set_up_commands_of_the_readme_are_targets_of_make() -> None:
    targets = re.findall(r"^make (\w+)", SHELL[0], re.MULTILINE)
    assert targets == ["serve", "test"]
    for target in targets:
        subprocess.run(["make", "--dry-run", target], cwd=ROOT, check=True, capture_output=True)


def test_python_of_the_readme_builds_an_application(tmp_path: Path) -> None:
    code = re.findall(r"```python\n(.*?)```", README, re.DOTALL)[0]
    shutil.copy(ROOT / "policy.yaml", tmp_path)
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
