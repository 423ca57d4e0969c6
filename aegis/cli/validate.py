"""`aegis validate`."""

from __future__ import annotations

import sys

import click

from aegis.cli.terminal import FORMAT, echo_json, paint, print_problems
from aegis.errors import PolicyError, Problem
from aegis.server import load_policy_file
from aegis.server.kernel import problems_json

__all__ = ["validate"]


@click.command()
@click.argument("policy", type=click.Path())
@FORMAT
@click.option("--strict", is_flag=True, help="Take warnings for errors.")
def validate(policy: str, form: str, strict: bool) -> None:
    """Check a policy: every problem with its line.

    The exit code is 1 if POLICY would be refused. Warnings do no harm, unless --strict is given.
    """
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
        if strict:
            problems, warnings = warnings, ()
    if form == "json":
        found = {
            "file": policy,
            "valid": not problems,
            "rule_count": rules,
            "problems": problems_json(problems),
            "warnings": problems_json(warnings),
        }
        echo_json(found)
    else:
        print_problems(policy, problems)
        print_problems(policy, warnings, warning=True)
        if not problems:
            click.echo(f"{policy}: {paint('valid', 'green')}, {rules} rules")
    sys.exit(1 if problems else 0)
