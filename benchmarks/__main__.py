"""The full benchmark: the engine at every size, shapes that are hard, JSON, the audit, and HTTP
beside bare granian applications and, when asked, agent-aegis; all in one run, with ratios and bars.

Run: python -m benchmarks [--out FOLDER] [--agent-aegis] [--quick]
     python -m benchmarks --compare A.json B.json
"""  # noqa: D205 - what it measures is one sentence

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from aegis.bench import measure, plots, report
from benchmarks import bars, endless, servers
from benchmarks.in_process import in_process

MAX_APART = 0.15


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured."""

    rules: Sequence[int]
    shape_rules: Sequence[int]
    processes: int
    rounds: int
    http_rounds: int
    http_seconds: float
    decisions: int
    connections: Sequence[int]
    execute_rounds: int


FULL = Size((10, 100, 1_000, 10_000, 100_000), (10_000,), 5, 11, 6, 2.0, 10_000_000, (32, 128), 2)
QUICK = Size((10, 100, 1_000), (1_000,), 1, 3, 1, 0.3, 500_000, (32,), 1)


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks")
    parser.add_argument(
        "--out", type=Path, default=Path("bench-results"), help="folder to write to"
    )
    parser.add_argument("--agent-aegis", action="store_true", help="measure agent-aegis 1.0.0 too")
    parser.add_argument("--quick", action="store_true", help="few rounds: to see that it works")
    parser.add_argument("--compare", nargs=2, type=Path, metavar="JSON", help="ratios of two runs")
    options = parser.parse_args()
    if options.compare:
        sys.exit(compare(*(json.loads(path.read_text()) for path in options.compare)))
    start = time.monotonic()
    result = measured(quick=options.quick, with_agent_aegis=options.agent_aegis)
    result["seconds"] = round(time.monotonic() - start)
    plotted = plots.plots(result)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "results.json").write_text(json.dumps(result, indent=1) + "\n")
    for name, plot in plotted.items():
        (options.out / name).write_text(plot)
    (options.out / "report.md").write_text(report.markdown(result, list(plotted)))
    for title, rows in report.tables(result):
        print(title, *(f"  {line}" for line in report.table(rows)), sep="\n")
    print(f"{options.out}/report.md, after {result['seconds']} s")


def merged(found: Sequence[Any]) -> Any:
    """What several processes found, as one: all their rounds, the medians of their ratios."""
    first = found[0]
    if isinstance(first, list):
        return [merged(several) for several in zip(*found, strict=True)]
    if isinstance(first, dict) and "rounds" in first:
        return measure.figures([value for one in found for value in one["rounds"]])
    if isinstance(first, dict):
        return {name: merged([one[name] for one in found]) for name in first}
    return first if found.count(first) == len(found) else statistics.median(found)


def measured(*, quick: bool, with_agent_aegis: bool) -> dict[str, Any]:
    size = QUICK if quick else FULL
    result: dict[str, Any] = {"machine": measure.machine(), "versions": measure.versions()}
    with (
        click.progressbar(
            length=size.processes * 3 + size.http_rounds + 2 + 8 + 12 * with_agent_aegis,
            label="measuring",
            file=sys.stderr,
            hidden=not sys.stderr.isatty(),
        ) as bar,
        tempfile.TemporaryDirectory() as made,
    ):
        folder = Path(made)
        tick: Callable[[], None] = lambda: bar.update(1)  # noqa: E731 - what each part calls
        found = []
        for _ in range(size.processes):
            # Each in a process of its own: how memory came to lie moves a ratio by a tenth.
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                found.append(
                    pool.submit(in_process, size.rules, size.shape_rules, size.rounds).result()
                )
            bar.update(3)
        result["processes"] = size.processes
        result |= merged(found)
        result["memory"] = endless.memory(size.decisions)
        tick()
        rules = size.shape_rules[-1]
        result["http"] = servers.beside_bare(
            folder, rules, size.http_rounds, size.http_seconds, tick
        )
        for connections in size.connections:
            result[f"executing, {connections} connections"] = servers.executing(
                folder, 1_000, connections, size.execute_rounds, size.http_seconds, tick
            )
        if with_agent_aegis:
            result["agent-aegis"] = servers.agent_aegis_deciding(
                folder, [rules for rules in size.rules if rules in servers.AGENT_AEGIS_ASKED], 5
            )
            both = servers.beside_agent_aegis(folder, 3, size.http_seconds, tick)
            result |= {f"agent-aegis {name}": part for name, part in both.items()}
    result["bars"] = bars.judged(result)
    return result


def compare(one: dict[str, Any], other: dict[str, Any]) -> int:
    """Print how far the ratios of two runs are apart; 1 where one is by more than 15 %."""
    ours, theirs = report.ratios_of(one), report.ratios_of(other)
    rows = [["", "one", "other", "apart"]]
    most = 0.0
    for name in ours.keys() & theirs.keys():
        low, high = sorted((ours[name], theirs[name]))
        apart = high / low - 1
        most = max(most, apart)
        rows.append([name, f"{ours[name]:.3f}", f"{theirs[name]:.3f}", f"{apart:.1%}"])
    print(*report.table([rows[0], *sorted(rows[1:])]), sep="\n")
    return int(most > MAX_APART)


if __name__ == "__main__":
    main()
