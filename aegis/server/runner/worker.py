"""A worker of `aegis serve`: what granian calls in each process before it serves."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import select
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import NoReturn

from aegis.config import Settings
from aegis.errors import AegisError
from aegis.execution.loading import load_executor
from aegis.host.memory import SharedBytes
from aegis.policy.compiled_cache import PolicyText
from aegis.server.composition import build_app
from aegis.server.http.app import App
from aegis.server.http.connections import Farewell, limit_unread
from aegis.server.runner.signals import Wakeup, reset_in_worker
from aegis.server.runner.state import ServerState, WorkerStart

__all__ = ["Inherited", "loader"]

_AFTER_DRAIN_S = 3.0
"""For what still runs after bodies and executions had their time; it is cut off then."""
CANNOT_START = 2
"""The exit code of a worker that has said why it cannot start."""
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class Inherited:
    """What workers have from their parent.

    Attributes:
        file: The policy file, where no database holds the policy in force.
        session_id: Of actions that name none.
        state: Shared by all processes of the server.
        wakeup: Wakes the parent.
        known_keys: What workers know of the keys file; None: there is none.
        reloads: An eventfd: whoever reads it loads the files again.
        parent: The parent's process.
        stopping: A pipe that ends when the parent stops, or is gone.
        stop: Its other end, which only the parent may hold.
        port: Where all of them listen.
    """

    settings: Settings
    file: PolicyText | None
    session_id: str
    state: ServerState
    wakeup: Wakeup
    known_keys: SharedBytes | None
    reloads: int
    parent: int
    stopping: int
    stop: int
    port: int


def loader(inherited: Inherited) -> Callable[[WorkerStart], App]:
    """What makes the application in a worker, and ends a worker that cannot start.

    Until it returns the worker has no listening socket, so nothing is sent to one that does not serve.
    """

    def load(start: WorkerStart) -> App:
        reset_in_worker()
        os.close(inherited.stop)
        _die_with(inherited.parent)
        _take_turns()
        if select.select([inherited.stopping], [], [], 0)[0]:  # the parent stops already
            os._exit(0)
        loop = asyncio.get_event_loop()
        try:
            executor = inherited.settings.executor
            app = build_app(
                inherited.settings,
                file=inherited.file,
                executor=None if executor is None else load_executor(executor),
                session_id=inherited.session_id,
                server=inherited.state,
                known_keys=inherited.known_keys,
            )
            loop.run_until_complete(app.open())
        except AegisError as error:
            _fail(inherited.state, start, str(error))
        # What is there now stays: the collector need not look at it again. And records that wait
        # for their commit are many and free of cycles: by default they would set it off all the time.
        gc.collect()
        gc.freeze()
        gc.set_threshold(50_000, 20, 50)

        settings = inherited.settings
        longest_s = max(settings.body_timeout * 9 / 8, settings.drain_timeout) + _AFTER_DRAIN_S

        def stop() -> None:
            loop.remove_reader(inherited.stopping)
            app.stop()
            farewell = Farewell(inherited.port, app.is_serving, longest_s)
            farewell.begin(loop)

        # granian waits for the requests that run and kills the worker when they take too long;
        # they have to learn of the end before it does that, and so do clients that hold it up.
        loop.add_reader(inherited.stopping, stop)
        loop.add_reader(inherited.reloads, _take_reload, inherited, app)
        # Before the first request: one that answers has started, whatever ends it.
        loop.call_soon(inherited.state.say_ready, start)
        # When the loop runs for good, granian listens.
        loop.call_later(0.02, _say_listening, inherited)
        return app

    return load


def _say_listening(inherited: Inherited) -> None:
    if os.getppid() != inherited.parent:
        os._exit(0)  # it died before granian listened, which has forgotten the signal
    limit_unread(inherited.port)
    inherited.state.say_listening()
    inherited.wakeup.set()


def _take_reload(inherited: Inherited, app: App) -> None:
    """Load the files again, if no other worker does that already."""
    try:
        os.eventfd_read(inherited.reloads)
    except BlockingIOError:
        return

    def reload() -> None:
        number = inherited.state.asked_reload()
        app.reload()
        inherited.state.say_reloaded(number)

    threading.Thread(target=reload, name="reload", daemon=True).start()


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


def _fail(state: ServerState, start: WorkerStart, why: str) -> NoReturn:
    """End this worker; the parent says why, and starts it again later."""
    state.say_failed(start, why)
    sys.stdout.flush()
    sys.stderr.flush()
    # At once: what the executor has left running may never end.
    os._exit(CANNOT_START)
