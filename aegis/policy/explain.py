"""Explanations: why an action is decided as it is, by the reference evaluator.

The engine is asked as well: that the two agree is checked with each explanation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from difflib import SequenceMatcher
from typing import Any
from zoneinfo import ZoneInfo

from aegis import codec
from aegis.errors import Defect
from aegis.policy.conditions import compile_conditions
from aegis.policy.loader import LoadedPolicy
from aegis.redaction import Redaction
from aegis_core import (
    DEFAULT_BUDGET,
    Action,
    Decision,
    Engine,
    PolicyRule,
    Work,
    compile_policy,
)
from aegis_core.reference import Step, trace

__all__ = ["ConditionSeen", "Explanation", "RuleSeen", "explain"]

MAX_NEAREST = 5
_WINDOW = ("time_after", "time_before")
_STAGES = ("type", "target", "agent", None)
"""How far a rule got: the pattern that did not match; None: its conditions did not hold."""


@dataclass(frozen=True, slots=True)
class ConditionSeen:
    """One condition of a rule, and what it saw.

    Attributes:
        name: As in `param_gt.amount` or `weekdays`.
        wanted: The value in the policy.
        seen: The value that it was compared with; None: the parameter is missing or null.
        held: Whether it holds, or why that cannot be said.
    """

    name: str
    wanted: Any
    seen: Any
    held: bool | str


@dataclass(frozen=True, slots=True)
class RuleSeen:
    """One rule, and what it made of the action.

    Attributes:
        rule: The rule.
        line: Its line in the policy's text; None where that is not known.
        mismatch: The pattern that did not match: `type`, `target` or `agent`; None: all did.
        pattern: That pattern.
        value: What it was held against.
        conditions: What its conditions saw; none where a pattern did not match.
    """

    rule: PolicyRule
    line: int | None
    mismatch: str | None = None
    pattern: str = ""
    value: str = ""
    conditions: tuple[ConditionSeen, ...] = ()


@dataclass(frozen=True, slots=True)
class Explanation:
    """A decision and the way to it.

    Attributes:
        decision: What is decided.
        decider: The rule that decided; None where the defaults did.
        nearest: Rules before it that did not match, those that got furthest first.
        passed_over: How many rules before it did not match.
    """

    decision: Decision
    decider: RuleSeen | None
    nearest: tuple[RuleSeen, ...]
    passed_over: int


def explain(
    loaded: LoadedPolicy,
    action: Action,
    now: float,
    *,
    engine: Engine | None = None,
    budget: int = DEFAULT_BUDGET,
) -> Explanation:
    """Decide about an action and say why.

    Args:
        loaded: The policy.
        action: The action.
        now: The moment to decide at, in seconds since the epoch.
        engine: What decides in a server; None: the policy compiled for that moment.
        budget: Units of work that its conditions may take.

    Raises:
        Defect: The engine decides otherwise than the reference does.
    """
    asked = (action.type, action.target, action.agent_id, action.params)
    policy = loaded.policy
    traced = trace(policy, *asked, condition=compile_conditions, now=now, work=Work(budget))
    if engine is None:
        engine = compile_policy(policy, condition=compile_conditions, clock=lambda: now)
    batch = engine.begin([asked], Work(budget))
    while not batch.proceed(1.0):
        pass
    [compiled] = batch.result
    if compiled != traced.decision:
        raise Defect(
            f"the engine decides {_said(compiled)}, the reference {_said(traced.decision)};"
            " please report this with the policy and the action"
        )
    steps = list(traced.steps)
    decider = None
    if steps and steps[-1].held not in (None, False):
        decider = _seen(loaded, steps.pop(), action, now)
    # The sort is stable: of rules that got equally far, the earlier stand first.
    steps.sort(key=lambda step: _distance(policy.rules[step.rule], step, action))
    nearest = tuple(_seen(loaded, step, action, now) for step in steps[:MAX_NEAREST])
    return Explanation(traced.decision, decider, nearest, len(steps))


def _said(decision: Decision) -> str:
    return f"{decision.approval.value} {decision.risk_level.name} by `{decision.matched_rule}`"


def _distance(rule: PolicyRule, step: Step, action: Action) -> tuple[int, float]:
    stage = _STAGES.index(step.mismatch)
    if stage:
        return -stage, 0.0
    # Most rules fail by their type: a mistyped one is likely to be meant.
    return 0, -SequenceMatcher(None, rule.match_type, action.type, autojunk=False).quick_ratio()


def _seen(loaded: LoadedPolicy, step: Step, action: Action, now: float) -> RuleSeen:
    rule = loaded.policy.rules[step.rule]
    line = loaded.lines[step.rule] if loaded.lines else None
    match step.mismatch:
        case "type":
            return RuleSeen(rule, line, "type", rule.match_type, action.type)
        case "target":
            return RuleSeen(rule, line, "target", rule.match_target, action.target)
        case "agent":
            return RuleSeen(rule, line, "agent", rule.match_agent, action.agent_id)
        case _:
            seen = tuple(_conditions(rule.conditions, action.params, now))
            return RuleSeen(rule, line, conditions=seen)


def _conditions(
    conditions: Mapping[str, Any], params: Mapping[str, Any], now: float
) -> Iterator[ConditionSeen]:
    """Each condition alone; the two ends of a time window are one."""
    zone = {name: conditions[name] for name in ("timezone",) if name in conditions}
    moment = datetime.fromtimestamp(now, ZoneInfo(zone["timezone"]) if zone else UTC)
    shown = _redacted(params)
    window = {name: conditions[name] for name in _WINDOW if name in conditions}
    if window:
        clock = f"{moment:%H:%M} {zone.get('timezone', 'UTC')}"
        yield ConditionSeen(
            " ".join(window), " to ".join(window.values()), clock, _held(window | zone, params, now)
        )
    for name, wanted in conditions.items():
        if name == "weekdays":
            day = moment.isoweekday()
            yield ConditionSeen(name, wanted, day, _held({name: wanted} | zone, params, now))
        elif name not in (*_WINDOW, *zone):
            for parameter, value in wanted.items():
                held = _held({name: {parameter: value}}, params, now)
                yield ConditionSeen(f"{name}.{parameter}", value, shown.get(parameter), held)


def _held(conditions: Mapping[str, Any], params: Mapping[str, Any], now: float) -> bool | str:
    compiled = compile_conditions(conditions)
    return True if compiled is None else compiled(params, now, Work())


def _redacted(params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters as the audit would keep them: secrets are not shown here either."""
    text = Redaction().json(codec.dumps_foreign(dict(params)))
    redacted: dict[str, Any] = codec.loads_own(text)
    return redacted
