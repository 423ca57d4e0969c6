"""What is shipped: the wheel is built from the sdist, and run where nothing else is installed."""

from __future__ import annotations

import tarfile
from pathlib import Path
from zipfile import ZipFile

import pytest

import aegis
from tests.meta.conftest import run

CHECKOUT = Path(__file__).parents[2]
PACKAGES = ("aegis", "aegis_core")

DECIDES = """
from aegis_core import Approval, Policy, PolicyRule, compile_policy
rule = PolicyRule("read*", approval=Approval.AUTO, name="reads")
engine = compile_policy(Policy((rule,)), condition=lambda _: None)
print(engine.evaluate("read_mail").matched_rule, engine.evaluate("delete").approval.value)
"""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def sdist_names(dist: Path) -> set[str]:
    """The files of the sdist, without the folder that all of them are in."""
    with tarfile.open(next(dist.glob("*.tar.gz"))) as archive:
        return {member.name.partition("/")[2] for member in archive if member.isfile()}


@pytest.fixture(scope="module")
def wheel_names(wheel: Path) -> set[str]:
    """The files of the wheel."""
    with ZipFile(wheel) as archive:
        return set(archive.namelist())


def sources(*suffixes: str) -> set[str]:
    """The files of both packages in the checkout that end in one of the suffixes."""
    return {
        path.relative_to(CHECKOUT).as_posix()
        for package in PACKAGES
        for path in (CHECKOUT / package).rglob("*")
        if path.suffix in suffixes
    }


def test_wheel_holds_every_module_and_stub_of_the_checkout(wheel_names: set[str]) -> None:
    assert sources(".py", ".pyi") - wheel_names == set()


def test_wheel_holds_the_compiled_engine(wheel_names: set[str]) -> None:
    assert [
        name
        for name in wheel_names
        if name.startswith("aegis_core/engine.") and name.endswith(".so")
    ]


def test_wheel_says_that_both_packages_are_typed(wheel_names: set[str]) -> None:
    assert {f"{package}/py.typed" for package in PACKAGES} <= wheel_names


def test_wheel_holds_nothing_but_the_two_packages_and_its_metadata(wheel_names: set[str]) -> None:
    information = f"agent_aegis-{aegis.__version__}.dist-info"
    assert {name.partition("/")[0] for name in wheel_names} == {*PACKAGES, information}


def test_wheel_holds_no_source_of_the_engine(wheel_names: set[str]) -> None:
    assert {name for name in wheel_names if name.endswith((".c", ".pyx", ".pxd"))} == set()


def test_sdist_holds_all_sources_and_nothing_compiled(sdist_names: set[str]) -> None:
    assert sources(".py", ".pyi", ".pyx", ".pxd") - sdist_names == set()
    assert {name for name in sdist_names if name.endswith((".c", ".so", ".pyc"))} == set()


def test_installed_command_says_its_version(installed: Path, tmp_path: Path) -> None:
    assert aegis.__version__ in run(installed / "aegis", "--version", cwd=tmp_path)


def test_installed_engine_decides(installed: Path, tmp_path: Path) -> None:
    assert run(installed / "python", "-c", DECIDES, cwd=tmp_path).split() == ["reads", "block"]
