"""`aegis restore`: a backup takes the place of a database, or nothing changes."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.process.server import POLICY, Ended, Server, end_of
from tests.unit.test_audit import opened

DATABASE = "aegis_audit.db"


def execute(server: Server, target: str) -> None:
    answer = server.ask("POST", "/api/v1/execute", {"type": "read", "target": target})
    assert answer.status == 200


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    """A folder with a backup, and what a server left that was killed later."""
    with Server(tmp_path) as server:
        execute(server, "before")
        assert end_of(tmp_path, "audit", "backup", "backup.db").code == 0
        execute(server, "after")
        server.kill_all()
    return tmp_path


def targets(folder: Path, database: str = DATABASE) -> list[str]:
    listed = end_of(folder, "audit", "list", "--format", "csv", "--audit-db", database)
    assert listed.code == 0, listed.stderr
    header, *rows = listed.stdout.splitlines()
    column = header.split(",").index("action_target")
    return [row.split(",")[column] for row in rows]


def refused(folder: Path, *arguments: str) -> Ended:
    """A refusal, which changes nothing."""
    before = {
        path: path.read_bytes()
        for path in folder.glob(f"{DATABASE}*")
        if path.suffix != ".server"  # has the process that looked last
    }
    ended = end_of(folder, "restore", *arguments)
    assert (ended.stdout, ended.stderr.count("\n")) == ("", 1)
    assert {path: path.read_bytes() for path in before} == before
    assert not [*folder.glob("*.replaced-*"), *folder.glob("*.partial")]
    return ended


def test_backup_is_in_force_and_what_was_there_is_kept_whole(killed: Path) -> None:
    os.chmod(killed / DATABASE, 0o640)
    restored = end_of(killed, "restore", "backup.db")
    assert restored.code == 0, restored.stderr
    assert restored.stdout.startswith(f"restored {DATABASE} from backup.db, with entries 0 to 1\n")
    assert (killed / DATABASE).stat().st_mode & 0o777 == 0o640
    assert not Path(f"{killed / DATABASE}-wal").exists()
    (kept,) = [path for path in killed.glob("*.replaced-*") if not path.name.endswith("-wal")]
    assert targets(killed, kept.name) == ["before", "after"]
    with Server(killed) as server:
        assert [entry["action_target"] for entry in server.audit()] == ["before"]
        execute(server, "again")
        assert server.stop() == 0
    assert end_of(killed, "audit", "verify", DATABASE).code == 0


def test_what_was_copied_beside_an_old_log_is_put_right_by_it(killed: Path) -> None:
    shutil.copy(killed / "backup.db", killed / DATABASE)
    assert end_of(killed, "restore", "backup.db").code == 0
    assert targets(killed) == ["before"]


def test_database_that_is_missing_is_made(killed: Path) -> None:
    ended = end_of(killed, "restore", "backup.db", "--audit-db", "new.db")
    assert (ended.code, ended.stdout.count("\n")) == (0, 1)
    assert targets(killed, "new.db") == ["before"]
    assert (killed / "new.db").stat().st_mode & 0o777 == 0o600


def test_link_to_a_database_stays_a_link(killed: Path) -> None:
    (killed / "link.db").symlink_to(DATABASE)
    assert end_of(killed, "restore", "backup.db", "--audit-db", "link.db").code == 0
    assert (killed / "link.db").is_symlink()
    assert targets(killed) == ["before"]


def test_restore_is_refused_while_a_server_runs(tmp_path: Path) -> None:
    with Server(tmp_path) as server:
        execute(server, "before")
        assert end_of(tmp_path, "audit", "backup", "backup.db").code == 0
        ended = refused(tmp_path, "backup.db")
        assert (ended.code, "serves the database" in ended.stderr) == (2, True)
        execute(server, "after")


def test_restore_is_refused_while_an_application_writes(killed: Path) -> None:
    with opened(killed / DATABASE):
        ended = refused(killed, "backup.db")
    assert (ended.code, "a process writes" in ended.stderr) == (2, True)


def test_only_a_usual_file_is_replaced(killed: Path) -> None:
    os.mkfifo(killed / "pipe")
    (killed / "folder").mkdir()
    for name in ("pipe", "folder"):
        ended = refused(killed, "backup.db", "--audit-db", name)
        assert (ended.code, "name a file" in ended.stderr) == (2, True)
    assert not [*killed.glob("pipe.*"), *killed.glob("folder.*")]


def test_only_a_whole_backup_of_ours_is_restored(killed: Path) -> None:
    (killed / "policy.yaml").write_text(POLICY)
    assert refused(killed, "policy.yaml").code == 2
    assert refused(killed, "missing.db").code == 2
    assert refused(killed, DATABASE).code == 2
    damaged = bytearray((killed / "backup.db").read_bytes())
    damaged[damaged.index(b"before")] ^= 1
    (killed / "damaged.db").write_bytes(damaged)
    assert refused(killed, "damaged.db").code == 1
