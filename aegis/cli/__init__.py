"""The command line."""

from __future__ import annotations

import logging
import sys

import click

from aegis import __version__
from aegis.cli.keys import keys
from aegis.cli.serve import serve
from aegis.cli.validate import validate
from aegis.errors import AegisError

__all__ = ["main"]


class _Group(click.Group):
    """Ends with one clear line and the error's exit code where a command fails on purpose."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except AegisError as error:
            click.echo(f"aegis: error: {error}", err=True)
            sys.exit(error.exit_code)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="aegis")
def main() -> None:
    """Decide by a policy what AI agents may do, execute it, and keep an audit.

    Begin with `aegis serve policy.yaml`.
    """
    logging.basicConfig(format="aegis: %(levelname)s: %(message)s", level=logging.WARNING)
    for level in (logging.WARNING, logging.ERROR, logging.CRITICAL):
        logging.addLevelName(level, logging.getLevelName(level).lower())


main.add_command(keys)
main.add_command(serve)
main.add_command(validate)
