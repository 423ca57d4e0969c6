"""Bytes that processes share: whole, whoever writes and whoever is killed meanwhile."""

from __future__ import annotations

import os
import signal

import pytest

from aegis.host.memory import SharedBytes


def test_there_is_nothing_at_first() -> None:
    assert SharedBytes(100).read() == (0, b"")


def test_what_one_process_wrote_is_read_by_another() -> None:
    shared = SharedBytes(100)
    pid = os.fork()
    if pid == 0:
        with shared.turn():
            shared.replace(b"of the child")
        os._exit(0)
    os.waitpid(pid, 0)
    assert shared.read() == (1, b"of the child")


def test_value_over_the_limit_is_refused_and_the_old_one_stays() -> None:
    shared = SharedBytes(3)
    shared.replace(b"abc")
    with pytest.raises(ValueError, match="4 bytes are over 3"):
        shared.replace(b"abcd")
    assert shared.read() == (1, b"abc")


def test_turn_is_one_thread_s() -> None:
    shared = SharedBytes(100)
    with shared.turn() as is_ours, shared.turn() as is_theirs:
        assert (is_ours, is_theirs) == (True, False)
    with shared.turn() as is_ours:
        assert is_ours


def test_turn_is_one_process_s_until_it_dies() -> None:
    shared = SharedBytes(100)
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        with shared.turn():
            os.write(writer, b"mine")
            signal.pause()
    assert os.read(reader, 10) == b"mine"
    with shared.turn() as is_ours:
        assert not is_ours
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    with shared.turn() as is_ours:
        assert is_ours


@pytest.mark.slow
def test_reader_never_sees_half_a_value_while_writers_are_killed() -> None:
    shared = SharedBytes(1 << 20)
    for number in range(5):
        pid = os.fork()
        if pid == 0:
            while True:
                with shared.turn():
                    shared.replace(bytes([number + 1]) * ((1 << 20) - shared.version % 7))
        seen = 0
        while seen < 20:
            _, data = shared.read()
            assert len(set(data)) <= 1
            seen += bool(data)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    with shared.turn() as is_ours:
        assert is_ours
