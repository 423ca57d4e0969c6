"""The values that policies and decisions are made of: frozen, without behaviour of their own."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import Any

__all__ = [
    "DEFAULT_RULE",
    "Action",
    "Approval",
    "Condition",
    "Decision",
    "Policy",
    "PolicyDecision",
    "PolicyRule",
    "RiskLevel",
]

DEFAULT_RULE = "<default>"
"""What `matched_rule` says where no rule matched."""

ANYTHING = "*"

Condition = Callable[[Mapping[str, Any], float], "bool | str"]
"""A rule's conditions, compiled: called with the params and the time (seconds since the epoch).

True: they hold. False: they do not. A text: they cannot be judged, and why.
"""


class RiskLevel(IntEnum):
    """How much harm an action can do."""

    LOW = 1
    MEDIUM = 2
    HIGH = 3
    CRITICAL = 4


class Approval(StrEnum):
    """What has to happen before an action may run."""

    AUTO = "auto"
    APPROVE = "approve"
    BLOCK = "block"


@dataclass(frozen=True, slots=True)
class Action:
    """What an agent says it is about to do.

    Args:
        type: The kind of operation, as in `delete`; not empty.
        target: What it is done to, as in `prod-db`.
        params: Its parameters: a JSON object.
        description: Free text for the audit.
        agent_id: Who wants it; matched by a rule's `agent` pattern.
        session_id: Groups audit records; "" stands for the server's own session.
        parent_agent_id: Who asked that agent to.
        chain_id: The delegation that it belongs to.
        chain_depth: How deep in that delegation.
    """

    type: str
    target: str = ""
    params: Mapping[str, Any] = field(default_factory=dict)
    description: str = ""
    agent_id: str = ""
    session_id: str = ""
    parent_agent_id: str = ""
    chain_id: str = ""
    chain_depth: int = 0


@dataclass(frozen=True, slots=True)
class PolicyRule:
    """One rule: it matches where all three patterns and all conditions do.

    Args:
        match_type: Glob over the action's type.
        match_target: Glob over its target.
        match_agent: Glob over its agent; an action without one has the empty string.
        risk_level: The decision's risk level.
        approval: The decision's approval.
        name: What `matched_rule` says; "" becomes `rule_<index>` in a policy.
        conditions: As written in the policy, for example `{"param_gt": {"count": 100}}`.
    """

    match_type: str = ANYTHING
    match_target: str = ANYTHING
    match_agent: str = ANYTHING
    risk_level: RiskLevel = RiskLevel.MEDIUM
    approval: Approval = Approval.APPROVE
    name: str = ""
    conditions: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Policy:
    """Ordered rules and what holds where none of them matches.

    Invariant: the first rule that matches decides; without one, the defaults do.
    """

    rules: tuple[PolicyRule, ...] = ()
    default_risk_level: RiskLevel = RiskLevel.MEDIUM
    default_approval: Approval = Approval.BLOCK


@dataclass(frozen=True, slots=True)
class Decision:
    """What a policy says of an action. One object a rule, shared by all its decisions.

    Attributes:
        matched_rule: Name of the rule that decided, or `<default>`.
        risk_level: Risk of the action.
        approval: What has to happen before it may run.
        error: Why the deciding rule could not be judged (the action is blocked then); else None.
        is_allowed: False exactly where `approval` is `block`.
        fragment: The decision's members as JSON from `,"risk_level":` up to the closing brace, to
            be written behind the action's own two.
    """

    matched_rule: str
    risk_level: RiskLevel
    approval: Approval
    error: str | None = None
    is_allowed: bool = field(init=False)
    fragment: bytes = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        allowed = self.approval is not Approval.BLOCK
        members: dict[str, Any] = {
            "risk_level": self.risk_level.name,
            "approval": self.approval.value,
            "is_allowed": allowed,
            "matched_rule": self.matched_rule,
        }
        if self.error is not None:
            members["error"] = self.error
        text = json.dumps(members, ensure_ascii=False, separators=(",", ":"))
        object.__setattr__(self, "is_allowed", allowed)
        # Half of a surrogate pair is no character, but must not make a decision fail.
        fragment = b"," + text[1:].encode(errors="backslashreplace")
        object.__setattr__(self, "fragment", fragment)

    @classmethod
    def indeterminate(cls, rule: str, reason: str) -> Decision:
        """The decision of a rule whose conditions cannot be judged: never an allow.

        Args:
            rule: The rule's name.
            reason: Why they cannot be judged.
        """
        return cls(rule, RiskLevel.CRITICAL, Approval.BLOCK, reason)

    @classmethod
    def failed(cls, rule: str, error: Exception) -> Decision:
        """The decision of a rule whose conditions raised an error."""
        try:
            said = str(error)
        except Exception:  # noqa: BLE001 - a text that cannot even be made is no reason to fail
            said = type(error).__name__
        return cls.indeterminate(rule, f"the conditions failed: {said}")


@dataclass(frozen=True, slots=True)
class PolicyDecision:
    """A decision together with the action that it is about."""

    action: Action
    risk_level: RiskLevel
    approval: Approval
    matched_rule: str = ""
    error: str | None = None

    @property
    def is_allowed(self) -> bool:
        """False exactly where the policy blocks the action."""
        return self.approval is not Approval.BLOCK
