"""`aegis keys`."""

from __future__ import annotations

import sys
import time
from typing import Any

import click

from aegis import timestamps
from aegis.auth.keys import Key, new_secret
from aegis.auth.keys_file import add_key, change_keys, read_keys, remove_key
from aegis.auth.roles import Role
from aegis.cli.parameters import FILE, FORMAT, TEXT, TIME_AHEAD
from aegis.cli.terminal import echo_json
from aegis.messages import quote

__all__ = ["keys"]

_FILE = click.option(
    "--keys",
    "path",
    type=FILE,
    metavar="FILE",
    default="keys.yaml",
    envvar="AEGIS_KEYS",
    show_envvar=True,
    show_default=True,
    help="The keys file.",
)


def _to_come(_ctx: click.Context, _param: click.Parameter, at_us: int | None) -> str:
    """A time to come, by whole seconds; "" if there is none."""
    if at_us is None:
        return ""
    whole_us = at_us // 1_000_000 * 1_000_000
    text = timestamps.timestamp_text(whole_us)
    if whole_us <= time.time_ns() // 1000:
        raise click.BadParameter(f"{quote(text)} is over already")
    return text


@click.group()
def keys() -> None:
    """Make, list and revoke the keys that callers need.

    The file holds digests of keys, not the keys; `aegis serve --keys FILE` reads it again within a
    second of each change.
    """


@keys.command("new")
@click.argument("name", type=TEXT)
@click.option(
    "--role",
    type=click.Choice([role.value for role in Role]),
    required=True,
    help="agent: evaluate and execute; auditor: read the audit and the policy; operator: read, and"
    " change the policy; admin: everything.",
)
@click.option(
    "--agents",
    type=TEXT,
    metavar="PATTERN",
    multiple=True,
    help="Agents that the key may speak for, as in `crm-*`; can be repeated. Default: any.",
)
@click.option(
    "--expires",
    type=TIME_AHEAD,
    callback=_to_come,
    help="When it stops being a key, as in `30d` or `2027-01-31`. Default: never.",
)
@_FILE
def new(name: str, role: str, agents: tuple[str, ...], expires: str, path: str) -> None:
    """Make a key called NAME and print it.

    It is shown this once and kept nowhere: the file has its SHA-256.
    """
    secret = new_secret()
    change_keys(
        path,
        lambda source: add_key(source, path, name, Role(role), secret, agents, expires),
    )
    try:
        click.echo(secret)
        sys.stdout.flush()
    except OSError:  # nobody has seen the key
        change_keys(path, lambda source: remove_key(source, path, name))
        raise
    click.echo(f"added {quote(name)} to {path}; the line above is the key, keep it safe", err=True)


@keys.command("list")
@FORMAT
@_FILE
def list_(form: str, path: str) -> None:
    """List the keys: name, role, agents, end."""
    found = [_described(key) for key in read_keys(path)]
    if form == "json":
        echo_json(found)
        return
    if not found:
        click.echo("no keys", err=True)
        return
    rows = [("NAME", "ROLE", "AGENTS", "EXPIRES")]
    for key in found:
        end = f"{key['expires'] or 'never'}{' (expired)' if key['expired'] else ''}"
        rows.append((key["name"], key["role"], " ".join(key["agents"]) or "any", end))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in rows:
        padded = [text.ljust(width) for text, width in zip(row, widths, strict=False)]
        click.echo("  ".join([*padded, row[3]]))


def _described(key: Key) -> dict[str, Any]:
    expires = None
    if key.expires_s is not None:
        expires = timestamps.timestamp_text(round(key.expires_s * 1_000_000))
    return {
        "name": key.name,
        "role": key.role,
        "agents": list(key.agents),
        "expires": expires,
        "expired": key.is_expired(time.time()),
        "sha256": key.digest.hex(),
    }


@keys.command("revoke")
@click.argument("name", type=TEXT)
@_FILE
def revoke(name: str, path: str) -> None:
    """Take the key NAME away.

    Servers refuse it within a second.
    """
    change_keys(path, lambda source: remove_key(source, path, name))
    click.echo(f"revoked {quote(name)} in {path}")
