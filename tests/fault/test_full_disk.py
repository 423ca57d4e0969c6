"""Disks and outputs that take no more: one line, exit code 2, and nothing that is only half there."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest

from aegis.audit import archive as archives
from aegis.host.files import replacing
from aegis.timestamps import now_us
from tests.fault.conftest import DISK_BYTES, disk_filled
from tests.process.server import COMMAND, POLICY, Server, end_of, environment
from tests.unit.test_audit import opened, record

DATABASE = "aegis_audit.db"
OPENS = """
import os, sys
from aegis.audit.journal import Journal
from aegis.policy.compiled_cache import CompiledFiles
from aegis.errors import AegisError
from aegis.server.runner.listening import own_database
from aegis.policy.rollout import PolicyVersions
from aegis.store.database import Store

path, filler = sys.argv[1:]
while os.path.getsize(filler):
    try:
        with own_database(path):
            store = Store(path)
            try:
                versions = PolicyVersions(store, Journal(store))
                versions.start(CompiledFiles(path).load("rules: []"))
                versions.close()
                print("opened")
            finally:
                store.close()
    except AegisError as error:
        print("refused", str(error).count("\\n"))
    for name in os.listdir(os.path.dirname(path)):
        if name.startswith(os.path.basename(path)):
            os.unlink(os.path.join(os.path.dirname(path), name))
    os.truncate(filler, max(0, os.path.getsize(filler) - 4096))
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a policy and a database of some records."""
    folder = tmp_path_factory.mktemp("served")
    with Server(folder) as server:
        server.ask("POST", "/api/v1/execute", [{"type": "read"}] * 2_000)
        assert server.stop() == 0
    return folder


@pytest.fixture
def filled(served: Path, tmp_path: Path) -> Path:
    """The same, for one test alone."""
    shutil.copytree(served, tmp_path / "filled")
    return tmp_path / "filled"


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


# --- files that are mapped -----------------------------------------------------------------------


def test_database_is_refused_in_one_line_however_much_room_is_missing(small_disk: Path) -> None:
    (small_disk / "other").write_bytes(bytes(DISK_BYTES - 1024 * 1024))
    with disk_filled(small_disk):
        # From no room at all on, a page more each time.
        ended = subprocess.run(
            [sys.executable, "-c", OPENS, str(small_disk / "audit.db"), str(small_disk / "filler")],
            env=environment(), capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
    said = ended.stdout.split("\n")[:-1]
    assert ended.returncode == 0, ended.stderr
    assert set(said) == {"refused 0", "opened"}
    assert (said[0], said[-1]) == ("refused 0", "opened")


def test_server_is_refused_in_one_line_on_a_full_disk(tmp_path: Path, small_disk: Path) -> None:
    (tmp_path / "policy.yaml").write_text(POLICY)
    for room in (0, 4096, 100_000):
        with disk_filled(small_disk, room=room):
            database = str(small_disk / "audit.db")
            ended = end_of(tmp_path, "serve", "policy.yaml", "--port", "0", "--audit-db", database)
        assert (ended.code, ended.stdout, ended.stderr.count("\n")) == (2, "", 1), ended.stderr
        assert ended.stderr.startswith("aegis: error: ")


def test_refused_database_leaves_no_file_beside_it(tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text(POLICY)
    ended = end_of(tmp_path, "serve", "policy.yaml", "--port", "0", "--audit-db", "policy.yaml")
    assert (ended.code, [*tmp_path.glob("policy.yaml*")]) == (2, [tmp_path / "policy.yaml"])


# --- files that are written ----------------------------------------------------------------------

WRITING = [
    ("audit", "backup", "{to}"),
    ("audit", "export", "--to", "{to}"),
    ("audit", "export", "--format", "csv", "--to", "{to}"),
    ("audit", "export", "--format", "chain", "--to", "{to}"),
    ("audit", "archive", "--before", "2100-01-01", "--to", "{to}"),
]


@pytest.mark.parametrize("command", WRITING, ids=" ".join)
def test_full_disk_leaves_no_part_of_what_was_to_be_written(
    filled: Path, small_disk: Path, command: tuple[str, ...]
) -> None:
    to = small_disk / "made"
    with disk_filled(small_disk, room=50_000):
        ended = end_of(filled, *(part.format(to=to) for part in command))
        assert names(small_disk) == ["filler"]
    error = ended.stderr.splitlines()[-1]
    assert ended.code == 2
    assert error.startswith("aegis: error: cannot ")
    assert error.endswith(("No space left on device", "database or disk is full")), ended.stderr
    assert end_of(filled, *(part.format(to=to) for part in command)).code == 0
    assert names(small_disk) == ["made"]


def test_starter_policy_is_written_whole_or_not_at_all(filled: Path, small_disk: Path) -> None:
    with disk_filled(small_disk):
        ended = end_of(filled, "init", str(small_disk / "policy.yaml"))
        assert (ended.code, names(small_disk)) == (2, ["filler"])
    assert "No space left on device" in ended.stderr


def interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def write_half(path: Path) -> None:
    with replacing(path, like=DATABASE) as name:
        Path(name).write_text("half")
        interrupt()


def test_interrupted_backup_export_and_archive_leave_nothing(tmp_path: Path) -> None:
    to = tmp_path / "made"
    to.mkdir()
    with opened(tmp_path / DATABASE) as (log, store):
        asyncio.run(log.append([record(n) for n in range(100)]))
        with pytest.raises(KeyboardInterrupt):
            store.copy_to(to / "backup.db", interrupt)
        with pytest.raises(KeyboardInterrupt):
            archives.archive(store, now_us(), to / "archive.db", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_half(to / "export")
    assert names(to) == []


@pytest.mark.parametrize("ending", ["-wal", "-shm", "-journal", ".lock"])
def test_nothing_gets_a_name_that_the_database_uses_itself(served: Path, ending: str) -> None:
    to = f"./{DATABASE}{ending}"
    was_there = (served / to).exists()
    for command in (
        ("audit", "backup", to),
        ("audit", "export", "--to", to),
        ("audit", "archive", "--before", "2099-01-01", "--to", to),
    ):
        ended = end_of(served, *command)
        assert ended.code == 2, ended
        assert re.search("uses this name itself|exists", ended.stderr), ended
    assert (served / to).exists() == was_there


# --- standard output -----------------------------------------------------------------------------

PRINTING = [
    ("--version",),
    ("validate", "policy.yaml"),
    ("evaluate", "policy.yaml", "--type", "read"),
    ("policy", "list"),
    ("audit", "list"),
    ("audit", "verify", DATABASE),
    ("audit", "export", "--format", "csv"),
    ("audit", "export", "--format", "chain"),
]


@pytest.mark.parametrize("command", PRINTING, ids=" ".join)
@pytest.mark.parametrize("output", ["> /dev/full", ">&-"])
def test_output_that_takes_nothing_is_one_line_and_exit_code_2(
    served: Path, command: tuple[str, ...], output: str
) -> None:
    ended = subprocess.run(
        ["sh", "-c", f'"$@" {output}', "sh", *COMMAND, *command],
        cwd=served, env=environment(), stderr=subprocess.PIPE, text=True, check=False, timeout=60,
    )  # fmt: skip
    lines = [line for line in ended.stderr.splitlines() if not line.startswith("verifying")]
    assert (ended.returncode, len(lines)) == (2, 1), ended.stderr
    assert lines[0].startswith("aegis: error: ")
    assert "standard output" in lines[0]


@pytest.mark.parametrize("output", ["> /dev/full", ">&-"])
def test_key_that_nobody_has_seen_is_not_kept(tmp_path: Path, output: str) -> None:
    ended = subprocess.run(
        ["sh", "-c", f'"$@" {output}', "sh", *COMMAND, "keys", "new", "bot", "--role", "agent"],
        cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert ended.returncode == 2, ended.stderr
    assert "bot" not in end_of(tmp_path, "keys", "list").stdout


@pytest.mark.parametrize("command", PRINTING, ids=" ".join)
def test_closed_standard_error_changes_no_answer(served: Path, command: tuple[str, ...]) -> None:
    ended = subprocess.run(
        ["sh", "-c", '"$@" 2>&-', "sh", *COMMAND, *command],
        cwd=served, env=environment(), stdout=subprocess.PIPE, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert (ended.returncode, ended.stdout) == (0, end_of(served, *command).stdout)
