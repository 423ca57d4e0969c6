"""`aegis serve`."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from typing import Any

import click

from aegis.cli.parameters import FILE, TEXT, Number, number_from
from aegis.cli.terminal import print_problems
from aegis.config import (
    LARGEST_BODY_BYTES,
    RESULT_BYTES,
    AuditDecisions,
    Durability,
    Settings,
    allowed_hosts_of,
    keys_from,
    names_in,
)
from aegis.errors import PolicyError
from aegis.server import policy_text_of
from aegis.server.runner.signals import hold_hangups

__all__ = ["serve"]

_DEFAULTS = Settings()


_SERVICE_LINK = re.compile(r"(tcp|udp|sctp)://\S*")
"""What Kubernetes sets `AEGIS_PORT` to in every pod beside a Service called `aegis`."""


class _Option(click.Option):
    """An option whose variable may also be one of Kubernetes' own, which says nothing to us."""

    def resolve_envvar_value(self, ctx: click.Context) -> str | None:
        value = super().resolve_envvar_value(ctx)
        if value is None or not _SERVICE_LINK.fullmatch(value):
            return value
        click.echo(
            f"aegis: warning: {self.envvar}={value} is passed over: Kubernetes set it for a Service;"
            f" use {self.opts[0]}, or enableServiceLinks: false in the pod",
            err=True,
        )
        return None


def _option(*names: str, **attributes: Any) -> Callable[[Any], Any]:
    """An option that can also be given as `AEGIS_<NAME>`."""
    name = names[0].removeprefix("--").replace("-", "_").upper()
    return click.option(
        *names,
        cls=_Option,
        envvar=f"AEGIS_{name}",
        show_envvar=True,
        show_default=True,
        **attributes,
    )


_MOST_NESTING = 200  # deeper values could not be written again


class _Workers(click.IntRange):
    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        cores = len(os.sched_getaffinity(0))
        return int(super().convert(cores if value == "auto" else value, param, ctx))


_POSITIVE = Number(min=0, min_open=True, max=86_400)
_NOT_NEGATIVE = Number(min=0, max=86_400)


@click.command()
@click.argument("policy", envvar="AEGIS_POLICY", type=FILE)
@_option("--host", type=TEXT, default="127.0.0.1", help="Address to listen on.")
@_option("--port", type=click.IntRange(0, 65535), default=8000, help="Port; 0 takes a free one.")
@_option("--workers", type=_Workers(1, 256), default=1, help="Processes; `auto`: one a core.")
@_option(
    "--audit-db", type=FILE, default=_DEFAULTS.audit_db, help="Database; `:memory:` keeps nothing."
)
@_option("--executor", type=TEXT, metavar="MODULE:CLASS", help="What does the actions.")
@_option("--reset-policy", is_flag=True, help="Go back to the file where a policy was put since.")
@_option("--watch", is_flag=True, help="Load POLICY again when it changes.")
@_option(
    "--keys", type=FILE, metavar="FILE", help="Keys and their roles; read again when it changes."
)
@_option("--allow-unauthenticated", is_flag=True, help="Serve other machines without keys.")
@_option(
    "--allowed-hosts",
    type=TEXT,
    multiple=True,
    help="Further Host names, without keys; by commas. `.example.com`: with all below it.",
)
@_option(
    "--max-body-bytes",
    type=number_from(1, LARGEST_BODY_BYTES),
    default=_DEFAULTS.largest_body_bytes,
    help="Largest body of a request.",
)
@_option(
    "--max-batch",
    type=number_from(1),
    default=_DEFAULTS.largest_batch,
    help="Most actions in one request.",
)
@_option(
    "--max-nesting",
    type=click.IntRange(2, _MOST_NESTING),
    default=_DEFAULTS.deepest_nesting,
    help="Deepest nesting of a request's JSON.",
)
@_option(
    "--condition-budget",
    type=number_from(1),
    default=_DEFAULTS.condition_budget,
    help="Units of work that the conditions of one request may take.",
)
@_option(
    "--max-result-bytes",
    type=number_from(RESULT_BYTES.start, RESULT_BYTES.stop - 1),
    default=_DEFAULTS.largest_result_bytes,
    help="Most data of an executor's result; more is left out.",
)
@_option(
    "--body-timeout",
    type=_POSITIVE,
    default=_DEFAULTS.body_timeout_s,
    help="Seconds for a body to arrive.",
)
@_option(
    "--keep-alive",
    type=Number(min=1, max=86_400),
    default=_DEFAULTS.keep_alive_s,
    help="Seconds that a connection may be idle; also for a request's head to arrive.",
)
@_option(
    "--execute-timeout",
    type=_POSITIVE,
    default=_DEFAULTS.execute_timeout_s,
    help="Seconds for an executor to run one action.",
)
@_option(
    "--audit-timeout",
    type=_POSITIVE,
    default=_DEFAULTS.audit_timeout_s,
    help="Seconds for a record to be committed before its answer is withheld.",
)
@_option(
    "--drain-delay",
    type=_NOT_NEGATIVE,
    default=_DEFAULTS.drain_delay_s,
    help="Seconds to go on serving after a signal to stop, while /health/ready says 503 already.",
)
@_option(
    "--audit-durability",
    type=click.Choice([kind.value for kind in Durability]),
    default=_DEFAULTS.audit_durability.value,
    help="commit: a record is on the disk before its answer; process: it outlives the server, but"
    " not the machine's power.",
)
@_option(
    "--audit-decisions",
    type=click.Choice([kind.value for kind in AuditDecisions]),
    default=_DEFAULTS.audit_decisions.value,
    help="Which answers of `evaluate` are recorded as well.",
)
@_option(
    "--audit-signing-key",
    type=FILE,
    metavar="FILE",
    help="An Ed25519 private key in PEM that signs the head of the audit.",
)
@_option(
    "--redact",
    type=TEXT,
    multiple=True,
    help="Further names of secrets that are not recorded; by commas.",
)
@_option("--redact-except", type=TEXT, multiple=True, help="Names that are no secrets; by commas.")
def serve(
    policy: str,
    host: str,
    port: int,
    workers: int,
    audit_db: str,
    executor: str | None,
    reset_policy: bool,
    watch: bool,
    keys: str | None,
    allow_unauthenticated: bool,
    allowed_hosts: tuple[str, ...],
    max_body_bytes: int,
    max_batch: int,
    max_nesting: int,
    condition_budget: int,
    max_result_bytes: int,
    body_timeout: float,
    keep_alive: float,
    execute_timeout: float,
    audit_timeout: float,
    drain_delay: float,
    audit_durability: str,
    audit_decisions: str,
    audit_signing_key: str | None,
    redact: tuple[str, ...],
    redact_except: tuple[str, ...],
) -> None:
    """Serve decisions by POLICY over HTTP.

    AEGIS_API_KEY and AEGIS_ADMIN_KEY set who may call; without them only this machine may.
    """
    hold_hangups()
    from aegis.server.runner.serve import serve as run

    api_key, admin_key, _ = keys_from()
    settings = Settings(
        audit_db=audit_db,
        api_key=api_key,
        admin_key=admin_key,
        keys_file=keys,
        allow_unauthenticated=allow_unauthenticated,
        allowed_hosts=allowed_hosts_of(
            name for given in allowed_hosts for name in given.replace(",", " ").split() or [""]
        ),
        largest_body_bytes=max_body_bytes,
        largest_batch=max_batch,
        deepest_nesting=max_nesting,
        condition_budget=condition_budget,
        largest_result_bytes=max_result_bytes,
        body_timeout_s=body_timeout,
        keep_alive_s=keep_alive,
        execute_timeout_s=execute_timeout,
        audit_timeout_s=audit_timeout,
        drain_delay_s=drain_delay,
        policy_file=policy,
        watch=watch,
        audit_durability=Durability(audit_durability),
        audit_decisions=AuditDecisions(audit_decisions),
        signing_key_file=audit_signing_key,
        redact=frozenset(names_in(",".join(redact))),
        redact_except=frozenset(names_in(",".join(redact_except))),
    )
    try:
        file = policy_text_of(policy, audit_db)
    except PolicyError as error:
        print_problems(policy, error.problems, err=True)
        sys.exit(2)
    run(
        settings,
        policy,
        file,
        host=host,
        port=port,
        workers=workers,
        executor=executor,
        reset_policy=reset_policy,
        announce=click.echo,
    )
