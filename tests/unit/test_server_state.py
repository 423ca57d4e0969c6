"""What the processes of a server share: who is ready, who is missing and why."""

from __future__ import annotations

import pytest

from aegis.config import Settings
from aegis.server.runner import state as module
from aegis.server.runner.serve import grace_s
from aegis.server.runner.state import ServerState


def test_each_start_of_each_worker_speaks_for_itself_alone() -> None:
    state = ServerState(1024)
    starts = [state.begin_start(index) for index in range(1024)]
    for start in starts:
        state.say_ready(start)
    assert all(map(state.is_ready, range(1024)))
    assert state.end_start(7) == 0
    again = state.begin_start(7)
    state.say_ready(starts[7])  # a process that is gone
    assert not state.is_ready(7)
    state.say_ready(again)
    assert state.is_ready(7)


def test_failures_are_counted_until_it_is_ready() -> None:
    state = ServerState(1)
    for failures in (1, 2, 3):
        state.say_failed(state.begin_start(0), "the mail\nserver is away")
        assert (state.end_start(0), state.reason(0)) == (failures, "the mail server is away")
        assert state.missing() == 1
    state.say_ready(state.begin_start(0))
    assert (state.missing(), state.reason(0), state.end_start(0)) == (0, "", 0)


def test_reason_of_any_length_is_kept_within_its_place() -> None:
    state = ServerState(2)
    state.say_failed(state.begin_start(0), "é" * 5_000)
    assert (state.reason(0)[:3], state.reason(1)) == ("ééé", "")


def test_worker_that_takes_long_to_start_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    state = ServerState(2)
    state.say_ready(state.begin_start(0))
    state.begin_start(1)
    assert not state.announce()
    state.say_listening()
    assert state.announce()
    assert not state.announce()
    assert state.missing() == 0
    monkeypatch.setattr(module, "SLOW_START_S", 0)
    assert state.missing() == 1


def test_reload_is_open_until_it_is_done() -> None:
    state = ServerState(1)
    state.ask_reload()
    number = state.asked_reload()
    state.ask_reload()
    state.say_reloaded(number)
    assert state.is_reload_open
    state.say_reloaded(state.asked_reload())
    assert not state.is_reload_open


@pytest.mark.parametrize("body_timeout_s", [1.0, 10.0, 60.0, 3600.0])
def test_grace_at_a_stop_is_longer_than_a_body_and_an_execution_may_take(
    body_timeout_s: float,
) -> None:
    settings = Settings(body_timeout=body_timeout_s)
    assert grace_s(settings) > 1.125 * body_timeout_s
    assert grace_s(settings) > settings.drain_timeout + settings.audit_timeout
