"""`aegis audit`."""

from __future__ import annotations

import csv
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from aegis.audit import MEMBERS, AuditFilter, AuditReader
from aegis.audit.archive import archive as archive_trail
from aegis.audit.imports import import_agent_aegis
from aegis.audit.query import AUDIT_PARAMETERS, filter_of
from aegis.audit.signing import is_signed_by
from aegis.audit.verify import Pin, exported_links, is_database, verify_export
from aegis.audit.verify import verify as verify_trail
from aegis.cli.terminal import FORMAT, database_option, echo_json, paint
from aegis.errors import ConfigError, InvalidQuery, InvalidTrail, StoreError, shown
from aegis.store import Store

__all__ = ["audit"]

_LOOK_AGAIN_S = 0.2
_SHOWN = 20
_COLORS = {"success": "green", "failed": "red", "blocked": "yellow", "interrupted": "red"}

_DATABASE = database_option("The database.")


def _filters(command: Callable[..., None]) -> Callable[..., None]:
    """The parameters of `GET /api/v1/audit`, as options."""
    for name in reversed(AUDIT_PARAMETERS):
        if name not in ("limit", "since_seq"):
            option = f"--{name.replace('_', '-')}"
            command = click.option(option, name, metavar="VALUE", help=_KEPT[name])(command)
    return command


_KEPT = {
    "session_id": "Of this session.",
    "action_type": "Of this type.",
    "risk_level": "Of this risk level.",
    "result_status": "With this outcome.",
    "agent_id": "By this agent.",
    "matched_rule": "Decided by this rule.",
    "operation": "Executed, only evaluated, or imported.",
    "since": "At or after this moment, in RFC 3339.",
    "until": "At or before it.",
    "after": "With a larger id.",
    "before": "With a smaller id.",
}


def _form(*forms: str) -> Callable[[Any], Any]:
    return click.option(
        "--format",
        "form",
        type=click.Choice(forms),
        default=forms[0],
        show_default=True,
        help="How to print it.",
    )


@contextmanager
def _reading(database: str) -> Iterator[AuditReader]:
    store = Store(database, read_only=True)
    reader = AuditReader(store)
    try:
        yield reader
    finally:
        reader.close()
        store.close()


def _filter(wanted: dict[str, str | None], **more: Any) -> AuditFilter:
    pairs = [*wanted.items(), *more.items()]
    try:
        return filter_of([(name, str(value)) for name, value in pairs if value is not None])
    except InvalidQuery as error:
        raise click.UsageError(str(error)) from None


@click.group()
def audit() -> None:
    """Read the audit, and see that it is whole.

    All but `archive` and `import` only read, also while servers write.
    """


@audit.command("list")
@_filters
@click.option("--limit", default=_SHOWN, show_default=True, help="The newest so many.")
@_form("table", "jsonl", "csv")
@_DATABASE
def list_(database: str, form: str, limit: int, **wanted: str | None) -> None:
    """Show the newest records that fit, oldest first."""
    with _reading(database) as reader:
        write = _writer(form)
        for page in reader.read(_filter(wanted, limit=limit)):
            write(page)


@audit.command("tail")
@_filters
@click.option("-n", "limit", default=_SHOWN, show_default=True, help="Begin with so many.")
@click.option("-f", "--follow", is_flag=True, help="Go on with each record and outcome to come.")
@_form("table", "jsonl")
@_DATABASE
def tail(database: str, form: str, limit: int, follow: bool, **wanted: str | None) -> None:
    """Show the newest records, and those that come.

    An action that takes its time comes twice: when it begins, and when it has ended.
    """
    with _reading(database) as reader:
        write = _writer(form)
        # Before they are read: what comes in between is shown twice rather than never.
        seq = reader.read_head()["id"]
        for page in reader.read(_filter(wanted, limit=limit)):
            write(page)
        while follow:
            for page in reader.read(_filter(wanted, since_seq=seq)):
                write(page)
                seq = page[-1]["seq"]
            sys.stdout.flush()
            time.sleep(_LOOK_AGAIN_S)


@audit.command("export")
@_filters
@_form("jsonl", "csv", "chain")
@click.option("--to", "path", metavar="FILE", help="A file to make. Default: standard output.")
@_DATABASE
def export(database: str, form: str, path: str | None, **wanted: str | None) -> None:
    """Write records as JSON lines, CSV, or a chain.

    The chain has each link's hash and canonical form, so that others can verify it, also by
    `aegis audit verify`; it takes no filters.
    """
    if form == "chain" and any(wanted.values()):
        raise click.UsageError("a chain of which links are left out cannot be verified; no filters")
    with _reading(database) as reader, _output(path) as file:
        if form == "chain":
            for line in exported_links(reader.store):
                file.buffer.write(line)
            return
        write = _writer(form, file)
        for page in reader.read(_filter(wanted)):
            write(page)


@audit.command("stats")
@FORMAT
@_DATABASE
def stats(database: str, form: str) -> None:
    """Count the records: by result, risk, action type, rule and agent."""
    with _reading(database) as reader:
        found = reader.read_stats()
    found["bytes"] = os.stat(database).st_size
    if form == "json":
        echo_json(found)
        return
    for name, value in found.items():
        if isinstance(value, dict):
            click.echo(f"{name.replace('_', ' ')}:")
            for said, count in value.items():
                click.echo(f"  {count:>10}  {said}")
        else:
            click.echo(f"{name.replace('_', ' ')}: {'none' if value is None else value}")


@audit.command("head")
@_DATABASE
def head(database: str) -> None:
    """Print the newest link, to keep elsewhere.

    `verify --head` knows by it what is missing.

    A server's `GET /api/v1/audit/head` gives the same, signed where it has a key.
    """
    with _reading(database) as reader:
        echo_json(reader.read_head())


@audit.command("verify")
@click.argument("file", type=click.Path())
@click.option(
    "--head",
    "pinned",
    metavar="HASH|FILE",
    help="A head that was kept: its hash, or a file with the JSON of `head`.",
)
@click.option(
    "--public-key",
    metavar="FILE",
    help="Whose signature that file must have: an Ed25519 public key in PEM or base64.",
)
@click.option("--from", "since", type=click.IntRange(1), help="The first link to look at.")
def verify(file: str, pinned: str | None, public_key: str | None, since: int | None) -> None:
    """See that an audit is as it was written.

    FILE is a database or an exported chain.

    Exit code 1 names the first link that was changed, removed, inserted or moved. Who can write
    the file can also make all of it anew: only a head that was kept elsewhere, or signed, shows
    that.
    """
    if public_key is not None and (pinned is None or _hash(pinned) is not None):
        raise click.UsageError("--public-key needs a signed head: give --head FILE")
    pin = None if pinned is None else _pin(pinned, public_key)
    if is_database(file):
        store = Store(file, read_only=True)
        try:
            with _progress(_links_of(store), "verifying") as tick:
                found = verify_trail(store, pin=pin, since=since, tick=tick)
        finally:
            store.close()
    else:
        if since is not None:
            raise click.UsageError("an exported chain is looked at from its beginning; no --from")
        with Path(file).open("rb") as lines:
            found = verify_export(lines, pin=pin)
    said = "nothing to verify" if not found.count else f"links {found.first} to {found.last}"
    if found.pinned is not None:
        is_in = 0 < found.pinned >= found.first
        said += ", with the pinned head" if is_in else f", after the pinned link {found.pinned}"
    click.echo(f"{paint('ok', 'green')}: {said}; the newest hash is {found.hash.hex()}")
    if found.first > 1:
        where = ", ".join(map(shown, found.archives)) or "what has them"
        click.echo(f"links 1 to {found.first - 1} are not among these; verify {where} as well")


@audit.command("archive")
@click.option("--before", required=True, metavar="TIME", help="As in `2026-01-31` or RFC 3339.")
@click.option("--to", "path", required=True, metavar="FILE", help="The file to make.")
@_DATABASE
def archive(database: str, before: str, path: str) -> None:
    """Move old records into a file of their own.

    These are the ones from before TIME; FILE goes on being verifiable.

    Servers may run meanwhile. What is moved is verified first and gone from the database then; the
    room that it took is used again.
    """
    if not os.path.exists(database):
        raise StoreError(f"there is no {shown(database)}")
    store = Store(database)
    try:
        with _progress(_links_of(store), "archiving") as tick:
            done = archive_trail(store, _moment_us(before), path, tick)
    finally:
        store.close()
    if done.last < done.first:
        click.echo(f"nothing is older than {before}")
    else:
        click.echo(f"moved links {done.first} to {done.last} to {path}")


@audit.command("backup")
@click.argument("file", type=click.Path())
@_DATABASE
def backup(database: str, file: str) -> None:
    """Copy the database as it is now to FILE, while servers write."""
    store = Store(database, read_only=True)
    try:
        store.copy_to(file, lambda _done, _of: None)
    finally:
        store.close()
    click.echo(f"copied {database} to {file}")


@audit.command("import")
@click.argument("file", type=click.Path())
@_DATABASE
def import_(database: str, file: str) -> None:
    """Append the records of FILE, an audit database of agent-aegis.

    Best before a server runs: nobody else can write meanwhile.
    """
    store = Store(database)
    try:
        count = import_agent_aegis(store, file)
    finally:
        store.close()
    click.echo(f"imported {count} records of {file} into {database}")


def _writer(form: str, file: Any = None) -> Callable[[list[dict[str, Any]]], None]:
    """What prints pages of records."""
    match form:
        case "jsonl":
            return lambda page: click.echo(
                "\n".join(json.dumps(record, ensure_ascii=False) for record in page), file=file
            )
        case "csv":
            rows = csv.DictWriter(file or sys.stdout, MEMBERS, lineterminator="\n")
            rows.writeheader()
            return rows.writerows
        case _:
            return _Table()


class _Table:
    """Records as lines for people."""

    _ROW = "{:>8}  {:<19}  {:<11}  {:<8}  {:<16}  {:<24}  {:<28}  {}"

    def __init__(self) -> None:
        click.echo(
            self._ROW.format("ID", "TIME", "RESULT", "RISK", "AGENT", "TYPE", "TARGET", "RULE")
        )

    def __call__(self, page: Iterable[dict[str, Any]]) -> None:
        for record in page:
            status = record["result_status"]
            line = self._ROW.format(
                record["id"],
                record["timestamp"][:19].replace("T", " "),
                "\0",
                record["risk_level"],
                _cut(record["agent_id"] or "-", 16),
                _cut(record["action_type"], 24),
                _cut(record["action_target"], 28),
                _cut(record["matched_rule"], 40),
            )
            painted = paint(status.ljust(11), _COLORS.get(status, "reset"))
            click.echo(line.replace("\0".ljust(11), painted).rstrip())


def _cut(text: str, most: int) -> str:
    """A text on one line of a terminal, and harmless to it."""
    if not text.isprintable():
        text = text.encode("unicode_escape").decode()
    return text if len(text) <= most else f"{text[: most - 1]}…"


@contextmanager
def _output(path: str | None) -> Iterator[Any]:
    if path is None:
        yield sys.stdout
        return
    try:
        with open(path, "x", encoding="utf-8", newline="") as file:
            yield file
    except FileExistsError:
        raise StoreError(f"{shown(path)} exists; give the name of a file to be made") from None
    except OSError as error:
        raise StoreError(f"cannot write {shown(path)}: {error.strerror}") from None


@contextmanager
def _progress(length: int, label: str) -> Iterator[Callable[[int], None]]:
    with click.progressbar(length=length, label=label, file=sys.stderr) as bar:
        yield lambda done: bar.update(max(0, done - bar.pos))


def _links_of(store: Store) -> int:
    return int(AuditReader(store).read_head()["count"])


def _hash(text: str) -> bytes | None:
    """The hash that a text is; None: it is none."""
    try:
        return bytes.fromhex(text) if len(text) == 64 else None
    except ValueError:
        return None


def _pin(text: str, public_key: str | None) -> Pin:
    if (hashed := _hash(text)) is not None:
        return Pin(hashed)
    try:
        kept = json.loads(Path(text).read_text(encoding="utf-8"))
        number = kept["id"]
        if type(number) is not int or number < 0:
            raise ValueError
        pin = Pin(bytes.fromhex(kept["hash"]), number)
    except OSError as error:
        raise ConfigError(f"cannot read the head {shown(text)}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"{shown(text)} is no head as `aegis audit head` prints it") from None
    if public_key is not None:
        try:
            key = Path(public_key).read_bytes()
        except OSError as error:
            raise ConfigError(f"cannot read {shown(public_key)}: {error.strerror}") from None
        if not is_signed_by(kept, key):
            raise InvalidTrail("has a head that this key did not sign", pin.number or 0)
    return pin


def _moment_us(text: str) -> int:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise click.UsageError(
            f"{shown(text)} is no time as in `2026-01-31` or `2026-01-31T18:00:00Z`"
        ) from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return int(moment.timestamp() * 1_000_000)
