"""`aegis bench`."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from aegis.cli.parameters import FILE, TEXT, Number
from aegis.cli.terminal import echo_json, paint, print_problems
from aegis.config import keys_from
from aegis.errors import ConfigError, PolicyError
from aegis.messages import quote

if TYPE_CHECKING:
    from aegis.policy.loader import Policy
    from aegis.wire import Question

__all__ = ["bench"]

ACTIONS = 10_000
ROUNDS = 7
HTTP_ROUNDS = 3
_MAX_LINE = 16 * 1024 * 1024


@click.command()
@click.argument("policy", type=FILE)
@click.option("--actions", type=FILE, metavar="FILE", help="Actions to ask about, one JSON object a line."
              " Default: made from the policy's patterns.")  # fmt: skip
@click.option("--url", type=TEXT, metavar="URL", help="Measure the server that runs there, and nothing else."
              " AEGIS_API_KEY is sent to it.")  # fmt: skip
@click.option(
    "--seconds",
    type=Number(0.2, 600),
    default=3.0,
    show_default=True,
    help="Seconds of each load over HTTP.",
)
@click.option(
    "--rate",
    type=Number(1, 1_000_000),
    default=1_000.0,
    show_default=True,
    help="Requests a second of the open loop, which measures tails.",
)
@click.option("--json", "as_json", is_flag=True, help="Print every figure as JSON.")
def bench(
    policy: str, actions: str | None, url: str | None, seconds: float, rate: float, as_json: bool
) -> None:
    """Measure what decisions by a policy cost here.

    The engine, JSON and the audit in this process, then a server with POLICY under load: as much as
    it takes, and at a fixed rate for its tails.
    """
    from aegis.bench import measure, report, workload
    from aegis.bench.http import url_only
    from aegis.server import load_policy_file

    try:
        made = load_policy_file(policy).policy
    except PolicyError as error:
        print_problems(policy, error.problems, err=True)
        sys.exit(2)
    questions = workload.actions_for(made, ACTIONS) if actions is None else _read(actions)
    result: dict[str, Any] = {
        "machine": measure.machine(),
        "versions": measure.versions(),
        "policy": policy,
        "actions": actions or f"{len(questions)} made from the policy's patterns",
    }
    if url is not None:
        bodies = [workload.body(question) for question in questions]
        key, _ = keys_from()
        result["http"] = url_only(url, bodies, seconds=seconds, per_s=rate, key=key)
    else:
        _measure(result, Path(policy), made, questions, seconds, rate)
    if as_json:
        echo_json(result)
        return
    for title, rows in report.tables(result):
        click.echo(paint(title, "cyan"))
        for line in report.table(rows):
            click.echo(f"  {line}")


def _read(path: str) -> list[Question]:
    from aegis.bench.workload import read_actions

    try:
        with Path(path).open("rb") as file:
            lines = iter(lambda: file.readline(_MAX_LINE), b"")
            found = read_actions(lines, path)
    except OSError as error:
        raise ConfigError(f"cannot read the actions {quote(path)}: {error.strerror}") from None
    return [
        (action.type, action.target, action.agent_id, dict(action.params) or None)
        for action in found
    ]


def _measure(
    result: dict[str, Any],
    path: Path,
    policy: Policy,
    questions: list[Question],
    seconds: float,
    rate: float,
) -> None:
    from aegis.bench import deciding, http, parts, workload

    bodies = [workload.body(question) for question in questions]
    ticks = 3 * (ROUNDS + 1) + HTTP_ROUNDS + 1
    # On standard error, and only where it is a terminal.
    with (
        click.progressbar(
            length=ticks, label="measuring", file=sys.stderr, hidden=not sys.stderr.isatty()
        ) as bar,
        tempfile.TemporaryDirectory() as folder,
    ):
        tick: Callable[[], None] = lambda: bar.update(1)  # noqa: E731 - what each part calls
        result["engine"] = [deciding.engine(policy, questions, rounds=ROUNDS, tick=tick)]
        result["json"] = parts.json_parts(policy, questions, rounds=ROUNDS, tick=tick)
        result["audit"] = parts.audit(rounds=ROUNDS, tick=tick)

        def start(port: int) -> list[str]:
            return http.aegis_command(path, port, Path(folder) / f"{port}.db")

        result["http"] = http.servers(
            {"aegis": start},
            {"aegis": bodies},
            rounds=HTTP_ROUNDS,
            seconds=seconds,
            per_s=rate,
            tick=tick,
        )
