"""`aegis keys`."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import click

from aegis.cli.terminal import FORMAT, echo_json
from aegis.errors import shown
from aegis.keys import Key, Role, add_key, change_keys, new_secret, read_keys, remove_key

__all__ = ["keys"]

_DAYS = re.compile(r"([1-9]\d{0,4})d")
_FILE = click.option(
    "--keys",
    "path",
    metavar="FILE",
    default="keys.yaml",
    envvar="AEGIS_KEYS",
    show_envvar=True,
    show_default=True,
    help="The keys file.",
)


def _moment(_ctx: click.Context, _param: click.Parameter, value: str | None) -> str:
    """`30d`, or a time of RFC 3339, as the latter; "" where there is none."""
    if value is None:
        return ""
    now = datetime.now(UTC).replace(microsecond=0)
    try:
        if (days := _DAYS.fullmatch(value)) is not None:
            moment = now + timedelta(days=int(days[1]))
        else:
            moment = datetime.fromisoformat(value)
            if moment.tzinfo is None:
                raise ValueError
            moment = moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise click.BadParameter(
            f"{shown(value)} is neither days as in `30d` nor a time as in `2027-01-31T00:00:00Z`"
        ) from None
    if moment <= now:
        raise click.BadParameter(f"{shown(value)} is over already")
    return moment.isoformat().replace("+00:00", "Z")


@click.group()
def keys() -> None:
    """Make, list and revoke the keys that callers need.

    The file holds digests of keys, not the keys; `aegis serve --keys FILE` reads it again within a
    second of each change.
    """


@keys.command("new")
@click.argument("name")
@click.option(
    "--role",
    type=click.Choice([role.value for role in Role]),
    required=True,
    help="agent: evaluate and execute; auditor: read the audit and the policy; operator: read, and"
    " change the policy; admin: everything.",
)
@click.option(
    "--agents",
    metavar="PATTERN",
    multiple=True,
    help="Agents that the key may speak for, as in `crm-*`; can be repeated. Default: any.",
)
@click.option(
    "--expires",
    metavar="30d|TIME",
    callback=_moment,
    help="When it ends to be a key. Default: never.",
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
    click.echo(secret)
    click.echo(f"added {shown(name)} to {path}; the line above is the key, keep it safe", err=True)


@keys.command("list")
@FORMAT
@_FILE
def list_(form: str, path: str) -> None:
    """List the keys: name, role, agents, end."""
    found = [_described(key) for key in read_keys(path)]
    if form == "json":
        echo_json(found)
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
        expires = datetime.fromtimestamp(key.expires_s, UTC).isoformat().replace("+00:00", "Z")
    return {
        "name": key.name,
        "role": key.role,
        "agents": list(key.agents),
        "expires": expires,
        "expired": key.is_expired(time.time()),
        "sha256": key.digest.hex(),
    }


@keys.command("revoke")
@click.argument("name")
@_FILE
def revoke(name: str, path: str) -> None:
    """Take the key NAME away.

    Servers refuse it within a second.
    """
    change_keys(path, lambda source: remove_key(source, path, name))
    click.echo(f"revoked {shown(name)} in {path}")
