"""`aegis init`."""

from __future__ import annotations

import os
from pathlib import Path

import click

from aegis.cli.parameters import DASH, FILE_OR_DASH
from aegis.errors import ConfigError
from aegis.messages import quote

__all__ = ["init"]

STARTER = """\
# What agents may do. The first rule that matches decides; where none does, `defaults` do.
# Check it with `aegis validate`, try it with `aegis evaluate --explain`.
version: "1"

# Whatever no rule speaks of is blocked: what you forget cannot happen.
defaults:
  risk_level: medium     # low, medium, high or critical
  approval: block        # auto: just do it; approve: ask first; block: never

rules:
  # Blocks stand first, so that nothing below can allow what they forbid.
  # Patterns are shell globs over the whole text: `*`, `?`, `[abc]`, `[!abc]`.
  # These three keep targets that are paths in their place.
  - name: no_path_tricks
    match: {target: "*..*"}
    risk_level: high
    approval: block

  - name: no_absolute_paths
    match: {target: "[/~\\\\]*"}
    risk_level: high
    approval: block

  - name: no_control_characters
    match: {target: "*[\\0-\\x1f\\x7f]*"}
    risk_level: high
    approval: block

  - name: no_deletes_in_production
    match: {type: "delete*", target: "prod-*"}
    risk_level: critical
    approval: block

  # What allows names types in full: `read*` would allow `read_and_delete` too.
  - name: reads
    match: {type: "read"}
    risk_level: low
    approval: auto

  # Only the agents of one team, and only in office hours.
  - name: crm_updates
    match: {type: "update", target: "crm/*", agent: "sales-*"}
    conditions:
      weekdays: [1, 2, 3, 4, 5]      # 1 is Monday
      time_after: "08:00"
      time_before: "18:00"
      timezone: Europe/Berlin        # without it: UTC
    risk_level: medium
    approval: auto

  # A condition on parameters holds only if the parameter is there and fits: a payment without an
  # amount falls through to the defaults. Bound numbers on both sides: -5 is less than 100, too.
  - name: small_payments
    match: {type: "pay"}
    conditions:
      param_lte: {amount: 100}
      param_eq: {currency: EUR}
      param_gt: {amount: 0}
    risk_level: high
    approval: approve
"""


@click.command()
@click.argument("path", default="policy.yaml", type=FILE_OR_DASH)
def init(path: str) -> None:
    """Write a commented starter policy.

    It goes to PATH, policy.yaml unless you say otherwise, or to standard output for `-`; what is
    there is never overwritten.
    """
    if path == DASH:
        click.echo(STARTER, nl=False)
        return
    try:
        with Path(path).open("x", encoding="utf-8") as file:
            try:
                file.write(STARTER)
                file.flush()
            except BaseException:
                os.unlink(path)  # a policy that is cut off allows what its end would block
                raise
    except FileExistsError:
        raise ConfigError(f"{quote(path)} is there already; name another file") from None
    except OSError as error:
        raise ConfigError(f"cannot write {quote(path)}: {error.strerror}") from None
    click.echo(f"wrote {path}. Next:")
    click.echo(f"  aegis validate {path}")
    click.echo(f"  aegis evaluate {path} --type read --target crm --explain")
    click.echo(f"  aegis serve {path}")
