"""The command line."""

from __future__ import annotations

import io
import logging
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib import import_module
from typing import Any, NoReturn

import click

from aegis._version import __version__

__all__ = ["main"]


class _Commands(Mapping[str, click.Command]):
    """The commands, in the order in which they are needed.

    Each is in a module of its name, imported when it is called: `aegis --version` needs none.
    """

    _NAMES = (
        "init", "validate", "evaluate", "serve", "policy", "audit", "restore", "keys", "bench",
        "completion",
    )  # fmt: skip

    def __getitem__(self, name: str) -> click.Command:
        if name not in self._NAMES:
            raise KeyError(name)
        command: click.Command = getattr(import_module(f"aegis.cli.{name}"), name)
        return command

    def __iter__(self) -> Iterator[str]:
        return iter(self._NAMES)

    def __len__(self) -> int:
        return len(self._NAMES)


class _Group(click.Group):
    """Ends with one clear line and the error's exit code if a command fails on purpose.

    What a shell does on purpose, Ctrl-C or a pipe that nobody reads on, ends it without a word and
    with the exit code that the shell itself gives: 128 and the signal's number.
    """

    def main(self, *args: Any, **extra: Any) -> Any:
        """As every command, but nothing that could not be written counts as done."""
        if not sys.stdout:  # closed: a file that is opened now would take its place
            _fail("standard output is closed; let it lead somewhere, as to /dev/null")
        if not sys.stderr:  # closed: what is said there is for nobody
            _open_standard_error()
        _write_utf8()
        try:
            try:
                return super().main(*args, **extra)
            finally:
                sys.stdout.flush()
        except OSError as error:
            with suppress(OSError, ValueError):  # Python flushes once more at its end
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            from aegis.messages import quote

            # What a command opens itself has a name.
            place = "write standard output"
            if error.filename is not None:
                place = f"use {quote(str(error.filename))}"
            _fail(f"cannot {place}: {error.strerror or error}")

    def invoke(self, ctx: click.Context) -> object:
        try:
            return self._invoke(ctx)
        except KeyboardInterrupt:  # also while modules are imported
            sys.exit(128 + signal.SIGINT)
        except BrokenPipeError:
            # Python flushes once more at its end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(128 + signal.SIGPIPE)

    def _invoke(self, ctx: click.Context) -> object:
        from aegis.cli.terminal import paint, wants_no_color
        from aegis.errors import AegisError, Defect

        if wants_no_color():
            ctx.color = False
        try:
            try:
                return super().invoke(ctx)
            finally:
                sys.stdout.flush()
        except AegisError as error:
            kind = "defect" if isinstance(error, Defect) else "error"
            click.echo(f"aegis: {paint(f'{kind}:', 'red')} {error}", err=True)
            sys.exit(error.exit_code)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order in which they are needed."""
        return list(self.commands)


def _write_utf8() -> None:
    """Write UTF-8, whatever the locale is: JSON, CSV and policies are read elsewhere too."""
    # SOURCE: RFC 8259 section 8.1.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")


def _open_standard_error() -> None:
    """Let standard error lead nowhere, so that no file that is opened later takes its number."""
    file = os.open(os.devnull, os.O_WRONLY)
    if file != _STDERR:
        os.dup2(file, _STDERR)
        os.close(file)
    sys.stderr = open(_STDERR, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - for good


def _fail(said: str) -> NoReturn:
    from aegis.cli.terminal import paint

    with suppress(OSError):
        click.echo(f"aegis: {paint('error:', 'red')} {said}", err=True)
    sys.exit(2)


_STDERR = 2


class _Formatter(logging.Formatter):
    """Says `aegis` of our own lines, and of others, as of an executor's, the name of their logger."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        is_ours = record.name.partition(".")[0] == "aegis"
        record.origin = "aegis" if is_ours else record.name
        return super().formatMessage(record)


@click.group(
    cls=_Group,
    commands=_Commands(),
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0: done, or allowed; 1: the answer is no (a policy is invalid, an action"
    " blocked); 2: wrong usage or configuration; 70: a defect of Aegis.",
)
@click.version_option(__version__, prog_name="aegis")
def main() -> None:
    """Decide by a policy what AI agents may do, execute it, and keep an audit.

    \b
    aegis init                     writes a policy to begin with
    aegis evaluate policy.yaml …   tries it on one action
    aegis serve policy.yaml        decides over HTTP, at http://127.0.0.1:8000
    """  # noqa: D301 - a real `\b` keeps click from filling the lines after it
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter("%(origin)s: %(levelname)s: %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    for level in (logging.WARNING, logging.ERROR, logging.CRITICAL):
        logging.addLevelName(level, logging.getLevelName(level).lower())
