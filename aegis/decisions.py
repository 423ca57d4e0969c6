"""The decision point: the policy in force, swapped as a whole, and the decisions by it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import NoReturn

from aegis.compiled import CompiledPolicy
from aegis.errors import NotReady
from aegis.versions import PolicyVersion
from aegis_core import Engine

__all__ = ["DecisionPoint", "Snapshot"]


class Snapshot:
    """A policy version, compiled. A request holds on to the one that it began with.

    Attributes:
        compiled: The compiled policy.
        stored: Its version as the database has it.
        version: The version's number.
        headers: That number, as the answers carry it.
        engine: What decides.
    """

    def __init__(self, compiled: CompiledPolicy, stored: PolicyVersion) -> None:
        self.compiled = compiled
        self.stored = stored
        self.version = stored.version
        self.headers = (("x-aegis-policy-version", str(stored.version)),)
        self.engine: Engine = compiled.engine

    @property
    def rule_count(self) -> int:
        """How many rules it has."""
        return self.compiled.rule_count


class DecisionPoint:
    """Holds the policy in force.

    Invariant: `snapshot` is never older than the newest version that any process has announced
    before the call.
    """

    def __init__(self) -> None:
        self._current: Snapshot | None = None
        self._newest = memoryview(bytes(8)).cast("Q")
        self._load_newest: Callable[[], Snapshot] = _never_begun
        self._switching = threading.Lock()

    def begin(
        self, snapshot: Snapshot, newest: memoryview, load_newest: Callable[[], Snapshot]
    ) -> None:
        """Decide by a policy, and by newer ones as they come.

        Args:
            snapshot: The policy to begin with.
            newest: One word: the number of the newest version of all processes.
            load_newest: Gives that version without waiting for long.
        """
        self._newest = newest
        self._load_newest = load_newest
        self._current = snapshot

    def end(self) -> None:
        """Decide no more."""
        self._current = None
        self._newest = memoryview(bytes(8)).cast("Q")
        self._load_newest = _never_begun

    def snapshot(self) -> Snapshot:
        """The policy in force.

        Raises:
            NotReady: There is none yet, or no more.
            NotReady: There is a newer one that must be compiled first.
            StoreError: There is a newer one that cannot be read.
        """
        current = self._current
        if current is None or current.version < self._newest[0]:
            return self.switch(self._load_newest())
        return current

    def switch(self, snapshot: Snapshot) -> Snapshot:
        """Decide by a newer version from now on; an older one is left aside."""
        with self._switching:  # requests and the thread that follows changes may come together
            if self._current is None or snapshot.version > self._current.version:
                self._current = snapshot
            return self._current


def _never_begun() -> NoReturn:
    raise NotReady("the server is starting or stopping")
