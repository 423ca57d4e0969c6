"""The executable specification: a linear scan by `fnmatch`. It judges the engine and feeds `explain`.

It must stay obvious rather than fast: where the two differ, this one is right.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from aegis_core.model import DEFAULT_RULE, Condition, Policy
from aegis_core.values import Decision, PolicyRule
from aegis_core.work import Work

__all__ = ["Step", "Trace", "evaluate", "trace"]


@dataclass(frozen=True, slots=True)
class Step:
    """What became of one rule.

    Attributes:
        rule: Its index.
        mismatch: The first pattern that did not match (`type`, `target`, `agent`), or None.
        held: What its conditions said: True, False, or why they cannot be judged. None where a
            pattern did not match, since they are not asked then.
    """

    rule: int
    mismatch: str | None
    held: bool | str | None


@dataclass(frozen=True, slots=True)
class Trace:
    """A decision and every rule on the way to it, the deciding one last."""

    decision: Decision
    steps: tuple[Step, ...]


def trace(
    policy: Policy,
    action_type: str,
    target: str = "",
    agent: str = "",
    params: Mapping[str, Any] | None = None,
    *,
    condition: Callable[[Mapping[str, Any]], Condition | None],
    now: float,
    work: Work | None = None,
) -> Trace:
    """Decide by the rules in their order and keep what each of them said.

    Args:
        policy: The rules and defaults.
        action_type: The action's type.
        target: Its target.
        agent: Its agent; "" where it has none.
        params: Its parameters.
        condition: Compiles a rule's conditions; None where it has none.
        now: The time of the decision, in seconds since the epoch.
        work: What the conditions may take, together with those of the actions that were decided
            with it before; None: the default budget.
    """
    steps: list[Step] = []
    work = Work() if work is None else work
    work.memo.clear()
    for index, rule in enumerate(policy.rules):
        mismatch = _mismatch(rule, action_type, target, agent)
        if mismatch is not None:
            steps.append(Step(index, mismatch, None))
            continue
        decision = _by(rule, condition, {} if params is None else params, now, work)
        held = decision is not None and (decision.error is None or decision.error)
        steps.append(Step(index, None, held))
        if decision is not None:
            return Trace(decision, tuple(steps))
    default = Decision(DEFAULT_RULE, policy.default_risk_level, policy.default_approval)
    return Trace(default, tuple(steps))


def evaluate(
    policy: Policy,
    action_type: str,
    target: str = "",
    agent: str = "",
    params: Mapping[str, Any] | None = None,
    *,
    condition: Callable[[Mapping[str, Any]], Condition | None],
    now: float,
    work: Work | None = None,
) -> Decision:
    """The decision of `trace`, without the way to it."""
    return trace(
        policy, action_type, target, agent, params, condition=condition, now=now, work=work
    ).decision


def _mismatch(rule: PolicyRule, action_type: str, target: str, agent: str) -> str | None:
    if not fnmatchcase(action_type, rule.match_type):
        return "type"
    if not fnmatchcase(target, rule.match_target):
        return "target"
    if not fnmatchcase(agent, rule.match_agent):
        return "agent"
    return None


def _by(
    rule: PolicyRule,
    condition: Callable[[Mapping[str, Any]], Condition | None],
    params: Mapping[str, Any],
    now: float,
    work: Work,
) -> Decision | None:
    """What a rule whose patterns match decides; None where its conditions do not hold."""
    compiled = condition(rule.conditions) if rule.conditions else None
    if compiled is not None:
        if not work.spend(1):
            return Decision.indeterminate(rule.name, work.reason)
        try:
            held = compiled(params, now, work)
        except Exception as error:  # noqa: BLE001 - whatever it is, it must block
            return Decision.failed(rule.name, error)
        if held is False:
            return None
        if held is not True:  # anything but a plain yes blocks
            return Decision.indeterminate(rule.name, str(held))
    return Decision(rule.name, rule.risk_level, rule.approval)
