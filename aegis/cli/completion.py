"""`aegis completion`."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

__all__ = ["completion"]


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the completion of commands and options for SHELL.

    \b
    bash:  eval "$(aegis completion bash)"    in ~/.bashrc
    zsh:   eval "$(aegis completion zsh)"     in ~/.zshrc
    fish:  aegis completion fish > ~/.config/fish/completions/aegis.fish
    """  # noqa: D301 - a real `\b` keeps click from filling the lines after it
    made = get_completion_class(shell)
    if made is None:  # click knows all three
        raise click.UsageError(f"no completion for {shell}")
    click.echo(made(ctx.find_root().command, {}, "aegis", "_AEGIS_COMPLETE").source())
