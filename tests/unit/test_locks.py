"""Locks with a deadline, and numbers that those who live hold."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from aegis.auth import keys_file
from aegis.errors import ConfigError
from aegis.host.locks import (
    MAX_HELD,
    HeldNumbers,
    is_at,
    is_held_by_process,
    lock_at,
    lock_file,
    try_lock,
    unlock_file,
)
from aegis.server.runner.listening import own_database


def open_file(path: str) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "lock")


@pytest.fixture
def files(path: str) -> Iterator[tuple[int, int]]:
    """The same file, opened twice."""
    one, other = open_file(path), open_file(path)
    yield one, other
    os.close(one)
    os.close(other)


def test_lock_is_waited_for_until_the_deadline_and_not_longer(files: tuple[int, int]) -> None:
    one, other = files
    assert lock_file(one, 1)
    started = time.monotonic()
    assert not lock_file(other, 0.05)
    assert 0.05 <= time.monotonic() - started < 5


def test_lock_is_had_as_soon_as_it_is_free(files: tuple[int, int]) -> None:
    one, other = files
    assert try_lock(one)
    timer = threading.Timer(0.02, unlock_file, [one])
    timer.start()
    assert lock_file(other, 10)
    timer.join()


def test_file_that_was_replaced_while_its_lock_was_waited_for_is_not_the_locked_one(
    path: str, tmp_path: Path
) -> None:
    old = open_file(path)
    assert try_lock(old)

    def replace() -> None:
        os.close(open_file(str(tmp_path / "new")))
        os.replace(tmp_path / "new", path)
        unlock_file(old)

    timer = threading.Timer(0.02, replace)
    timer.start()
    locked = lock_at(path, open_file, 10)
    timer.join()
    assert locked is not None
    assert is_at(path, locked)
    assert not is_at(path, old)
    os.close(locked)
    os.close(old)


def test_nobody_waits_for_a_lock_where_there_is_no_use_in_it(path: str) -> None:
    old = open_file(path)
    assert try_lock(old)
    started = time.monotonic()
    assert lock_at(path, open_file, 10, has_to_wait=lambda _: False) is None
    assert time.monotonic() - started < 5
    os.close(old)


def test_failed_attempts_leave_no_file_open(path: str) -> None:
    old = open_file(path)
    assert try_lock(old)
    before = os.listdir("/proc/self/fd")
    assert lock_at(path, open_file, 0.02) is None
    assert os.listdir("/proc/self/fd") == before
    os.close(old)


def test_number_is_held_by_one_at_a_time_and_each_by_itself(files: tuple[int, int]) -> None:
    one, other = (HeldNumbers(file, 4096) for file in files)
    assert one.hold(1)
    assert not other.hold(1)
    assert other.hold(2)
    assert other.is_held(1)
    assert not other.is_held(2)  # by itself
    assert not other.hold_all()
    one.release(1)
    assert not other.is_held(1)


def test_looking_whether_a_number_is_held_does_not_let_go_of_it(files: tuple[int, int]) -> None:
    one, other = (HeldNumbers(file, 4096) for file in files)
    assert one.hold(1)
    assert not one.is_held(1)
    assert other.is_held(1)


def test_two_that_look_at_a_number_do_not_see_each_other(path: str) -> None:
    code = (
        "import os, sys; from aegis.host.locks import HeldNumbers;"
        f"held = HeldNumbers(os.open({path!r}, os.O_RDWR), 0);"
        "print(any(held.is_held(1) for _ in range(30_000)))"
    )
    os.close(open_file(path))
    both = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert [process.communicate(timeout=60)[0] for process in both] == ["False\n"] * 2


def test_number_that_cannot_be_held_is_not(files: tuple[int, int]) -> None:
    held = HeldNumbers(files[0], 4096)
    assert not held.is_held(0)
    assert not held.is_held(-1)
    assert not held.is_held(MAX_HELD + 1)


def test_process_that_holds_a_file_is_seen_until_it_ends_and_its_children_are_not(
    path: str,
) -> None:
    code = (
        "import os, sys, time; from aegis.host.locks import hold_for_process, try_lock;"
        f"file = os.open({path!r}, os.O_RDWR); try_lock(file); hold_for_process(file);"
        "child = os.fork() or time.sleep(60); print(child, flush=True); time.sleep(60)"
    )
    file = open_file(path)
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        child = int(holder.stdout.readline())
        assert is_held_by_process(file)
        holder.kill()
        holder.wait()
        assert not is_held_by_process(file)
        assert not try_lock(file)  # the child has the file still
        os.kill(child, signal.SIGKILL)
        assert lock_file(file, 10)
    os.close(file)


def test_server_whose_workers_have_not_ended_yet_is_waited_for_whatever_number_it_left(
    tmp_path: Path,
) -> None:
    database = tmp_path / "audit.db"
    file = open_file(f"{database}.server")
    os.write(file, b"%d\n" % os.getpid())  # a number that another process has by now
    assert try_lock(file)
    timer = threading.Timer(0.1, os.close, [file])
    timer.start()
    with own_database(str(database)):
        pass
    timer.join()


def test_change_of_keys_does_not_wait_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys_file, "_CHANGE_TIMEOUT_S", 0.02)
    folder = os.open(tmp_path, os.O_RDONLY)
    assert try_lock(folder)
    with pytest.raises(ConfigError, match="does not end its change"):
        keys_file.change_keys(str(tmp_path / "keys.yaml"), lambda source: source)
    os.close(folder)
