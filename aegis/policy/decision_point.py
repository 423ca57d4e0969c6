"""The decision point: the policy in force, swapped as a whole, and the decisions by it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from math import inf
from time import monotonic
from typing import Any, NoReturn, TypeVar

from aegis.errors import NotReady
from aegis.host.workers import LEASE_S
from aegis.policy.compiled_cache import CompiledPolicy
from aegis.policy.history import PolicyVersion
from aegis_core import Action, Batch, Decision, Engine, Work

__all__ = ["PIECE", "Decider", "DecisionPoint", "Snapshot", "decide_all"]

_AT_ONCE_S = 0.005
_AT_ONCE_UNITS = 50_000
"""Some milliseconds: what takes more is left to a thread."""
_PIECE_S = 0.002
_PAUSE_S = 0.000_1
"""After each piece the thread lets the others have the interpreter, which it would win again."""
PIECE = 200
"""Actions of a batch after which the event loop is given back while they are recorded."""

_Made = TypeVar("_Made")


class Snapshot:
    """A policy version, compiled. A request keeps the one that it started with.

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
        self._load_newest: Callable[[], Snapshot] = _not_started
        self._renew: Callable[[], memoryview] | None = None
        self._renew_at = inf
        self._switching = threading.Lock()

    def begin(
        self,
        snapshot: Snapshot,
        newest: memoryview,
        load_newest: Callable[[], Snapshot],
        renew: Callable[[], memoryview] | None = None,
    ) -> None:
        """Decide by a policy, and by newer ones as they come.

        Args:
            snapshot: The policy to begin with.
            newest: One word: the number of the newest version of all processes.
            load_newest: Gives that version without waiting for long.
            renew: Gives the word of all processes again, which may be another one; called every
                `LEASE_S`. Raises an AegisError if there is none now: then nothing is decided.
        """
        self._renew, self._renew_at = renew, inf if renew is None else monotonic() + LEASE_S
        self._newest = newest
        self._load_newest = load_newest
        self._current = snapshot

    def end(self) -> None:
        """Decide no more."""
        self._current = None
        self._renew, self._renew_at = None, inf
        self._newest = memoryview(bytes(8)).cast("Q")
        self._load_newest = _not_started

    def snapshot(self) -> Snapshot:
        """The policy in force.

        Raises:
            NotReady: There is none yet, or no more.
            NotReady: There is a newer one that must be compiled first.
            NotReady: It cannot be known now whether there is a newer one.
            StoreError: There is a newer one that cannot be read.
        """
        current = self._current
        if current is None or current.version < self._newest[0] or monotonic() > self._renew_at:
            return self._renewed()
        return current

    def _renewed(self) -> Snapshot:
        now = monotonic()
        if now > self._renew_at and self._renew is not None:
            self._newest = self._renew()
            self._renew_at = now + LEASE_S  # from before it was looked for
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


class Decider:
    """Decides what requests ask, each within its budget, and never holds the event loop for long.

    What takes more than some milliseconds goes on in a thread, one request after the other: however
    many ask for much, the loop shares the interpreter with one of them.

    Args:
        budget: Units of work that the conditions of one request may take.
    """

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._threads = ThreadPoolExecutor(1, "aegis-decide")
        self.at_once = min(budget, _AT_ONCE_UNITS)

    def work(self, read: Callable[[Any], Any] | None = None) -> Work:
        """What the conditions of a request may take.

        Args:
            read: Makes a mapping of an action's params; None: they are mappings.
        """
        return Work(self._budget, read)

    def is_decided_at_once(self, batch: Batch[Any]) -> bool:
        """Whether a batch is decided now, since it takes little; what is left `finish` does."""
        return batch.proceed(_AT_ONCE_S, self.at_once)

    async def finish(self, batch: Batch[Any]) -> None:
        """Decide the rest of a batch."""
        await self.in_thread(decide_all, batch)

    async def in_thread(self, do: Callable[..., _Made], *arguments: Any) -> _Made:
        """What a function answers, called in the thread."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, do, *arguments)

    async def decide(self, engine: Engine, actions: Sequence[Action]) -> list[Decision]:
        """The decisions about actions, at one moment and within one budget."""
        batch = engine.begin(
            [(action.type, action.target, action.agent_id, action.params) for action in actions],
            self.work(),
        )
        if not self.is_decided_at_once(batch):
            await self.finish(batch)
        return batch.result

    def close(self) -> None:
        """Let the thread go when it has done what it does."""
        self._threads.shutdown(wait=False)


def decide_all(batch: Batch[_Made]) -> _Made:
    """The result of a batch that is decided in a thread, and lets the others go on meanwhile."""
    while not batch.proceed(_PIECE_S):
        time.sleep(_PAUSE_S)
    return batch.result


def _not_started() -> NoReturn:
    raise NotReady("the server is starting or stopping")
