"""`aegis validate`."""

from __future__ import annotations

import sys

import click

from aegis.cli.parameters import FILE_OR_DASH, FORMAT
from aegis.cli.policies import load_policy, name_of
from aegis.cli.terminal import echo_json, paint, print_problems
from aegis.errors import PolicyError, Problem
from aegis.server.http.refusals import problems_json

__all__ = ["validate"]


@click.command()
@click.argument("policy", type=FILE_OR_DASH)
@FORMAT
@click.option("--strict", is_flag=True, help="Take warnings for errors.")
def validate(policy: str, form: str, strict: bool) -> None:
    """Check a policy: every problem with its line.

    POLICY is a file, or `-` for standard input. The exit code is 1 if it would be refused. Warnings do
    no harm, unless --strict is given.
    """
    name = name_of(policy)
    problems: tuple[Problem, ...] = ()
    warnings: tuple[Problem, ...] = ()
    rules = 0
    try:
        loaded = load_policy(policy)
    except PolicyError as error:
        problems = error.problems
    else:
        warnings = loaded.warnings
        rules = len(loaded.policy.rules)
        if strict:
            problems, warnings = warnings, ()
    if form == "json":
        found = {
            "file": name,
            "valid": not problems,
            "rule_count": rules,
            "problems": problems_json(problems),
            "warnings": problems_json(warnings),
        }
        echo_json(found)
    else:
        print_problems(name, problems)
        print_problems(name, warnings, warning=True)
        if not problems:
            click.echo(f"{name}: {paint('valid', 'green')}, {rules} rules")
    sys.exit(1 if problems else 0)
