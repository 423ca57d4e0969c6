"""Runs the server: checks everything in the parent, then hands over to granian. The only granian.

All that can be known beforehand is checked before workers are forked; one that still cannot start
leaves its reason in memory that it shares with the parent, which says it and tries again.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NoReturn

from granian import Granian
from granian.constants import HTTPModes, Interfaces, Loops
from granian.http import HTTP1Settings
from granian.log import LogLevels

from aegis._version import __version__
from aegis.audit.journal import Journal
from aegis.auth.keys_file import read_keys
from aegis.auth.ring import MAX_SHARED_BYTES, KeyRing
from aegis.config import Settings, is_loopback
from aegis.errors import ConfigError, Problem, shown
from aegis.host.memory import SharedBytes
from aegis.policy.compiled_cache import PolicyText
from aegis.policy.decision_point import Snapshot
from aegis.policy.rollout import PolicyVersions
from aegis.server.http.headers import MAX_HEADERS_BYTES
from aegis.server.runner.listening import Address, free_address, notify, own_database
from aegis.server.runner.signals import Wakeup, blocked_signals, hold_hangups, release_hangups
from aegis.server.runner.state import ServerState
from aegis.server.runner.worker import Inherited, loader
from aegis.store.database import Store

__all__ = ["serve"]

_log = logging.getLogger("aegis.server")

MIN_GRACE_S = 20.0
"""A worker that does not stop is killed after this long, or later where bodies may take longer."""
MOST_WARNINGS = 10
"""Of the policy, that are said at the start; `aegis validate` says all of them."""
SAME_REQUEST_S, REPEATED_S = 0.5, 0.005
"""Signals to stop that come together ask for one thing: a terminal and a supervisor may both send one,
and timeout(1) sends one to the process and to its group."""
_LOOK_S = 0.02
_KILLED_S = 5.0
_PAUSE_S, _MAX_PAUSE_S = 0.1, 30.0
"""Before a worker that could not start is started again; it doubles each time."""


def serve(
    settings: Settings,
    policy_path: str,
    file: PolicyText,
    *,
    host: str,
    port: int,
    workers: int = 1,
    executor: str | None = None,
    reset_policy: bool = False,
    announce: Callable[[str], object] = print,
) -> None:
    """Serve until a signal ends it.

    Args:
        settings: Limits and keys.
        policy_path: What the policy file is called, for messages.
        file: The policy file.
        host: Name or address to listen on.
        port: Port; 0 takes a free one.
        workers: Processes.
        executor: `module:Class` of an executor.
        reset_policy: Go back to the file even where a newer policy was put.
        announce: Says what runs, and when and why it stops.

    Raises:
        AegisError: It cannot start, and why.
    """
    if settings.is_keyless and not is_loopback(host) and not settings.allow_unauthenticated:
        raise ConfigError(
            f"{shown(host)} can be reached by other machines and no key is set; set AEGIS_API_KEY,"
            " give --keys, or give --allow-unauthenticated"
        )
    keys = [] if settings.keys_file is None else read_keys(settings.keys_file)
    in_memory = settings.audit_db == ":memory:"
    if in_memory and workers > 1:
        raise ConfigError("several workers cannot share `:memory:`; give --audit-db a file")
    address = free_address(host, port)
    with own_database(settings.audit_db):
        snapshot = _prepare(settings, file, reset=reset_policy)
        text = _announcement(
            address, policy_path, file, snapshot, settings, len(keys), executor, workers
        )
        _run(
            settings,
            file if in_memory else None,
            address,
            workers,
            executor,
            text,
            announce,
        )


def _run(
    settings: Settings,
    file: PolicyText | None,
    address: Address,
    workers: int,
    executor: str | None,
    announcement: str,
    say: Callable[[str], object],
) -> None:
    """Start the workers and look after them until a signal ends all."""
    # Workers inherit the loader, which is a closure, and memory: both need a fork.
    multiprocessing.set_start_method("fork", force=True)
    state, wakeup = ServerState(workers), Wakeup()
    stopping, stop = os.pipe()
    nothing = os.open(os.devnull, os.O_RDONLY)
    inherited = Inherited(
        settings,
        file,
        executor,
        uuid.uuid4().hex,
        state,
        wakeup,
        _known_keys(settings.keys_file),
        os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC),
        os.getpid(),
        stopping,
        stop,
        address.port,
    )
    server = _Server(
        state,
        wakeup,
        announcement=announcement,
        say=say,
        # Not closed: a worker that is forked only now closes the same number.
        begin_drain=lambda: os.dup2(nothing, stop),
        ask_reload=lambda: os.eventfd_write(inherited.reloads, 1),
        drain_delay_s=settings.drain_delay_s,
        grace_s=grace_s(settings),
        target="aegis",
        address=address.ip,
        port=address.port,
        interface=Interfaces.RSGI,
        workers=workers,
        http=HTTPModes.http1,
        websockets=False,
        loop=Loops.uvloop,
        http1_settings=HTTP1Settings(
            header_read_timeout=round(settings.keep_alive_s * 1_000),
            # The kernel counts exactly; granian takes some more, by how it arrives.
            max_buffer_size=MAX_HEADERS_BYTES,
        ),
        log_level=LogLevels.error,
        log_access=False,
    )
    hold_hangups()
    wakeup.listen()
    server.serve(target_loader=loader(inherited), wrap_loader=False)
    if server.failure is not None:
        raise ConfigError(server.failure)


def _known_keys(path: str | None) -> SharedBytes | None:
    """What is known of the keys file, for workers to share."""
    if path is None:
        return None
    shared = SharedBytes(MAX_SHARED_BYTES)
    KeyRing([], path, shared=shared)
    return shared


def grace_s(settings: Settings) -> float:
    """How long workers have to stop: all that may still run comes to its end within it.

    A body may take its time and an eighth more, and what it asks for is not executed any more; what is
    executed is interrupted after its own time. Both leave records, which are stored last.
    """
    running_s = max(settings.body_timeout_s * 9 / 8, settings.drain_timeout_s)
    return max(MIN_GRACE_S, running_s + settings.audit_timeout_s + 3.0)


def _prepare(settings: Settings, file: PolicyText, *, reset: bool) -> Snapshot:
    """Choose the policy in force and see that the database can be written; leaves nothing open."""
    store = Store(settings.audit_db)
    try:
        versions = PolicyVersions(store, Journal(store))
        try:
            return versions.start(file, reset=reset)
        finally:
            versions.close()
    finally:
        store.close()


def _announcement(
    address: Address,
    policy_path: str,
    file: PolicyText,
    snapshot: Snapshot,
    settings: Settings,
    keys: int,
    executor: str | None,
    workers: int,
) -> str:
    origin = policy_path if snapshot.stored.origin == "file" else "put over HTTP"
    if settings.is_keyless:
        callers = "keyless: " + (
            "EVERYONE who reaches this address"
            if settings.allow_unauthenticated
            else "this machine only"
        )
    else:
        callers = "keyed" + ("" if settings.admin_key is None else ", with an admin key")
        if settings.keys_file is not None:
            callers += f", {keys} keys in {settings.keys_file}"
    lines = [
        f"Aegis {__version__} at {address}",
        f"  policy     version {snapshot.version}, {snapshot.rule_count} rules, from {origin}",
        f"  database   {settings.audit_db}",
        f"  callers    {callers}",
        "  approval   auto-approval on: actions to `approve` run without asking anyone",
        f"  executor   {executor or 'none: actions are decided and recorded, not done'}",
    ]
    if workers > 1:
        lines.append(f"  workers    {workers}")
    source = policy_path if snapshot.stored.origin == "file" else f"version {snapshot.version}"
    lines += _warnings(source, snapshot.compiled.warnings)
    return "\n".join(lines)


def _warnings(source: str, warnings: Sequence[Problem]) -> list[str]:
    """The first warnings of the policy in force, a line for each."""
    lines = [
        f"  warning    {source}{'' if odd.line is None else f':{odd.line}'}: {odd}"
        for odd in warnings[:MOST_WARNINGS]
    ]
    if len(warnings) > len(lines):
        lines.append(f"  warning    and {len(warnings) - len(lines)} more")
    return lines


class _Server(Granian):  # type: ignore[misc,valid-type]  # granian chooses its class by platform
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
        begin_drain: Tells the workers that they are about to be stopped.
        ask_reload: Lets one of the workers load the files again.
        drain_delay_s: How long to go on serving after a signal to stop.
        grace_s: For workers to stop before they are killed.
        options: granian's.

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
        begin_drain: Callable[[], object],
        ask_reload: Callable[[], object],
        drain_delay_s: float,
        grace_s: float,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self._state = state
        self._wakeup = self.main_loop_interrupt = wakeup
        self._announcement = announcement
        self._say = say
        self._begin_drain = begin_drain
        self._ask_reload = ask_reload
        self._drain_delay_s = drain_delay_s
        self._grace_s = grace_s
        self._ended: list[Any] = []
        self._starts = _Starts()
        self._failing: set[int] = set()
        self._stop_number: int | None = None
        self._stop_asked_at = 0.0
        self._serve_until: float | None = None
        self._is_reload_asked = False
        self._is_clean = True
        self.failure: str | None = None

    # --- signals, in the main thread between any two of its steps ---------------------------------

    def signal_handler_interrupt(self, number: int, *_: Any, **__: Any) -> None:
        now = time.monotonic()
        if self._stop_number is None:
            self._stop_number, self._stop_asked_at = number, now
        else:
            same_s = REPEATED_S if number == self._stop_number else SAME_REQUEST_S
            if now - self._stop_asked_at > same_s:
                self._end(number)

    def signal_handler_reload(self, *_: Any, **__: Any) -> None:
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
        self._begin_drain()

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
            self._ask_reload()

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
            self._wakeup.wait(_LOOK_S)
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


class _Starts:
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
