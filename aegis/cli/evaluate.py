"""`aegis evaluate`."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from aegis.cli.parameters import FILE_OR_DASH, FORMAT, TEXT, TIME_AHEAD
from aegis.cli.policies import load_policy, name_of
from aegis.cli.terminal import echo_json, paint, print_problems
from aegis.errors import InvalidBody, PolicyError
from aegis.messages import quote

if TYPE_CHECKING:
    from aegis.policy.explain import Explanation, RuleSeen
    from aegis_core import Action

__all__ = ["evaluate"]

_COLORS = {"auto": "green", "approve": "yellow", "block": "red"}


@click.command()
@click.argument("policy", type=FILE_OR_DASH)
@click.option(
    "--type",
    "action_type",
    type=TEXT,
    required=True,
    help="The action's type, as in `delete`.",
)
@click.option(
    "--target", type=TEXT, default="", help="What it is done to, as in `prod-db`. Default: none."
)
@click.option(
    "--params", type=TEXT, metavar="JSON", help="Its parameters, a JSON object. Default: none."
)
@click.option("--agent", type=TEXT, default="", help="The agent that wants it. Default: none.")
@click.option("--at", "at_us", type=TIME_AHEAD, help="When. Default: now.")
@click.option("--explain", "explained", is_flag=True, help="Say which rules decided, and why.")
@FORMAT
def evaluate(
    policy: str,
    action_type: str,
    target: str,
    params: str | None,
    agent: str,
    at_us: int | None,
    explained: bool,
    form: str,
) -> None:
    """Decide about one action by POLICY, without a server.

    POLICY is a file, or `-` for standard input. The exit code is 0 where the action is allowed and 1 where it is blocked.
    """
    from aegis.policy.explain import explain

    name = name_of(policy)
    try:
        loaded = load_policy(policy)
    except PolicyError as error:
        print_problems(name, error.problems, err=True)
        sys.exit(2)
    action = _action(action_type, target, params, agent)
    now_s = time.time() if at_us is None else at_us / 1_000_000
    explanation = explain(loaded, action, now_s)
    decision = explanation.decision
    if form == "json":
        answer: dict[str, Any] = {
            "action_type": action.type,
            "target": action.target,
            "risk_level": decision.risk_level.name,
            "approval": decision.approval.value,
            "is_allowed": decision.is_allowed,
            "matched_rule": decision.matched_rule,
        }
        if decision.error is not None:
            answer["error"] = decision.error
        if explained:
            answer["explanation"] = _as_json(explanation, name)
        echo_json(answer)
    else:
        word = paint(decision.approval.value, _COLORS[decision.approval.value], bold=True)
        click.echo(f"{word}  {decision.risk_level.name}  by {quote(decision.matched_rule)}")
        if decision.error is not None:
            click.echo(f"  cannot be judged: {decision.error}")
        if explained:
            for line in _as_text(explanation, name):
                click.echo(line)
    sys.exit(0 if decision.is_allowed else 1)


def _action(action_type: str, target: str, params: str | None, agent: str) -> Action:
    """The action of the options, checked as that of a request is."""
    from aegis import codec, wire
    from aegis.config import Settings

    item: dict[str, Any] = {"action_type": action_type, "target": target, "agent_id": agent}
    try:
        if params is not None:
            item["params"] = codec.loads(params.encode(), Settings().max_nesting)
        return wire.action(item)
    except InvalidBody as error:
        said = str(error).replace("the body is", "--params is")
        raise click.UsageError(said) from None


def _place(seen: RuleSeen, policy: str) -> str:
    return policy if seen.line is None else f"{policy}:{seen.line}"


def _as_text(explanation: Explanation, policy: str) -> Iterator[str]:
    decider = explanation.decider
    if decider is None:
        yield f"  no rule matches, so the defaults of {policy} decide"
    else:
        rule = decider.rule
        yield f"  {paint(_place(decider, policy), 'cyan')}: the first rule that matches"
        patterns = (
            ("type", rule.match_type),
            ("target", rule.match_target),
            ("agent", rule.match_agent),
        )
        yield "    " + ", ".join(f"{name} {quote(pattern)}" for name, pattern in patterns)
        yield from _conditions(decider)
    if explanation.nearest:
        yield "  nearest rules before it that do not match:"
    for seen in explanation.nearest:
        where = f"    {paint(_place(seen, policy), 'cyan')}: {quote(seen.rule.name)}"
        if seen.mismatch is not None:
            yield f"{where}: {seen.mismatch} {quote(seen.pattern)} does not match {quote(seen.value)}"
        else:
            yield f"{where}: its patterns match, its conditions do not hold"
            yield from _conditions(seen, "  ")
    more = explanation.passed_over - len(explanation.nearest)
    if more:
        yield f"    and {more} more"


def _conditions(seen: RuleSeen, indent: str = "") -> Iterator[str]:
    for condition in seen.conditions:
        found = "missing" if condition.seen is None else quote(condition.seen)
        match condition.held:
            case True:
                verdict = "holds"
            case False:
                verdict = "does not hold"
            case reason:
                verdict = f"cannot be judged: {reason}"
        yield f"    {indent}{condition.name} {quote(condition.wanted)}: {found}, {verdict}"


def _as_json(explanation: Explanation, policy: str) -> dict[str, Any]:
    return {
        "file": policy,
        "decider": None if explanation.decider is None else _rule_json(explanation.decider),
        "nearest": [_rule_json(seen) for seen in explanation.nearest],
        "passed_over": explanation.passed_over,
    }


def _rule_json(seen: RuleSeen) -> dict[str, Any]:
    return {
        "rule": seen.rule.name,
        "line": seen.line,
        "mismatch": seen.mismatch
        and {"of": seen.mismatch, "pattern": seen.pattern, "value": seen.value},
        "conditions": [
            {
                "name": condition.name,
                "wanted": condition.wanted,
                "seen": condition.seen,
                "held": condition.held if isinstance(condition.held, bool) else None,
                "error": None if isinstance(condition.held, bool) else condition.held,
            }
            for condition in seen.conditions
        ],
    }
