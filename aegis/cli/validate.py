"""`aegis validate`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable

import click

from aegis.errors import PolicyError, Problem
from aegis.server import load_policy_file
from aegis.server.app import problems_json

__all__ = ["print_problems", "validate"]


@click.command()
@click.argument("policy")
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="How to print what is found.",
)
def validate(policy: str, form: str) -> None:
    """Check POLICY: every problem with its line; exit code 1 when it would be refused."""
    problems: tuple[Problem, ...] = ()
    warnings: tuple[Problem, ...] = ()
    rules = 0
    try:
        loaded = load_policy_file(policy)
    except PolicyError as error:
        problems = error.problems
    else:
        warnings = loaded.warnings
        rules = len(loaded.policy.rules)
    if form == "json":
        found = {
            "file": policy,
            "valid": not problems,
            "rule_count": rules,
            "problems": problems_json(problems),
            "warnings": problems_json(warnings),
        }
        click.echo(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        print_problems(policy, problems)
        print_problems(policy, warnings, kind="warning: ")
        if not problems:
            click.echo(f"{policy}: valid, {rules} rules")
    sys.exit(1 if problems else 0)


def print_problems(
    policy: str, problems: Iterable[Problem], *, kind: str = "", err: bool = False
) -> None:
    """Print problems as compilers do: `file:line: message`."""
    for problem in problems:
        place = policy if problem.line is None else f"{policy}:{problem.line}"
        click.echo(f"{place}: {kind}{problem}", err=err)
