"""The decision point: the policy in force, swapped as a whole, and the decisions by it."""

from __future__ import annotations

from functools import cached_property

from aegis.codec import dumps
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
        header: That number, as the answers carry it.
    """

    def __init__(self, loaded: LoadedPolicy, stored: PolicyVersion) -> None:
        self.loaded = loaded
        self.stored = stored
        self.version = stored.version
        self.header = (b"x-aegis-policy-version", str(stored.version).encode())

    @cached_property
    def engine(self) -> Engine:
        """What decides."""
        return self.loaded.policy.engine

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
                "source": self.stored.source,
            }
        )


class DecisionPoint:
    """Holds the policy in force.

    Invariant: `current` only ever moves to a higher version.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        self.current = snapshot

    def switch(self, snapshot: Snapshot) -> None:
        """Decide by a newer version from now on; an older one is left aside."""
        if snapshot.version > self.current.version:
            self.current = snapshot
