"""The mapped file by which processes agree: slots, tickets, the bell, and what is left by the dead."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from aegis.errors import StoreError
from aegis.host import wakeups
from aegis.host import workers as module
from aegis.host.workers import Workers

DIGEST = "ab" * 32


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "audit.db")


@pytest.fixture
def workers(path: str) -> Iterator[Workers]:
    made = Workers(path)
    yield made
    made.close()


def test_word_that_is_raised_is_seen_by_all(workers: Workers, path: str) -> None:
    other = Workers(path)
    workers.raise_newest(7)
    assert other.newest[0] == 7
    other.close()


def test_question_is_seen_by_all_and_each_has_a_ticket_of_its_own(
    workers: Workers, path: str
) -> None:
    other = Workers(path)
    tickets = [workers.ask(DIGEST), other.ask("cd" * 32)]
    assert len(set(tickets)) == 2
    assert workers.asked() == (tickets[1], "cd" * 32)
    other.close()


def test_nobody_is_waited_for_where_nobody_decides(workers: Workers) -> None:
    begun = time.monotonic()
    assert workers.wait_until_ready(workers.ask(DIGEST), 10) == 0
    assert time.monotonic() - begun < 1


def test_who_is_ready_is_counted_and_who_could_not_get_ready_is_not(
    workers: Workers, path: str
) -> None:
    others = [Workers(path) for _ in range(3)]
    for other in others:
        other.join()
    ticket = workers.ask(DIGEST)
    for other, is_at_hand in zip(others, (True, False, True), strict=True):
        other.say_ready(ticket, is_at_hand=is_at_hand)
    assert workers.wait_until_ready(ticket, 10) == 2
    assert workers.wait_until_ready(workers.ask(DIGEST), 0.01) == 0
    for other in others:
        other.close()
    assert workers.wait_until_ready(workers.ask(DIGEST), 10) == 0


def test_slot_of_a_process_that_has_died_is_taken_over(workers: Workers, path: str) -> None:
    code = (
        f"from aegis.host.workers import Workers; w = Workers({path!r}); w.join(); w.say_version(3)"
    )
    for _ in range(3):
        subprocess.run([sys.executable, "-c", f"{code}; import os; os._exit(0)"], check=True)
        assert workers.versions() == []
    workers.join()
    workers.say_version(4)
    assert workers.versions() == [4]
    assert workers.slot == module.SLOTS_AT // 8


def test_slot_is_its_owners_only_while_that_holds_it_whatever_number_is_written_there(
    workers: Workers, path: str
) -> None:
    # As a process of before leaves it, whose number is that of one that lives now.
    with open(f"{path}.version", "r+b") as file:
        file.seek(module.SLOTS_AT)
        file.write(struct.pack("Q", os.getpid()))
    assert workers.versions() == []
    started = time.monotonic()
    assert workers.wait_until_ready(workers.ask(DIGEST), 10) == 0
    assert time.monotonic() - started < 1
    workers.join()
    assert workers.slot == module.SLOTS_AT // 8


def test_process_of_another_container_lives_though_its_number_says_nothing_here(
    workers: Workers, path: str
) -> None:
    other = Workers(path)
    other.join()
    other.say_version(3)
    with open(f"{path}.version", "r+b") as file:
        file.seek(module.SLOTS_AT)
        file.write(struct.pack("Q", 2**22 + 1))  # above any number of a process
    assert workers.versions() == [3]
    workers.join()
    assert workers.slot != other.slot
    other.close()


def test_process_that_was_forked_leaves_the_slot_to_its_parent(workers: Workers, path: str) -> None:
    workers.join()
    pid = os.fork()
    if pid == 0:
        workers.leave()
        os._exit(0)
    os.waitpid(pid, 0)
    other = Workers(path)
    assert other.versions() == [0]
    other.close()


def test_process_beyond_the_last_slot_goes_without(
    path: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SIZE", module.SLOTS_AT + 2 * 64)
    many = [Workers(path) for _ in range(3)]
    many[0].join()
    many[1].join()
    assert caplog.text == ""
    many[2].join()
    assert "do not wait for this one" in caplog.text
    many[2].say_ready(1, is_at_hand=True)
    many[2].say_version(1)
    for made in many:
        made.close()


def test_changes_take_turns(workers: Workers, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHANGE_TIMEOUT_S", 0.05)
    other = Workers(path)
    with workers.changing():
        for waiting in (other, workers):
            with pytest.raises(StoreError, match="does not end"), waiting.changing():
                pass
    with other.changing():
        pass
    other.close()


def test_changes_of_a_database_in_memory_take_turns() -> None:
    workers = Workers(None)
    is_in = threading.Event()

    def change() -> None:
        with workers.changing():
            is_in.set()

    with workers.changing():
        thread = threading.Thread(target=change)
        thread.start()
        assert not is_in.wait(0.02)
    assert is_in.wait(10)
    thread.join()
    workers.close()


@pytest.mark.parametrize("futex", [wakeups.FUTEX, None], ids=["futex", "polling"])
@pytest.mark.parametrize("is_memory", [False, True])
def test_who_waits_is_woken_by_the_bell(
    futex: int | None, is_memory: bool, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wakeups, "FUTEX", futex)
    workers = Workers(None if is_memory else path)
    other = workers if is_memory else Workers(path)
    bell = workers.bell()
    timer = threading.Timer(0.05, other.wake)
    begun = time.monotonic()
    timer.start()
    while workers.bell() == bell:
        workers.wait(bell, 10)
    assert time.monotonic() - begun < 5
    timer.join()
    workers.wait(bell, 10)  # it has rung already
    if other is not workers:
        other.close()
    workers.close()


def test_wait_ends_by_itself(workers: Workers) -> None:
    begun = time.monotonic()
    workers.wait(workers.bell(), 0.02)
    assert time.monotonic() - begun < 5
