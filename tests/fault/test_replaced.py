"""A database and its write-ahead log: what a crash leaves is read, what was put together is refused."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from aegis.errors import StoreError
from aegis.store import database as stores
from aegis.store.database import Store
from tests.process.server import Server, end_of
from tests.unit.test_audit import Log, record, targets

DATABASE = "aegis_audit.db"
STRANGE = "was not written for"


def append(log: Log, *names: object) -> None:
    for name in names:
        asyncio.run(log.append([record(name, session_id=f"session {name}")]))


@contextmanager
def opened(path: Path) -> Iterator[Log]:
    store = Store(path)
    log = Log(store, most_queued=10_000, timeout_s=10.0)
    try:
        yield log
    finally:
        log.close()
        store.close()


def crash(path: Path, left: Path, name: str = DATABASE) -> Path:
    """What is left of a database whose processes are killed now: the file and its log."""
    left.mkdir(exist_ok=True)
    shutil.copy(path, left / name)
    shutil.copy(f"{path}-wal", left / f"{name}-wal")
    return left / name


def stored(path: Path) -> list[str]:
    with opened(path) as log:
        return asyncio.run(targets(log))


def refused(path: Path) -> bool:
    """Whether a database is refused by writers and readers, and left as it is."""
    before = {name: name.read_bytes() for name in (path, Path(f"{path}-wal")) if name.exists()}
    for read_only in (True, False):
        with pytest.raises(StoreError, match=STRANGE) as error:
            Store(path, read_only=read_only).close()
        assert "aegis restore" in str(error.value)
    return before == {
        name: name.read_bytes() for name in (path, Path(f"{path}-wal")) if name.exists()
    }


# --- what a crash leaves -------------------------------------------------------------------------


@pytest.mark.parametrize("pages", [3, 10, 1_000])
def test_what_any_crash_leaves_is_read_to_its_last_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pages: int
) -> None:
    monkeypatch.setattr(stores, "LOG_PAGES", pages)
    path, names = tmp_path / DATABASE, [str(number) for number in range(40)]
    with opened(path) as log:
        for count, name in enumerate(names, 1):
            append(log, name)
            left = crash(path, tmp_path / name, name=f"{name}.db")
            with closing(Store(left, read_only=True)):
                pass
            assert stored(left) == names[:count]
            assert stored(left) == names[:count]


def test_crash_while_others_read_write_open_and_close_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "LOG_PAGES", 5)
    path = tmp_path / DATABASE
    seen: list[str] = []
    with opened(path) as log, closing(Store(path)) as other:
        for turn in range(12):
            with other.reading() as reader:
                reader.execute("SELECT count(*) FROM record").fetchall()
                for part in ("read", "late"):
                    append(log, f"{turn} {part}")
                    seen.append(f"{turn} {part}")
                    with closing(Store(path)):
                        assert stored(crash(path, tmp_path / f"{turn} {part}")) == seen
            other.probe()
            assert stored(crash(path, tmp_path / f"{turn}")) == seen


def test_database_of_a_release_that_numbered_no_log_is_read_after_a_crash(tmp_path: Path) -> None:
    path = tmp_path / DATABASE
    with opened(path) as log:
        append(log, "old")
    with closing(sqlite3.connect(path)) as older:
        older.execute("DROP TABLE log_number")
        older.commit()
        older.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        older.execute("INSERT INTO word (text) VALUES ('in its log')")
        older.commit()
        left = crash(path, tmp_path / "left")
        assert stored(left) == ["old"]
    with opened(path) as log:
        append(log, "new")
        assert stored(crash(path, tmp_path / "right")) == ["old", "new"]


# --- what was put together -----------------------------------------------------------------------


def backed_up(path: Path, to: Path) -> None:
    with closing(Store(path, read_only=True)) as store:
        store.copy_to(to, lambda _done, _of: None)


def copied(path: Path, to: Path) -> None:
    """While nobody has it open: the file alone."""
    shutil.copy(path, to)


@pytest.mark.parametrize("later", [0, 1, 300])
@pytest.mark.parametrize("is_served", [True, False], ids=["while it is served", "before"])
def test_backup_beside_the_log_of_the_database_that_it_replaces_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, later: int, is_served: bool
) -> None:
    monkeypatch.setattr(stores, "LOG_PAGES", 200)
    path, backup = tmp_path / DATABASE, tmp_path / "backup.db"
    with opened(path) as log:
        append(log, *range(20))
        if is_served:
            backed_up(path, backup)
            append(log, *range(later))
            crash(path, tmp_path / "left", name="other name.db")
    if not is_served:
        copied(path, backup)
        with opened(path) as log:
            append(log, *range(later))
            crash(path, tmp_path / "left", name="other name.db")
    left = tmp_path / "left" / "other name.db"
    assert stored(backup) == [str(number) for number in range(20)]
    shutil.copy(backup, left)
    assert refused(left)


def emptied(left: Path) -> None:
    left.write_bytes(b"")


def removed(left: Path) -> None:
    left.unlink()


def exchanged(left: Path) -> None:
    """Another database of ours in its place."""
    with opened(left.parent / "other.db") as log:
        append(log, "other")
    os.replace(left.parent / "other.db", left)


def of_an_older_release(left: Path) -> None:
    exchanged(left)
    log = Path(f"{left}-wal").rename(left.parent / "kept")
    with closing(sqlite3.connect(left)) as older:
        older.execute("DROP TABLE log_number")
        older.commit()
    Path(f"{left}-wal").unlink(missing_ok=True)
    log.rename(f"{left}-wal")


@pytest.mark.parametrize("change", [emptied, removed, exchanged, of_an_older_release])
def test_file_that_is_not_the_one_of_its_log_is_refused(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    with opened(tmp_path / DATABASE) as log:
        append(log, *range(20))
        left = crash(tmp_path / DATABASE, tmp_path / "left")
    change(left)
    assert refused(left)


def test_server_does_not_start_on_a_backup_beside_an_old_log_and_says_what_to_do(
    tmp_path: Path,
) -> None:
    with Server(tmp_path) as server:
        server.ask("POST", "/api/v1/execute", {"type": "read", "target": "before"})
        assert end_of(tmp_path, "audit", "backup", "backup.db").code == 0
        server.ask("POST", "/api/v1/execute", {"type": "read", "target": "after"})
        server.kill_all()
    shutil.copy(tmp_path / "backup.db", tmp_path / DATABASE)
    ended = end_of(tmp_path, "serve", "policy.yaml", "--port", "0")
    assert (ended.code, ended.stdout, ended.stderr.count("\n")) == (2, "", 1)
    assert STRANGE in ended.stderr
    assert "`aegis restore`" in ended.stderr
