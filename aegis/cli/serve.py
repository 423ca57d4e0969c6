"""`aegis serve`."""

from __future__ import annotations

import sys
from typing import Any

import click

from aegis.cli.parameters import Parsed
from aegis.cli.terminal import print_problems
from aegis.config import OPTIONS, Option, settings_from
from aegis.errors import PolicyError
from aegis.server import policy_text_of
from aegis.server.runner.signals import hold_hangups

__all__ = ["serve"]


class _Option(click.Option):
    """An option as the command line takes it; `settings_from` looks up its variable and its default."""

    def __init__(self, option: Option) -> None:
        self._option = option
        is_flag = isinstance(option.default, bool)
        super().__init__(
            [option.flag],
            type=None if is_flag else Parsed(option.type),
            is_flag=is_flag,
            default=None,
            multiple=option.type.is_list,
            envvar=option.variable,
            show_envvar=True,
            help=option.help,
        )

    def resolve_envvar_value(self, ctx: click.Context) -> None:
        """Nothing: the variable is only named here."""

    def get_help_extra(self, ctx: click.Context) -> Any:
        """What stands in brackets after the help."""
        extra = super().get_help_extra(ctx)
        if self._option.default_text:
            extra["default"] = self._option.default_text
        if self._option.type.limits and not self.is_flag and not self._option.type.choices:
            extra["range"] = self._option.type.limits
        return extra


_POLICY = click.Argument(
    ["policy"], type=Parsed(OPTIONS["policy"].type), envvar=OPTIONS["policy"].variable
)


@click.command(params=[_POLICY, *map(_Option, filter(lambda one: one.has_flag, OPTIONS.values()))])
def serve(policy: str, **given: Any) -> None:
    """Serve decisions by POLICY over HTTP.

    AEGIS_API_KEY and AEGIS_ADMIN_KEY set who may call; without them only this machine may.
    """
    hold_hangups()
    from aegis.server.runner.serve import serve as run

    options = {name: _value_of(each) for name, each in given.items()}
    settings = settings_from({"policy": policy, **options})
    try:
        file = policy_text_of(policy, settings.audit_db)
    except PolicyError as error:
        print_problems(policy, error.problems, err=True)
        sys.exit(2)
    run(settings, file, announce=click.echo)


def _value_of(given: Any) -> Any:
    """What was given on the command line; None: nothing was."""
    if isinstance(given, tuple):  # of what the option takes several times
        return frozenset().union(*given) if given else None
    return None if given is False else given
