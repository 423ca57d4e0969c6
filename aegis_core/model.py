"""The values that policies and decisions are made of: frozen, without behaviour of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import Any

from aegis_core.work import Work

__all__ = [
    "DEFAULT_RULE",
    "Approval",
    "Condition",
    "Policy",
    "PolicyRule",
    "RiskLevel",
]

DEFAULT_RULE = "<default>"
"""What `matched_rule` says where no rule matched."""

ANYTHING = "*"

Condition = Callable[[Mapping[str, Any], float, Work], "bool | str"]
"""A rule's conditions, compiled: called with the params, the time (seconds since the epoch) and the
work that they may take.

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
