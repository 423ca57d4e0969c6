"""`aegis policy`: the versions of the policy, of a running server or in a database."""

from __future__ import annotations

import difflib
import http.client
import json
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import SplitResult, urlsplit

import click

from aegis.cli.parameters import FORMAT, TEXT, database_option, number_from
from aegis.cli.terminal import echo_json, paint
from aegis.config import keys_from
from aegis.errors import ConfigError, RequestError
from aegis.messages import quote

__all__ = ["policy"]

_PATIENCE_S = 60.0
_URL = click.option(
    "--url",
    type=TEXT,
    metavar="URL",
    envvar="AEGIS_URL",
    show_envvar=True,
    help="A running server, as in http://127.0.0.1:8000; AEGIS_ADMIN_KEY or AEGIS_API_KEY is its key.",
)
_DATABASE = database_option(
    "Without --url: the database; its servers notice what is changed there."
)


def _place(command: Callable[..., None]) -> Callable[..., None]:
    """The options that say whose versions they are."""
    return _URL(_DATABASE(command))


@click.group()
def policy() -> None:
    """List, show, compare and restore versions."""


@policy.command("list")
@click.option(
    "--limit",
    type=click.IntRange(1, 1_000),
    default=20,
    show_default=True,
    help="The newest so many.",
)
@FORMAT
@_place
def list_(limit: int, form: str, url: str | None, database: str) -> None:
    """List the versions, newest first; the first is in force."""
    with _versions(url, database) as versions:
        found = versions.page(limit)
    if form == "json":
        echo_json(found)
        return
    if not found:
        click.echo("no versions", err=True)
        return
    rows = [("VERSION", "CREATED", "ORIGIN", "KEY", "SHA256", "NOTE"), *map(_row, found)]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    for row in rows:
        padded = [text.ljust(width) for text, width in zip(row, widths, strict=False)]
        click.echo("  ".join([*padded, row[5]]).rstrip())


def _row(version: dict[str, Any]) -> tuple[str, ...]:
    note = "".join(char if char.isprintable() else " " for char in version["note"] or "")
    return (
        str(version["version"]),
        f"{version['created'][:19]}Z",
        version["origin"],
        version["key_name"] or "-",
        version["sha256"][:12],
        note,
    )


@policy.command("show")
@click.argument("version", type=number_from(1), required=False)
@FORMAT
@_place
def show(version: int | None, form: str, url: str | None, database: str) -> None:
    """Print the text of VERSION, or of the policy in force."""
    with _versions(url, database) as versions:
        found = versions.version(versions.newest() if version is None else version)
    if form == "json":
        echo_json(found)
    else:
        click.echo(found["source"], nl=not found["source"].endswith("\n"))


@policy.command("diff")
@click.argument("old", type=number_from(1))
@click.argument("new", type=number_from(1), required=False)
@_place
def diff(old: int, new: int | None, url: str | None, database: str) -> None:
    """Compare the texts of two versions.

    These are OLD and NEW, or OLD and the policy in force.
    """
    with _versions(url, database) as versions:
        texts = [
            versions.version(number) for number in (old, versions.newest() if new is None else new)
        ]
    before, after = (text["source"].splitlines() for text in texts)
    old_name, new_name = (f"version {text['version']}" for text in texts)
    colors = {"+": "green", "-": "red", "@": "cyan"}
    for line in difflib.unified_diff(before, after, old_name, new_name, lineterm=""):
        color = colors.get(line[:1])
        click.echo(paint(line, color) if color else line)


@policy.command("rollback")
@click.argument("version", type=number_from(1))
@click.option("--note", type=TEXT, help="What to say about it.")
@_place
def rollback(version: int, note: str | None, url: str | None, database: str) -> None:
    """Put VERSION into force again, as a new version."""
    with _versions(url, database, changes=True) as versions:
        number = versions.rollback(version, note)
    click.echo(f"version {number} is in force, with the text of version {version}")


@policy.command("reload")
@click.option(
    "--url",
    type=TEXT,
    metavar="URL",
    default="http://127.0.0.1:8000",
    envvar="AEGIS_URL",
    show_envvar=True,
    show_default=True,
    help="A running server; AEGIS_ADMIN_KEY or AEGIS_API_KEY is its key.",
)
def reload(url: str) -> None:
    """Let a running server load its policy file again."""
    answer = Remote(url).ask("POST", "/reload")
    click.echo(f"version {answer['version']} is in force, {answer['rule_count']} rules")
    for odd in answer["warnings"]:
        line = "" if odd["line"] is None else f"line {odd['line']}: "
        click.echo(f"{paint('warning:', 'yellow')} {line}{odd['message']}")


# --- whose versions ------------------------------------------------------------------------------


class _Versions(Protocol):
    """The versions of a policy, as the HTTP API writes them."""

    def page(self, limit: int) -> list[dict[str, Any]]: ...
    def newest(self) -> int: ...
    def version(self, number: int) -> dict[str, Any]: ...
    def rollback(self, number: int, note: str | None) -> int: ...


@contextmanager
def _versions(url: str | None, database: str, *, changes: bool = False) -> Iterator[_Versions]:
    if url is not None:
        yield Remote(url)
        return
    from aegis.audit.journal import Journal
    from aegis.policy.history import PolicyHistory
    from aegis.policy.rollout import PolicyVersions
    from aegis.store.database import Store

    if not Path(database).is_file():
        raise ConfigError(f"there is no database {quote(database)}; give --audit-db, or --url")
    with closing(Store(database, read_only=not changes)) as store:
        if not changes:
            yield _Stored(PolicyHistory(store, Journal(store)))
            return
        with closing(PolicyVersions(store, Journal(store))) as versions:
            yield _Stored(versions.history, versions)


class _Stored:
    """The versions in a database."""

    def __init__(self, history: Any, versions: Any = None) -> None:
        self._history = history
        self._versions = versions

    def page(self, limit: int) -> list[dict[str, Any]]:
        return [version.as_json() for version in self._history.page(limit=limit)]

    def newest(self) -> int:
        newest = self._history.newest()
        if newest is None:
            raise ConfigError("the database has no policy yet; start a server with one")
        return int(newest.version)

    def version(self, number: int) -> dict[str, Any]:
        found: dict[str, Any] = self._history.find(number).as_json()
        return found | {"source": self._history.source(number)}

    def rollback(self, number: int, note: str | None) -> int:
        return int(self._versions.rollback(number, note=note).snapshot.version)


class Remote:
    """The versions of a running server.

    Args:
        url: Where it is; a path in front of the API's own is kept.

    Raises:
        ConfigError: It is no address, or nobody answers there.
        RequestError: The server refuses.
    """

    def __init__(self, url: str) -> None:
        if "@" in url:  # not shown: what is before it may be a password
            raise ConfigError("the URL of a server has no user; AEGIS_ADMIN_KEY is its key")
        parts = _parts_of(url)
        if parts is None or parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"{quote(url)} is no server; write it as http://127.0.0.1:8000")
        self._url = url
        self._parts = parts

    def page(self, limit: int) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.ask("GET", f"/versions?limit={limit}")
        return found

    def newest(self) -> int:
        return int(self.page(1)[0]["version"])

    def version(self, number: int) -> dict[str, Any]:
        found: dict[str, Any] = self.ask("GET", f"/versions/{number}")
        return found

    def rollback(self, number: int, note: str | None) -> int:
        return int(self.ask("POST", "/rollback", {"version": number, "note": note})["version"])

    def ask(self, method: str, path: str, value: object = None) -> Any:
        """What the server answers to a request below `/api/v1/policy`."""
        kind = (
            http.client.HTTPSConnection
            if self._parts.scheme == "https"
            else http.client.HTTPConnection
        )
        headers = {"content-type": "application/json"}
        api_key, admin_key = keys_from()
        if (key := admin_key or api_key) is not None:
            headers["authorization"] = f"Bearer {key}"
        body = None if value is None else json.dumps(value).encode()
        try:
            connection = kind(self._parts.netloc, timeout=_PATIENCE_S)
            with closing(connection):
                connection.request(
                    method, f"{self._parts.path.rstrip('/')}/api/v1/policy{path}", body, headers
                )
                response = connection.getresponse()
                answer = json.loads(response.read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise ConfigError(f"no Aegis answers at {quote(self._url)}: {error}") from None
        if response.status == 200:
            return answer
        if not (isinstance(answer, dict) and answer.keys() >= {"error", "code"}):
            raise ConfigError(f"no Aegis answers at {quote(self._url)}: HTTP {response.status}")
        raise RequestError(str(answer["error"]), str(answer["code"]))


def _parts_of(url: str) -> SplitResult | None:
    """The parts of a URL; None: it is none."""
    try:
        parts = urlsplit(url if "//" in url else f"http://{url}")
        return None if parts.port == 0 else parts
    except ValueError:  # also of the port
        return None
