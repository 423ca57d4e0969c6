"""The follower: a thread by which a process switches to newer policies on its own."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Protocol

from aegis.errors import AegisError
from aegis.host.workers import LEASE_S, Workers
from aegis.policy.decision_point import Snapshot

__all__ = ["Follower"]

_log = logging.getLogger("aegis.policy")

_END_S = 2.0


class _Versions(Protocol):
    """What a follower loads from: `PolicyVersions`, which starts it."""

    def join_again(self, version: int) -> None: ...
    def prepare(self, sha256: str) -> bool: ...
    def compile_newest(self) -> Snapshot: ...


class Follower:
    """A thread that gets a process ready for changes, and switches even where nobody asks.

    Args:
        versions: What it loads from.
        workers: What it listens to, and answers.
        version: What the process decides by.
        switch: Called with each newer policy.
    """

    def __init__(
        self,
        versions: _Versions,
        workers: Workers,
        version: int,
        switch: Callable[[Snapshot], object],
    ) -> None:
        self._versions = versions
        self._workers = workers
        self._switch = switch
        self._in_force = version
        self._workers.say_version(version)
        self._is_over = False
        self._failed: str | None = None
        # It must not keep a process that wants to end; `stop` is for all others.
        self._thread = threading.Thread(target=self._follow, name="policy", daemon=True)
        self._thread.start()

    def stop(self) -> bool:
        """End; whether it has, and does not still compile a policy."""
        self._is_over = True
        self._workers.wake()
        self._thread.join(_END_S)
        return not self._thread.is_alive()

    def _follow(self) -> None:
        seen = 0
        while not self._is_over:
            bell = self._workers.bell()
            try:
                self._versions.join_again(self._in_force)
                ticket, sha256 = self._workers.asked()
                if ticket != seen:
                    is_at_hand = self._versions.prepare(sha256)
                    self._workers.say_ready(ticket, is_at_hand=is_at_hand)
                    seen = ticket
                if self._workers.newest[0] != self._in_force:
                    self._catch_up()
                self._failed = None
            except AegisError as error:
                self._say(str(error))
            except Exception:  # noqa: BLE001 - the edge: without this thread there are no changes
                _log.exception("the policy could not be followed by a defect")
            self._workers.wait(bell, LEASE_S)

    def _catch_up(self) -> None:
        snapshot = self._versions.compile_newest()
        self._switch(snapshot)
        self._in_force = snapshot.version
        self._workers.say_version(snapshot.version)

    def _say(self, error: str) -> None:
        if error != self._failed:
            _log.error("the newest policy cannot be loaded: %s", error)
        self._failed = error
