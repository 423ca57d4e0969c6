"""What is shipped for running Aegis as a service, and what messages advise to install."""

from __future__ import annotations

import re
import shutil
import subprocess
from configparser import RawConfigParser
from itertools import chain
from pathlib import Path

import pytest

from aegis.cli import main
from tests.meta.documents import DOCUMENTS, ROOT, blocks

UNIT = ROOT / "deploy" / "aegis.service"
OPERATION = ROOT / "docs" / "operation.md"
ANALYZE = shutil.which("systemd-analyze")


def analyzed(*arguments: str | Path) -> str:
    """What `systemd-analyze` says about the unit."""
    assert ANALYZE is not None
    done = subprocess.run(
        [ANALYZE, *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=30, check=False,
    )  # fmt: skip
    return done.stdout


@pytest.fixture(scope="module")
def service() -> dict[str, str]:
    """The settings of the unit's service; of those that stand twice, the last."""
    unit = RawConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]  # the documented way to keep case
    unit.read(UNIT)
    assert unit["Install"]["WantedBy"] == "multi-user.target"
    return dict(unit["Service"])


def commands() -> list[str]:
    """The commands that set the service up."""
    text = next(block.text for block in blocks(OPERATION) if "systemctl" in block.text)
    return text.splitlines()


def test_document_shows_the_unit() -> None:
    assert UNIT.read_text() in [
        block.text for block in blocks(OPERATION) if block.language == "ini"
    ]


@pytest.mark.skipif(ANALYZE is None, reason="needs systemd-analyze; .ci/run installs it")
def test_unit_exposes_little() -> None:
    found = re.search(
        r"exposure level for aegis.service: ([0-9.]+)",
        analyzed("security", "--offline=true", "--no-pager", UNIT),
    )
    assert found is not None
    assert float(found[1]) <= 2.0
    assert f"gives it {found[1]})" in OPERATION.read_text()


@pytest.mark.skipif(ANALYZE is None, reason="needs systemd-analyze; .ci/run installs it")
def test_unit_has_no_setting_that_systemd_does_not_know(tmp_path: Path) -> None:
    # What it starts is not on this machine; a command that is stands in its place.
    unit = tmp_path / "aegis.service"
    unit.write_text(UNIT.read_text().replace("/opt/aegis/bin/aegis", "/bin/true"))
    assert analyzed("verify", unit) == ""


def test_keys_are_made_by_the_user_that_reads_them(service: dict[str, str]) -> None:
    user = service["User"]
    (made,) = (command for command in commands() if "keys new" in command)
    file = made.rpartition(" ")[2]
    assert made.startswith(f"sudo -u {user} ")
    assert f"--keys {file}" in service["ExecStart"]
    assert f"sudo install -d -o {user} -g {user} -m 0750 {Path(file).parent}" in commands()
    assert "DynamicUser" not in service


def test_service_starts_what_was_installed_in_the_folder_that_it_may_write(
    service: dict[str, str],
) -> None:
    program, command, policy = service["ExecStart"].split()[:3]
    assert command in main.commands
    assert f"sudo python3 -m venv {Path(program).parents[1]}" in commands()
    assert any(line.endswith(f" {policy}") for line in commands())
    assert service["WorkingDirectory"] == f"/var/lib/{service['StateDirectory']}"


def test_nothing_advises_to_install_the_other_package_of_this_name() -> None:
    files = chain(
        (ROOT / "aegis").rglob("*.py"), DOCUMENTS, (ROOT / "deploy").rglob("*"), [ROOT / "Makefile"]
    )
    advice = re.compile(
        r"(pip|uv|pipx|poetry)[^\n]* (install|add)[^\n]*agent[-_]aegis", re.IGNORECASE
    )
    found = [
        f"{file.name}: {match[0]}"
        for file in files
        if file.is_file() and (match := advice.search(file.read_text(encoding="utf-8")))
    ]
    assert found == []


def test_readme_says_that_the_name_is_shared() -> None:
    text = " ".join((ROOT / "README.md").read_text().split())
    assert "on the public index, the name agent-aegis belongs to another package" in text
    assert "pip install '.[signing]'" in text
