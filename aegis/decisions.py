"""The decision point: the policy in force, swapped as a whole, and the decisions by it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import NoReturn

from aegis.codec import dumps
from aegis.errors import NotReady
from aegis.policies import LoadedPolicy
from aegis.store import PolicyVersion
from aegis_core import Engine

__all__ = ["DecisionPoint", "Snapshot"]


class Snapshot:
    """A policy version, compiled. A request holds on to the one that it began with.

    Attributes:
        loaded: The policy and its text.
        stored: Its version as the database has it.
        version: The version's number.
        headers: That number, as the answers carry it.
        engine: What decides.
    """

    def __init__(self, loaded: LoadedPolicy, stored: PolicyVersion) -> None:
        self.loaded = loaded
        self.stored = stored
        self.version = stored.version
        self.headers = (("x-aegis-policy-version", str(stored.version)),)
        self.engine: Engine = loaded.policy.engine

    @property
    def rule_count(self) -> int:
        """How many rules it has."""
        return len(self.loaded.policy.rules)

    @cached_property
    def json(self) -> bytes:
        """The policy as `GET /api/v1/policy` answers it."""
        policy = self.loaded.policy
        return dumps(
            {
                "default_risk_level": policy.default_risk_level.name,
                "default_approval": policy.default_approval.value,
                "rules": [
                    {
                        "name": rule.name,
                        "match_type": rule.match_type,
                        "match_target": rule.match_target,
                        "match_agent": rule.match_agent,
                        "risk_level": rule.risk_level.name,
                        "approval": rule.approval.value,
                        "conditions": rule.conditions,
                    }
                    for rule in policy.rules
                ],
                "version": self.version,
                "sha256": self.stored.sha256,
                "origin": self.stored.origin,
                "key_name": self.stored.key_name,
                "source": self.stored.source,
            }
        )


class DecisionPoint:
    """Holds the policy in force.

    Invariant: `snapshot` is never older than the newest version that any process has announced
    before the call.
    """

    def __init__(self) -> None:
        self._current: Snapshot | None = None
        self._newest = memoryview(bytes(8)).cast("Q")
        self._load_newest: Callable[[], Snapshot] = _never_begun

    def begin(
        self, snapshot: Snapshot, newest: memoryview, load_newest: Callable[[], Snapshot]
    ) -> None:
        """Decide by a policy, and by newer ones as they come.

        Args:
            snapshot: The policy to begin with.
            newest: One word: the number of the newest version of all processes.
            load_newest: Loads that version.
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
            StoreError: There is a newer one that cannot be loaded.
        """
        current = self._current
        if current is None or current.version < self._newest[0]:
            return self.switch(self._load_newest())
        return current

    def switch(self, snapshot: Snapshot) -> Snapshot:
        """Decide by a newer version from now on; an older one is left aside."""
        if self._current is None or snapshot.version > self._current.version:
            self._current = snapshot
        return self._current


def _never_begun() -> NoReturn:
    raise NotReady("the server is starting or stopping")
