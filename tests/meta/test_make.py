"""What `make` leaves behind, which Python it takes, and that it says what it does."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import pytest

from tests.meta.conftest import run
from tests.meta.documents import ROOT
from tests.process.server import Server

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the Makefile, and with an environment of another Python."""
    monkeypatch.delenv("PYTHON", raising=False)
    for name in ("Makefile", ".gitignore", "policy.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\necho /elsewhere/bin/python3\n")
    python.chmod(0o755)
    (tmp_path / ".venv" / "pip").touch()
    return tmp_path


def planned(checkout: Path, *arguments: str) -> str:
    """What `make` would do."""
    return run("make", "--dry-run", *arguments, cwd=checkout)


@needs_git
def test_served_folder_is_clean_to_git_and_make_clean_leaves_nothing_of_the_server(
    checkout: Path,
) -> None:
    run("git", "init", "--quiet", cwd=checkout)
    (checkout / ".git" / "info" / "exclude").write_text("*.stdout\n*.stderr\n")  # the test's own
    run("git", "add", "Makefile", ".gitignore", "policy.yaml", cwd=checkout)
    before = run("git", "status", "--porcelain", cwd=checkout)
    with Server(checkout) as server:
        assert server.ask("PUT", "/api/v1/policy", {"rules": []}).status == 200
        assert len(list(checkout.glob("aegis_audit.db*"))) > 4
        assert run("git", "status", "--porcelain", cwd=checkout) == before
        server.stop()
    assert run("git", "status", "--porcelain", cwd=checkout) == before
    run("make", "clean", cwd=checkout)
    assert sorted(path.name for path in checkout.iterdir() if ".std" not in path.name) == [
        ".git", ".gitignore", "Makefile", "policy.yaml",
    ]  # fmt: skip


@pytest.mark.parametrize("named_by", ["argument", "environment"])
def test_python_that_is_named_makes_an_environment_of_another_one_anew(
    checkout: Path, named_by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [f"PYTHON={sys.executable}"]
    if named_by == "environment":
        monkeypatch.setenv("PYTHON", sys.executable)
        arguments = []
    base = Path(sys.executable).resolve()
    assert f'"{base}" -m venv .venv' in planned(checkout, ".venv/pip", *arguments)


def test_environment_of_the_python_that_is_named_stays(checkout: Path) -> None:
    base = Path(sys.executable).resolve()
    (checkout / ".venv" / "bin" / "python").write_text(f"#!/bin/sh\necho {base}\n")
    assert "-m venv" not in planned(checkout, ".venv/pip", f"PYTHON={sys.executable}")


def test_environment_stays_where_no_python_is_named(checkout: Path) -> None:
    assert "-m venv" not in planned(checkout, ".venv/pip")


@pytest.mark.parametrize("target", ["serve", "quick", "test", "check", "coverage", "sanitize"])
def test_no_step_that_takes_long_is_silent(target: str) -> None:
    steps = run("make", "--dry-run", "--always-make", target, cwd=ROOT).splitlines()
    installing = [step for step in steps if " install " in step]
    assert installing
    assert [step for step in installing if "--quiet" in step] == []


def test_help_names_every_target() -> None:
    told = re.findall(r"^  make (\w+)", run("make", "help", cwd=ROOT), re.MULTILINE)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    phony = re.search(r"^\.PHONY: (serve (?:.*\\\n)*.*)$", makefile, re.MULTILINE)
    assert phony is not None
    targets = {name for name in re.findall(r"[\w-]+", phony[1]) if "-" not in name}
    assert sorted(told) == sorted(targets)
