"""Runs the server: checks everything in the parent, then hands over to granian. The only granian.

granian cannot end with an exit code of ours, nor say why a worker did not start, so all that can
be known beforehand is checked before its workers are forked, and a worker that still fails leaves
its reason in memory that it shares with the parent.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import importlib
import mmap
import multiprocessing
import os
import select
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from granian import Granian
from granian.constants import HTTPModes, Interfaces, Loops
from granian.http import HTTP1Settings
from granian.log import LogLevels

from aegis import __version__
from aegis.compiled import PolicyText
from aegis.config import Settings, is_loopback
from aegis.decisions import Snapshot
from aegis.errors import AegisError, ConfigError, Problem, shown
from aegis.execution import Executor
from aegis.keys import read_keys
from aegis.server import build_app
from aegis.server.app import App
from aegis.server.host import Address, free_address, notify, own_database
from aegis.sharing import PolicyVersions
from aegis.store import Store

__all__ = ["load_executor", "serve"]

KILL_TIMEOUT_S = 20
"""After which granian kills a worker that does not stop: more than a body and a drain may take."""
IDLE_TIMEOUT_MS = 5_000
"""Of a connection without a whole request head: also how long such a one can delay the end."""
LARGEST_HEADERS_BYTES = 64 * 1024
MOST_WARNINGS = 10
"""Of the policy, that are said at the start; `aegis validate` says all of them."""
_PR_SET_PDEATHSIG = 1
_LOOK_S = 0.02
_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 5.0
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
    announce: Callable[[str], None] = print,
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
        announce: Says the text that tells an operator what runs.

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
            lambda: announce(text),
        )


def _run(
    settings: Settings,
    file: PolicyText | None,
    address: Address,
    workers: int,
    executor: str | None,
    ready: Callable[[], None],
) -> None:
    """Start the workers and look after them until a signal ends all."""
    failure = mmap.mmap(-1, _SHARED_BYTES)
    # The loader is a closure and the failure's memory is inherited: both need a fork.
    multiprocessing.set_start_method("fork", force=True)
    stopping, stop = os.pipe()
    nothing = os.open(os.devnull, os.O_RDONLY)
    server = _Server(
        target="aegis",
        address=address.ip,
        port=address.port,
        interface=Interfaces.RSGI,
        workers=workers,
        http=HTTPModes.http1,
        websockets=False,
        loop=Loops.uvloop,
        http1_settings=HTTP1Settings(
            header_read_timeout=IDLE_TIMEOUT_MS, max_buffer_size=LARGEST_HEADERS_BYTES
        ),
        log_level=LogLevels.error,
        log_access=False,
        respawn_failed_workers=True,
        workers_kill_timeout=KILL_TIMEOUT_S,
    )
    # Not closed: a worker that is forked only now closes the same number.
    server.when_stopping = lambda: os.dup2(nothing, stop)
    server.is_ready = lambda: bool(failure[_ANNOUNCED])
    server.was_ready = lambda pid: _was_ready(failure, pid)
    inherited = _Inherited(
        settings,
        file,
        executor,
        uuid.uuid4().hex,
        failure,
        os.getpid(),
        stopping,
        stop,
    )
    loader = _loader(inherited, ready)
    try:
        server.serve(target_loader=loader, wrap_loader=False)
    except SystemExit:
        _raise_failure(failure)
        raise
    _raise_failure(failure)


def load_executor(spec: str) -> Executor:
    """The executor that `module:Class` names, made; modules are also looked for here.

    Raises:
        ConfigError: There is none, or it cannot be made.
    """
    module_name, colon, name = spec.partition(":")
    if not (module_name and colon and name):
        raise ConfigError(f"executor {shown(spec)} must be written as `module:Class`")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module_name)
        for part in name.split("."):
            found = getattr(found, part)
        executor = found() if callable(found) else found
    except (Exception, SystemExit) as error:
        raise ConfigError(f"cannot load executor {shown(spec)}: {error}") from error
    if not callable(getattr(executor, "execute", None)):
        raise ConfigError(f"executor {shown(spec)} has no method `execute`")
    return executor  # type: ignore[no-any-return]


def _prepare(settings: Settings, file: PolicyText, *, reset: bool) -> Snapshot:
    """Choose the policy in force and see that the database can be written; leaves nothing open."""
    store = Store(settings.audit_db)
    try:
        versions = PolicyVersions(store)
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
    """granian's server, which also says that it was told to stop, and keeps its workers alive.

    Attributes:
        when_stopping: Called at the first signal.
        is_ready: Says whether a worker was ever ready.
        was_ready: Says whether the worker of this process ever was.
    """

    when_stopping: Callable[[], object] | None = None
    is_ready: Callable[[], bool] = staticmethod(lambda: True)
    was_ready: Callable[[int], bool] = staticmethod(lambda _: True)

    def signal_handler_interrupt(self, number: int, *args: Any, **kwargs: Any) -> None:
        if self.when_stopping is None:
            self._end(number)
        said, self.when_stopping = self.when_stopping, None
        said()
        # Signals interrupt the main thread, which may just be about to wait for this event and hold
        # its lock: to set the event right here would wait for that lock for ever.
        stop = super().signal_handler_interrupt
        threading.Thread(target=stop, args=(number, *args), kwargs=kwargs, daemon=True).start()

    def _end(self, number: int) -> NoReturn:
        """End at once: it is the second signal."""
        for worker in self.wrks:
            with suppress(OSError):
                os.kill(worker.inner.pid, signal.SIGKILL)
        os._exit(128 + number)

    def _serve_loop(self, spawn_target: Any, target_loader: Any) -> None:
        # granian's own loop ends the server when a worker dies twice within 5.5 s, which one bad
        # request of a client's can bring about, and forgets one that dies while it starts another.
        while not self.is_ready() and not self.main_loop_interrupt.wait(_LOOK_S):
            pass
        if self.is_ready():
            notify("READY=1")
        starts = _Starts()
        while not self.interrupt_signal:
            self.main_loop_interrupt.wait(starts.seconds_to_next())
            if self.interrupt_signal:
                break
            self.main_loop_interrupt.clear()
            if not self.is_ready():  # none can start, and its traceback has said why
                return
            while self.interrupt_children:
                index = self.interrupt_children.pop()
                starts.plan(index, is_failure=not self.was_ready(self.wrks[index].inner.pid))
            for index in starts.due():
                self._respawn_workers([index], spawn_target, target_loader)
        notify("STOPPING=1")
        self.interrupt_children.clear()  # who dies now is not missed


class _Starts:
    """When workers that died are started again: at once, but later and later one that cannot start."""

    def __init__(self) -> None:
        self._planned: dict[int, float] = {}
        self._failures: dict[int, int] = {}  # of each since it was last ready

    def plan(self, index: int, *, is_failure: bool) -> None:
        """Plan the next start of a worker that has died.

        Args:
            index: Which one.
            is_failure: Whether it was never ready.
        """
        count = self._failures[index] = self._failures.get(index, 0) + 1 if is_failure else 0
        pause = min(_PAUSE_S * 2 ** (count - 1), _LONGEST_PAUSE_S) if count else 0.0
        self._planned[index] = time.monotonic() + pause

    def due(self) -> list[int]:
        """The workers to start now."""
        now = time.monotonic()
        due = [index for index, planned in self._planned.items() if planned <= now]
        for index in due:
            del self._planned[index]
        return due

    def seconds_to_next(self) -> float | None:
        """How long there is nothing to start; None: for ever."""
        if not self._planned:
            return None
        return max(0.0, min(self._planned.values()) - time.monotonic())


@dataclass(frozen=True, slots=True)
class _Inherited:
    """What workers have from their parent.

    Attributes:
        file: The policy file, where no database holds the policy in force.
        failure: Memory for the reason why a worker cannot start.
        parent: The parent's process.
        stopping: A pipe that ends when the parent stops, or is gone.
        stop: Its other end, which only the parent may hold.
    """

    settings: Settings
    file: PolicyText | None
    executor: str | None
    session_id: str
    failure: mmap.mmap
    parent: int
    stopping: int
    stop: int


def _loader(inherited: _Inherited, ready: Callable[[], None]) -> Callable[[], App]:
    """What granian calls in each worker; a worker that cannot start ends the whole server."""

    def load() -> App:
        # The parent's handlers came with the fork and would swallow what is to end this worker.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        os.close(inherited.stop)
        _die_with(inherited.parent)
        _take_turns()
        if select.select([inherited.stopping], [], [], 0)[0]:  # the parent stops already
            os._exit(0)
        loop = asyncio.get_event_loop()
        try:
            executor = None if inherited.executor is None else load_executor(inherited.executor)
            app = build_app(
                inherited.settings,
                file=inherited.file,
                executor=executor,
                session_id=inherited.session_id,
            )
            loop.run_until_complete(app.open())
        except AegisError as error:
            _fail(str(error), inherited)
        # What is there now stays: the collector need not look at it again. And records that wait
        # for their commit are many and free of cycles: by default they would set it off all the time.
        gc.collect()
        gc.freeze()
        gc.set_threshold(50_000, 20, 50)

        def stop() -> None:
            loop.remove_reader(inherited.stopping)
            app.stop()

        # granian waits for the requests that run and kills the worker when they take too long;
        # they have to learn of the end before it does that.
        loop.add_reader(inherited.stopping, stop)
        # When the loop runs for good, granian listens.
        loop.call_later(0.02, _once, inherited, ready)
        return app

    return load


# What workers and parent share: a text, a byte, and numbers of processes, each where it belongs.
_ANNOUNCED = 4095  # has any worker said that it is ready?
_READY_AT, _READY_PLACES = 4096, 512  # which have
_SHARED_BYTES = _READY_AT + 4 * _READY_PLACES


def _once(inherited: _Inherited, ready: Callable[[], None]) -> None:
    if os.getppid() != inherited.parent:
        os._exit(0)  # it died before granian listened, which has forgotten the signal
    shared = inherited.failure
    place, pid = _place(os.getpid())
    shared[place] = pid
    if not shared[_ANNOUNCED]:
        shared[_ANNOUNCED] = 1
        ready()
        sys.stdout.flush()


def _was_ready(shared: mmap.mmap, pid: int) -> bool:
    place, written = _place(pid)
    return shared[place] == written


def _place(pid: int) -> tuple[slice, bytes]:
    """Where the number of a process stands once it is ready, and how it is written."""
    start = _READY_AT + 4 * (pid % _READY_PLACES)
    return slice(start, start + 4), pid.to_bytes(4, sys.byteorder)


def _die_with(parent: int) -> None:
    """Workers must not outlive their parent: they would keep the port, and nobody would know."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        os._exit(0)


def _take_turns() -> None:
    """Let the threads of this process run until they wait, instead of one stopping the other.

    Two threads, the server's and Python's, hand each request to and fro. By default whoever is woken
    stops whoever woke it: four switches a request, which cost as much as the request itself.
    """
    # SOURCE: sched(7): SCHED_BATCH shares the processor as always, but does not preempt on waking.
    with suppress(OSError):  # not every sandbox lets a process say so
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def _fail(message: str, inherited: _Inherited) -> NoReturn:
    """End the server from a worker: leave the reason, wake the parent, wait for it to stop us."""
    text = " ".join(message.split()).encode()[: _ANNOUNCED - 1]
    inherited.failure[: len(text)] = text
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.kill(inherited.parent, signal.SIGTERM)
    signal.alarm(KILL_TIMEOUT_S)
    while True:
        signal.pause()


def _raise_failure(failure: mmap.mmap) -> None:
    text = failure[:_ANNOUNCED].rstrip(b"\0").decode(errors="replace")
    if text:
        raise ConfigError(text)
