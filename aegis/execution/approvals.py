"""Approvals: whether an action goes on for which the policy says `approve`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from aegis.execution.records import RequestContext
from aegis_core import Action, Decision

__all__ = ["Approved", "Approver", "AutoApprover", "Denied", "Ruling"]


@dataclass(frozen=True, slots=True)
class Approved:
    """The action goes on.

    Attributes:
        human_decision: What its record says about it.
    """

    human_decision: str


@dataclass(frozen=True, slots=True)
class Denied:
    """The action is not executed; its result is `denied`.

    Attributes:
        human_decision: What its record says about it.
        reason: The result's error.
    """

    human_decision: str
    reason: str


Ruling = Approved | Denied
"""What an approver says; `Enforcer` handles each kind, and mypy sees that none is forgotten."""


class Approver(Protocol):
    """Is asked once for each action that is to be executed and whose decision is `approve`.

    It is asked before the intent is committed. What it waits for, its request waits for too, so it
    must answer at once, or raise an AegisError: then the action is neither recorded nor executed.
    """

    async def ask(self, action: Action, decision: Decision, context: RequestContext) -> Ruling:
        """Whether the action goes on.

        Args:
            action: As it was asked, its agent bound to the key; its params are not redacted.
            decision: By the policy in force; its approval is `approve`.
            context: Who asks, by which policy, and the ids of the request.
        """


class AutoApprover:
    """Lets everything through, as agent-aegis does; the record says `auto-approved`."""

    async def ask(self, _action: Action, _decision: Decision, _context: RequestContext) -> Ruling:
        """Let it through."""
        return _AUTO_APPROVED


_AUTO_APPROVED = Approved("auto-approved")
