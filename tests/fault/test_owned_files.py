"""Whose files are whose: what is made is for its owner only, and who reads makes nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.process.server import Server, end_of

DATABASE = "aegis_audit.db"
SERVICE = 54_321
READING = [
    ("audit", "verify", "{database}"),
    ("audit", "list", "--audit-db", "{database}"),
    ("audit", "stats", "--audit-db", "{database}"),
    ("policy", "list", "--audit-db", "{database}"),
    ("audit", "export", "--audit-db", "{database}", "--format", "chain"),
]

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root acts for others")


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    """A folder with a database that nobody has open, and a backup."""
    mask = os.umask(0)
    try:
        with Server(tmp_path) as server:
            server.ask("POST", "/api/v1/execute", {"type": "read"})
            assert end_of(tmp_path, "audit", "backup", "backup.db").code == 0
            export = ("audit", "export", "--to", "export.jsonl")
            assert end_of(tmp_path, *export).code == 0
            assert modes(tmp_path) == {0o600}
            assert server.stop() == 0
    finally:
        os.umask(mask)
    return tmp_path


def made(folder: Path) -> list[Path]:
    """The files of a folder that Aegis has made."""
    names = (DATABASE, "backup", "export", "archive")
    return [path for path in folder.iterdir() if path.name.startswith(names)]


def modes(folder: Path) -> set[int]:
    return {path.stat().st_mode & 0o777 for path in made(folder)}


def test_every_file_that_is_made_is_for_its_owner_only(stopped: Path) -> None:
    mask = os.umask(0)
    try:
        archive = ("audit", "archive", "--before", "2100-01-01", "--to", "archive.db")
        assert end_of(stopped, *archive).code == 0
    finally:
        os.umask(mask)
    assert len(made(stopped)) > 5
    assert modes(stopped) == {0o600}


@pytest.mark.parametrize("name", ["backup.db", DATABASE])
def test_what_nobody_writes_is_read_where_nothing_can_be_written(
    stopped: Path, small_disk: Path, name: str
) -> None:
    shutil.copy(stopped / name, small_disk)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for command in READING:
        ended = end_of(stopped, *(part.format(database=small_disk / name) for part in command))
        assert ended.code == 0, ended.stderr


def test_log_that_needs_a_file_beside_it_is_said_to(stopped: Path, small_disk: Path) -> None:
    with Server(stopped) as server:
        server.kill_all()
    for name in (DATABASE, f"{DATABASE}-wal"):
        shutil.copy(stopped / name, small_disk)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    ended = end_of(stopped, "audit", "verify", str(small_disk / DATABASE))
    assert (ended.code, ended.stderr.count("\n")) == (2, 1)
    assert "copy both to a folder that can be written" in ended.stderr


@pytest.mark.slow
def test_who_reads_makes_nothing(stopped: Path) -> None:
    for name in ("backup.db", DATABASE):
        before = {path: path.read_bytes() for path in made(stopped)}
        for command in READING:
            ended = end_of(stopped, *(part.format(database=name) for part in command))
            assert ended.code == 0, ended.stderr
        assert {path: path.read_bytes() for path in made(stopped)} == before


@pytest.mark.slow
@needs_root
def test_what_root_makes_for_a_service_is_the_services(stopped: Path) -> None:
    with Server(stopped, "--allow-unauthenticated") as server:
        assert server.put_rule("later") == 2
        assert server.stop() == 0
    for path in made(stopped):
        if path.name == DATABASE:
            os.chown(path, SERVICE, SERVICE)
        else:
            path.unlink()
    for command in (
        ("policy", "list"),
        ("policy", "rollback", "1"),
        ("audit", "list"),
        ("audit", "backup", "backup.db"),
        ("audit", "archive", "--before", "2100-01-01", "--to", "archive.db"),
        ("restore", "backup.db"),
        ("restore", "backup.db", "--audit-db", f"{DATABASE}.new"),
    ):
        ended = end_of(stopped, *command)
        assert ended.code == 0, ended.stderr
        owners = {path.name: path.stat().st_uid for path in made(stopped)}
        assert set(owners.values()) == {SERVICE}, (command, owners)
    assert len(made(stopped)) > 5
