"""`aegis audit`."""

from __future__ import annotations

import os
import select
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import click

from aegis import timestamps
from aegis.audit import AuditFilter, AuditReader
from aegis.audit.agent_aegis import import_agent_aegis
from aegis.audit.archive import archive as archive_trail
from aegis.audit.chain import anchor, newest_entry
from aegis.audit.export import exported_entries
from aegis.audit.filters import AUDIT_PARAMETERS, filter_of
from aegis.audit.verify import Verified, is_database, verify_export
from aegis.audit.verify import verify as verify_trail
from aegis.cli.heads import as_hash, read_pin
from aegis.cli.parameters import (
    DASH,
    FILE,
    FILE_OR_DASH,
    FORMAT,
    TEXT,
    TIME,
    database_option,
    number_from,
)
from aegis.cli.records import Page, record_writer
from aegis.cli.terminal import echo_json, paint, printable
from aegis.errors import InvalidQuery, StoreError
from aegis.host.files import replacing
from aegis.messages import quote
from aegis.store.database import Store

__all__ = ["audit"]

_LOOK_AGAIN_S = 0.2
_MAX_FIRST_LINE_BYTES = 64 * 1024
_SHOWN = 20

_DATABASE = database_option("The database.")
_Wanted = dict[str, str | int | None]
"""The filters' options: texts, and times."""


def _filters(command: Callable[..., None]) -> Callable[..., None]:
    """The parameters of `GET /api/v1/audit`, as options."""
    for name in reversed(AUDIT_PARAMETERS):
        if name not in ("limit", "since_seq"):
            option = f"--{name.replace('_', '-')}"
            is_time = name in ("since", "until")
            command = click.option(
                option,
                name,
                type=TIME if is_time else TEXT,
                metavar="TIME" if is_time else "VALUE",
                callback=_refuse_empty,
                help=_KEPT[name],
            )(command)
    return command


def _refuse_empty(_ctx: click.Context, _param: click.Parameter, value: object) -> object:
    """An empty value asks for any over HTTP; here it is a variable that was not set."""
    if value == "":
        raise click.BadParameter("it is empty; leave the option out for any")
    return value


_KEPT = {
    "session_id": "Of this session.",
    "action_type": "Of this type.",
    "risk_level": "Of this risk level.",
    "result_status": "With this outcome.",
    "agent_id": "By this agent.",
    "matched_rule": "Decided by this rule.",
    "operation": "Executed, only evaluated, or imported.",
    "since": "At or after this time.",
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


def _filter(wanted: _Wanted, **more: int) -> AuditFilter:
    pairs = [(name, str(value)) for name, value in more.items()]
    for name, value in wanted.items():
        if value is not None:
            pairs.append(
                (name, value if isinstance(value, str) else timestamps.timestamp_text(value))
            )
    try:
        return filter_of(pairs)
    except InvalidQuery as error:
        raise click.UsageError(str(error)) from None


def _print_pages(pages: Iterator[Page], form: str) -> None:
    write, count = record_writer(form), 0
    for page in pages:
        write(page)
        count += len(page)
    if not count and form == "table":
        click.echo("no records", err=True)


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
def list_(database: str, form: str, limit: int, **wanted: str | int | None) -> None:
    """Show the newest records that fit, oldest first."""
    with _reading(database) as reader:
        _print_pages(reader.read(_filter(wanted, limit=limit)), form)


@audit.command("tail")
@_filters
@click.option("-n", "limit", default=_SHOWN, show_default=True, help="Begin with so many.")
@click.option("-f", "--follow", is_flag=True, help="Go on with each record and outcome to come.")
@_form("table", "jsonl")
@_DATABASE
def tail(database: str, form: str, limit: int, follow: bool, **wanted: str | int | None) -> None:
    """Show the newest records, and those that come.

    An action that takes its time comes twice: when it begins, and when it has ended.
    """
    with _reading(database) as reader:
        if not follow:
            _print_pages(reader.read(_filter(wanted, limit=limit)), form)
            return
        write = record_writer(form)
        # Before they are read: what comes in between is shown twice rather than never.
        seq = reader.read_head()["id"]
        for page in reader.read(_filter(wanted, limit=limit)):
            write(page)
        while not _is_cut_off():
            for page in reader.read(_filter(wanted, since_seq=seq)):
                write(page)
                seq = page[-1]["seq"]
            sys.stdout.flush()
            time.sleep(_LOOK_AGAIN_S)
        raise BrokenPipeError


def _is_cut_off() -> bool:
    """Whether nobody reads standard output any more."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


@audit.command("export")
@_filters
@_form("jsonl", "csv", "chain")
@click.option(
    "--to",
    "path",
    type=FILE_OR_DASH,
    default=DASH,
    metavar="FILE",
    help="A file to make. Default: standard output.",
)
@_DATABASE
def export(database: str, form: str, path: str, **wanted: str | int | None) -> None:
    """Write records as JSON lines, CSV, or a chain.

    The chain has each entry's hash and canonical form, so that others can verify it, also by
    `aegis audit verify`; it takes no filters.
    """
    if form == "chain" and any(wanted.values()):
        raise click.UsageError(
            "a chain of which entries are left out cannot be verified; no filters"
        )
    wanted_records = _filter(wanted)
    # A bar between the lines of an export helps nobody.
    is_hidden = path == DASH and sys.stdout.isatty()
    with (
        _reading(database) as reader,
        _output(path, like=database) as file,
        _progress("exporting", is_hidden=is_hidden) as tick,
    ):
        archived, newest = _ends_of(reader.store)
        count = newest - archived
        if form == "chain":
            for done, line in enumerate(exported_entries(reader.store)):
                file.buffer.write(line)
                tick(done, count)
            return
        write = record_writer(form, file)
        for page in reader.read(wanted_records):
            write(page)
            tick(page[-1]["id"] - archived, count)


def _ends_of(store: Store) -> tuple[int, int]:
    """The number before the first entry that is here, and that of the last one."""
    with store.reading() as connection:
        return anchor(connection)[0], newest_entry(connection)[0]


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
        if isinstance(value, dict) and value:
            click.echo(f"{name.replace('_', ' ')}:")
            for said, count in value.items():
                click.echo(f"  {count:>10}  {printable(said)}")
        else:
            click.echo(
                f"{name.replace('_', ' ')}: {'none' if value is None or value == {} else value}"
            )


@audit.command("head")
@_DATABASE
def head(database: str) -> None:
    """Print the newest entry, to keep elsewhere.

    `verify --head` knows by it what is missing.

    A server's `GET /api/v1/audit/head` gives the same, signed where it has a key.
    """
    with _reading(database) as reader:
        echo_json(reader.read_head())


@audit.command("verify")
@click.argument("file", type=FILE_OR_DASH)
@click.option(
    "--head",
    "pinned",
    type=FILE,
    metavar="HASH|FILE",
    help="A head that was kept: its hash, or a file with the JSON of `head`.",
)
@click.option(
    "--public-key",
    type=FILE,
    metavar="FILE",
    help="Whose signature that file must have: an Ed25519 public key in PEM or base64.",
)
@click.option("--from", "since", type=number_from(1), help="The first entry to look at.")
def verify(file: str, pinned: str | None, public_key: str | None, since: int | None) -> None:
    """See that an audit is as it was written.

    FILE is a database or an exported chain, or `-`: a chain on standard input.

    Exit code 1 names the first entry that was changed, removed, inserted or moved, or what else of
    the file is not as Aegis wrote it: indexes, tables, policy versions, archives beside it. Who can
    write the file can also make all of it anew: only a head that was kept elsewhere, or signed,
    shows that.
    """
    if public_key is not None and (pinned is None or as_hash(pinned) is not None):
        raise click.UsageError("--public-key needs a signed head: give --head FILE")
    pin = None if pinned is None else read_pin(pinned, public_key)
    if file != DASH and is_database(file):
        store = Store(file, read_only=True)
        try:
            archived, newest = _ends_of(store)
            count = newest - (archived if since is None else max(archived, since - 1))
            with _progress("verifying") as tick:
                found = verify_trail(
                    store, pin=pin, since=since, tick=lambda done: tick(done, count)
                )
        finally:
            store.close()
    else:
        if since is not None:
            raise click.UsageError("an exported chain is looked at from its beginning; no --from")
        with sys.stdin.buffer if file == DASH else Path(file).open("rb") as lines:
            # Its first line is short; what is none may have no end of line at all.
            first = lines.readline(_MAX_FIRST_LINE_BYTES)
            found = verify_export(chain([first], lines), pin=pin)
    said = "nothing to verify" if not found.count else f"entries {found.first} to {found.last}"
    if found.pinned is not None:
        is_in = found.pinned >= found.first
        said += ", with the pinned head" if is_in else f", after the pinned entry {found.pinned}"
    click.echo(f"{paint('ok', 'green')}: {said}; the newest hash is {found.hash.hex()}")
    for kind, count in found.newer.items():
        click.echo(
            f"{count} of the newer kind {quote(kind)}: a newer Aegis wrote them; their hashes are"
            " right, what they say was not judged"
        )
    for line in _elsewhere(found):
        click.echo(line)


def _elsewhere(found: Verified) -> Iterator[str]:
    """What is to be looked at besides a file that was verified."""
    if found.is_archive:
        yield (
            "this is an archive: `aegis audit verify` of the database that it was taken from says"
            f" whether it must end with entry {found.last} and the hash {found.hash.hex()}"
        )
    if found.first > 1:
        yield f"entries up to {found.first - 1} are not among these; verify what has them as well"
    for archive in found.archives:
        is_here = "it does" if archive.is_here else archive.why_not or "it is not beside this file"
        yield (
            f"archive {quote(archive.file)} must end with entry {archive.last} and the hash"
            f" {archive.hash.hex()}: {is_here}"
        )


@audit.command("archive")
@click.option("--before", "before_us", type=TIME, required=True, help="Older than this time.")
@click.option("--to", "path", type=FILE, required=True, metavar="FILE", help="The file to make.")
@_DATABASE
def archive(database: str, before_us: int, path: str) -> None:
    """Move old records into a file of their own.

    These are the ones from before TIME; FILE goes on being verifiable.

    Servers may run meanwhile. What is moved is verified first and gone from the database then; the
    room that it took is used again.
    """
    if not os.path.exists(database):
        raise StoreError(f"there is no {quote(database)}")
    store = Store(database)
    try:
        with _progress("archiving") as tick:
            done = archive_trail(store, before_us, path, tick)
    finally:
        store.close()
    if done.last >= done.first:
        click.echo(f"moved entries {done.first} to {done.last} to {path}")
    elif done.kept_by is None:
        click.echo(f"nothing is older than {timestamps.timestamp_text(before_us)}")
    if done.kept_by is not None:
        click.echo(f"entries from {done.last + 1} on stay, though some are older: {done.kept_by}")


@audit.command("backup")
@click.argument("file", type=FILE)
@_DATABASE
def backup(database: str, file: str) -> None:
    """Copy the database as it is now to FILE, while servers write."""
    store = Store(database, read_only=True)
    try:
        with _progress("copying") as tick:
            store.copy_to(file, tick)
    finally:
        store.close()
    click.echo(f"copied {database} to {file}")


@audit.command("import")
@click.argument("file", type=FILE)
@_DATABASE
def import_(database: str, file: str) -> None:
    """Append the records of FILE, an audit database of agent-aegis.

    Best before a server runs: nobody else can write meanwhile. A row that cannot be a record is left
    out and told; the exit code is 1 then.
    """
    store = Store(database)
    try:
        with _progress("importing") as tick:
            done = import_agent_aegis(store, file, tick)
    finally:
        store.close()
    for problem in done.problems:
        click.echo(f"{paint(file, 'cyan')}: {paint('left out:', 'yellow')} {problem}", err=True)
    more = done.left_out - len(done.problems)
    if more:
        click.echo(f"{paint(file, 'cyan')}: {paint('left out:', 'yellow')} {more} more", err=True)
    click.echo(f"imported {done.count} records of {file} into {database}")
    sys.exit(1 if done.left_out else 0)


@contextmanager
def _output(path: str, *, like: str) -> Iterator[Any]:
    if path == DASH:
        yield sys.stdout
        return
    if os.path.lexists(path):
        raise StoreError(f"{quote(path)} exists; give the name of a file to be made")
    try:
        with (
            replacing(path, like=like) as name,
            open(name, "w", encoding="utf-8", newline="") as file,
        ):
            yield file
    except OSError as error:
        raise StoreError(f"cannot write {quote(path)}: {error.strerror}") from None


@contextmanager
def _progress(
    label: str, length: int = 1, *, is_hidden: bool = False
) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error, if that is a terminal; it is full when all is done.

    Args:
        label: What goes on.
        length: How many steps there are, as long as `tick` is not called.
        is_hidden: Whether to show none on a terminal either.

    Yields:
        `tick`, which is given how many steps are done, and how many there are.
    """
    is_hidden = is_hidden or not sys.stderr.isatty()
    with click.progressbar(length=length, label=label, file=sys.stderr, hidden=is_hidden) as bar:

        def tick(done: int, of: int) -> None:
            bar.length = of
            bar.update(max(0, done - bar.pos))

        yield tick
        tick(length := bar.length or 0, length)
