"""What policies are made of: frozen, without behaviour of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import TYPE_CHECKING, Any

from aegis_core.work import Work

if TYPE_CHECKING:
    from aegis_core.values import PolicyRule

__all__ = [
    "DEFAULT_RULE",
    "Approval",
    "Condition",
    "Policy",
    "RiskLevel",
]

DEFAULT_RULE = "<default>"
"""What `matched_rule` says where no rule matched."""

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


@dataclass(frozen=True)
class Policy:
    """Ordered rules and what holds where none of them matches.

    Invariant: the first rule that matches decides; without one, the defaults do.
    """

    rules: tuple[PolicyRule, ...] = ()
    default_risk_level: RiskLevel = RiskLevel.MEDIUM
    default_approval: Approval = Approval.BLOCK
