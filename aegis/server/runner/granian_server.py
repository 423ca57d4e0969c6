"""granian's server with a life cycle of our own. The only granian.

granian has no public door to its life cycle: members of its classes are overridden and used that any
release may change. tests/unit/test_granian_members.py names each of them.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, NoReturn

from granian import Granian
from granian.constants import HTTPModes, Interfaces, Loops
from granian.http import HTTP1Settings
from granian.log import LogLevels

from aegis.server.http.headers import MAX_HEADERS_BYTES
from aegis.server.runner.listening import Address, notify
from aegis.server.runner.signals import Wakeup, blocked_signals, release_hangups
from aegis.server.runner.state import ServerState

__all__ = ["Server"]

_log = logging.getLogger("aegis.server")

SAME_REQUEST_S, REPEATED_S = 0.5, 0.005
"""Signals to stop that come together ask for one thing: a terminal and a supervisor may both send one,
and timeout(1) sends one to the process and to its group."""
_POLL_S = 0.02
_KILLED_S = 5.0
_PAUSE_S, _MAX_PAUSE_S = 0.1, 30.0
"""Before a worker that could not start is started again; it doubles each time."""


class Server(Granian):  # type: ignore[misc,valid-type]  # granian chooses its class by platform
    """granian's server with a life cycle of ours.

    granian's own loop ends the server when a worker dies twice within 5.5 s, which one bad request can
    bring about, forgets one that dies while it starts another, and waits for locks, which a signal that
    another thread is handed does not interrupt.

    Invariant: a worker that was ever ready is started again, whatever ended it; only before any was
    ready does one that fails end the server.

    Args:
        state: Shared with the workers.
        wakeup: What the main thread waits on.
        announcement: What to say when the first worker is ready.
        say: Says it.
        start_drain: Tells the workers that they are about to be stopped.
        request_reload: Lets one of the workers load the files again.
        drain_delay_s: How long to go on serving after a signal to stop.
        grace_s: For workers to stop before they are killed.
        keep_alive_s: How long a connection may wait for its next request.
        address: Where to listen.

    Attributes:
        failure: Why it could not start.
    """

    def __init__(
        self,
        state: ServerState,
        wakeup: Wakeup,
        *,
        announcement: str,
        say: Callable[[str], object],
        start_drain: Callable[[], object],
        request_reload: Callable[[], object],
        drain_delay_s: float,
        grace_s: float,
        keep_alive_s: float,
        address: Address,
    ) -> None:
        super().__init__(
            target="aegis",
            address=address.ip,
            port=address.port,
            interface=Interfaces.RSGI,
            workers=state.workers,
            http=HTTPModes.http1,
            websockets=False,
            loop=Loops.uvloop,
            http1_settings=HTTP1Settings(
                header_read_timeout=round(keep_alive_s * 1_000),
                # The kernel counts exactly; granian takes some more, by how it arrives.
                max_buffer_size=MAX_HEADERS_BYTES,
            ),
            log_level=LogLevels.error,
            log_access=False,
        )
        self._state = state
        self._wakeup = self.main_loop_interrupt = wakeup
        self._announcement = announcement
        self._say = say
        self._start_drain = start_drain
        self._request_reload = request_reload
        self._drain_delay_s = drain_delay_s
        self._grace_s = grace_s
        self._ended: list[Any] = []
        self._starts = Starts()
        self._failing: set[int] = set()
        self._stop_number: int | None = None
        self._stop_asked_at = 0.0
        self._serve_until: float | None = None
        self._is_reload_asked = False
        self._is_clean = True
        self.failure: str | None = None

    # --- signals: Python runs these in the main thread, between any two of its steps --------------

    def signal_handler_interrupt(self, number: int, *_: Any, **__: Any) -> None:
        """Take note of a request to stop; a second one ends the server at once."""
        now = time.monotonic()
        if self._stop_number is None:
            self._stop_number, self._stop_asked_at = number, now
        else:
            same_s = REPEATED_S if number == self._stop_number else SAME_REQUEST_S
            if now - self._stop_asked_at > same_s:
                self._end(number)

    def signal_handler_reload(self, *_: Any, **__: Any) -> None:
        """Take note of a request to load files again."""
        self._is_reload_asked = True

    def _end(self, number: int) -> NoReturn:
        """End at once: it is the second request to stop."""
        for worker in self.wrks:
            with suppress(OSError):
                os.kill(worker.inner.pid, signal.SIGKILL)
        os._exit(128 + number)

    # --- the loop --------------------------------------------------------------------------------

    def _serve_loop(self, spawn_target: Any, target_loader: Any) -> None:
        while not self._is_over():
            self._wakeup.wait(self._seconds_to_wait())
            if self._state.announce():
                self._tell(self._announcement)
                notify("READY=1")
                release_hangups()
            self._look_after_started()
            self._look_after_ended()
            for index in self._starts.due():
                self._start_worker(index, spawn_target, target_loader)
            self._reload_if_asked()
        self._start_drain()

    def _is_over(self) -> bool:
        """Whether to stop the workers now."""
        if self.failure is not None:
            return True
        if self._stop_number is None:
            return False
        if self._serve_until is None:
            delay_s = self._drain_delay_s if self._state.is_announced else 0.0
            self._serve_until = time.monotonic() + delay_s
            self._state.begin_stop()
            notify("STOPPING=1")
            first = f"new requests are taken for {delay_s:g} s more; then " if delay_s else ""
            self._tell(
                f"stopping on {signal.Signals(self._stop_number).name}: {first}requests that run"
                f" have {self._grace_s:g} s"
            )
        return time.monotonic() >= self._serve_until

    def _seconds_to_wait(self) -> float | None:
        """How long there is nothing to do unless something happens; None: for good."""
        moments = [self._starts.next_at(), self._serve_until]
        known = [moment for moment in moments if moment is not None]
        return min(known) - time.monotonic() if known else None

    def _reload_if_asked(self) -> None:
        if not self._state.is_announced or self._stop_number is not None:
            return
        if self._is_reload_asked:
            self._is_reload_asked = False
            self._state.ask_reload()
            self._request_reload()

    def _tell(self, text: str) -> None:
        with suppress(OSError, ValueError):  # a full disk or a closed pipe behind it ends nothing
            self._say(text)

    # --- workers ---------------------------------------------------------------------------------

    def _spawn_workers(self, spawn_target: Any, target_loader: Any) -> None:
        for index in range(self.workers):
            if self.failure is None:
                self._start_worker(index, spawn_target, target_loader)

    def _start_worker(self, index: int, spawn_target: Any, target_loader: Any) -> None:
        load = partial(target_loader, self._state.begin_start(index))
        worker = self._spawn_worker(index, spawn_target, load)
        worker._watcher = partial(self._watch_worker, worker)  # noqa: SLF001 - there is no other door
        try:
            # What it inherits must not take a signal before it has said what is to become of it, and
            # the thread that waits for its end must not take ours.
            with blocked_signals():
                worker.start()
        except OSError as error:
            self._plan_start(index, f"the system starts no process: {error.strerror}")
            return
        self.wrks[index : index + 1] = [worker]

    def _watch_worker(self, worker: Any) -> None:
        """In a thread of its own."""
        worker.inner.join()
        self._ended.append(worker)
        self._wakeup.set()

    def _look_after_started(self) -> None:
        for index in [index for index in self._failing if self._state.is_ready(index)]:
            self._failing.discard(index)
            _log.warning("worker %d is ready again", index + 1)

    def _look_after_ended(self) -> None:
        while self._ended:
            worker = self._ended.pop(0)
            how = _describe_end(worker.inner.exitcode)
            if self._state.is_ready(worker.idx):
                _log.error("worker %d %s; it is started again", worker.idx + 1, how)
            if self._state.is_reload_open:
                self._is_reload_asked = True  # it may have been about to
            self._plan_start(worker.idx, self._state.reason(worker.idx) or f"it {how}")

    def _plan_start(self, index: int, why: str) -> None:
        failures = self._state.end_start(index)
        if not self._state.is_announced:
            self.failure = self.failure or f"a worker cannot start: {why}"
            return
        pause_s = self._starts.plan(index, failures)
        if failures:
            self._failing.add(index)
            _log.error(
                "worker %d cannot start: %s; it is tried again in %g s", index + 1, why, pause_s
            )

    def _stop_workers(self) -> None:
        for worker in self.wrks:
            worker.terminate()
        deadline = time.monotonic() + self._grace_s
        while (alive := self._alive()) and time.monotonic() < deadline:
            self._wakeup.wait(_POLL_S)
        for worker in alive:
            self._is_clean = False
            _log.error(
                "worker %d does not stop within %g s and is killed", worker.idx + 1, self._grace_s
            )
            worker.kill()
        for worker in alive:
            worker.join(_KILLED_S)
        self.wrks.clear()

    def _alive(self) -> list[Any]:
        return [worker for worker in self.wrks if worker.is_alive()]

    def shutdown(self, exit_code: int = 0) -> None:
        """Stop the workers, and say how that went."""
        super().shutdown(exit_code)
        if self.failure is None:
            self._tell("stopped" if self._is_clean else "stopped; not all that ran came to its end")


def _describe_end(exit_code: int | None) -> str:
    """How a process ended."""
    if exit_code is None or exit_code >= 0:
        return f"ended with exit code {exit_code}"
    try:
        return f"was ended by {signal.Signals(-exit_code).name}"
    except ValueError:
        return f"was ended by signal {-exit_code}"


class Starts:
    """When workers that ended are started again: at once, but later and later one that cannot start."""

    def __init__(self) -> None:
        self._planned: dict[int, float] = {}

    def plan(self, index: int, failures: int) -> float:
        """Plan the next start of a worker that has ended.

        Args:
            index: Which one.
            failures: How often in a row it could not start.

        Returns:
            After how many seconds it will be.
        """
        pause_s = min(_PAUSE_S * 2 ** min(failures - 1, 20), _MAX_PAUSE_S) if failures else 0.0
        self._planned[index] = time.monotonic() + pause_s
        return pause_s

    def due(self) -> list[int]:
        """The workers to start now."""
        now = time.monotonic()
        due = [index for index, planned in self._planned.items() if planned <= now]
        for index in due:
            del self._planned[index]
        return due

    def next_at(self) -> float | None:
        """When the next one is due; None: none is planned."""
        return min(self._planned.values(), default=None)
