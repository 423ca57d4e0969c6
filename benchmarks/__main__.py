"""The full benchmark: the engine at every size, shapes that are hard, JSON, the audit, and HTTP
beside a bare granian application and, when asked, agent-aegis; all in one run, with ratios.

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
from pathlib import Path
from typing import Any

import click

from aegis import codec
from aegis.bench import http, measure, report, workload
from aegis.conditions import compile_conditions
from aegis_core import compile_policy
from benchmarks import agent_aegis
from benchmarks.in_process import ACTIONS, HTTP_RULES, in_process

SIZES = (10, 100, 1_000, 10_000, 100_000)
SHAPE_SIZES = (1_000, 10_000)
MOST_APART = 0.15


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
    plotted = report.plots(result)
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
    return first if isinstance(first, str) else statistics.median(found)


def measured(*, quick: bool, with_agent_aegis: bool) -> dict[str, Any]:
    sizes = SIZES[:3] if quick else SIZES
    shape_sizes = SHAPE_SIZES[:1] if quick else SHAPE_SIZES
    processes, rounds, http_rounds = (1, 3, 2) if quick else (5, 15, 14)
    result: dict[str, Any] = {"machine": measure.machine(), "versions": measure.versions()}
    with click.progressbar(
        length=processes * 3 + http_rounds + 1,
        label="measuring",
        file=sys.stderr,
        hidden=not sys.stderr.isatty(),
    ) as bar:
        found = []
        for _ in range(processes):
            # Each in a process of its own: how memory came to lie moves a ratio by a tenth.
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                found.append(pool.submit(in_process, sizes, shape_sizes, rounds).result())
            bar.update(3)
        result["processes"] = processes
        result |= merged(found)
        with tempfile.TemporaryDirectory() as folder:
            result["http"] = beside(
                Path(folder),
                workload.actions(ACTIONS, HTTP_RULES),
                http_rounds,
                lambda: bar.update(1),
                with_agent_aegis=with_agent_aegis,
            )
    if with_agent_aegis:
        ours = next(part for part in result["engine"] if part["rules"] == HTTP_RULES)
        theirs = result["http"]["agent-aegis"]["in_process_ns"]["median"]
        ours["ratios"]["agent-aegis over single"] = theirs / ours["single_ns"]["median"]
    return result


def beside(
    folder: Path,
    questions: list[codec.Question],
    rounds: int,
    tick: Callable[[], None],
    *,
    with_agent_aegis: bool,
) -> dict[str, Any]:
    policy = workload.policy(HTTP_RULES)
    (folder / "policy.yaml").write_text(workload.as_text(policy))
    engine = compile_policy(policy, condition=compile_conditions)
    ready = [[question[:2], json.loads(engine.evaluate_json(*question))] for question in questions]
    (folder / "answers.json").write_text(json.dumps(ready))
    bodies = [workload.body(question) for question in questions]
    starts: dict[str, Callable[[int], list[str]]] = {
        "aegis": lambda port: http.aegis_command(
            folder / "policy.yaml", port, folder / f"{port}.db"
        ),
        "bare granian": lambda port: [
            sys.executable, "-m", "benchmarks.bare", str(port), str(folder / "answers.json"),
        ],
    }  # fmt: skip
    found = http.servers(
        starts,
        dict.fromkeys(starts, bodies),
        rounds=rounds,
        seconds=2,
        per_s=2_000,
        tick=tick,
    )
    if with_agent_aegis:
        python = agent_aegis.installed(Path(sys.prefix) / "agent-aegis")
        asked = [(kind, target) for kind, target, _, _ in questions[:300]]
        times = agent_aegis.in_process(python, folder / "policy.yaml", asked)
        theirs = http.servers(
            {
                "aegis": starts["aegis"],
                "agent-aegis": lambda port: agent_aegis.command(
                    python, folder / "policy.yaml", port, folder / f"{port}.db"
                ),
            },
            {"aegis": bodies, "agent-aegis": bodies},
            rounds=3,
            seconds=2,
            per_s=200,
            tick=lambda: None,
        )
        found["agent-aegis"] = {"in_process_ns": measure.figures(times), **theirs}
        found["ratios"] |= theirs["ratios"]
        found["servers"]["agent-aegis"] = theirs["servers"]["agent-aegis"]
    return found


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
    return int(most > MOST_APART)


if __name__ == "__main__":
    main()
