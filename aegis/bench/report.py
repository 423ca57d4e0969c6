"""What was measured, for people: tables in text and Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

__all__ = ["markdown", "number", "ratios_of", "table", "tables"]

PARTS = {
    "hard": "Patterns without a literal head or tail, beside the mix",
    "letters": "Infixes of single letters",
    "endless": "Strings that never come again",
    "request": "A batch, bytes in to bytes out",
    "switching": "What a policy that is in force everywhere costs a request",
    "agent-aegis": "agent-aegis, in process",
    "loading": "Loading a policy",
}
"""Further parts of the full benchmark: their titles, by the names in its result."""

HTTP = {
    "http": "HTTP, single evaluates",
    "agent-aegis singles": "HTTP beside agent-aegis, single evaluates",
    "agent-aegis batches": "HTTP beside agent-aegis, batches of 100",
    "agent-aegis executes": "HTTP beside agent-aegis, single executes",
    "executing, 32 connections": "HTTP, durable executes and evaluates that are recorded",
    "executing, 128 connections": "The same, 128 connections",
}
"""Loads over HTTP, likewise."""


def ratios_of(result: Mapping[str, Any]) -> dict[str, float]:
    """Every ratio of a run, by what it is of."""
    found: dict[str, float] = {}
    for part in [*result.get("engine", []), *result.get("shapes", [])]:
        name = f"{part.get('shape', 'engine')}, {part['rules']} rules"
        found |= {f"{name}: {of}": value for of, value in part["ratios"].items()}
    for part in (*PARTS, "json", "audit", *HTTP):
        ratios = result.get(part, {}).get("ratios", {})
        found |= {f"{part}: {of}": value for of, value in ratios.items()}
    return found


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines of text, the first column to the left and the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            text.rjust(width) if column else text.ljust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def tables(result: Mapping[str, Any]) -> Iterator[tuple[str, list[list[str]]]]:
    """Titles and rows of what was measured."""
    if "bars" in result:
        yield "Bars", [["", "bar", "measured", "met"], *map(_bar_row, result["bars"])]
    for title, part in (("Engine", "engine"), ("Shapes that are hard", "shapes")):
        if result.get(part):
            yield title, _engine_rows(result[part])
    for part, title in PARTS.items():
        if part in result:
            names = [name for name in result[part] if name.endswith(("_ns", "_ms"))]
            unit = names[0][-2:]
            rows = [
                [_words(name, f"_{unit}"), number(result[part][name]["median"])] for name in names
            ]
            yield title, [["", unit], *rows]
    if "memory" in result:
        sizes = {name: f"{value:,}" for name, value in result["memory"].items()}
        yield (
            "Resident memory",
            [["", ""], *([_words(name, ""), text] for name, text in sizes.items())],
        )
    if "json" in result:
        names = [name for name in result["json"] if name.endswith("_ns")]
        rows = [[_words(name, "_ns"), number(result["json"][name]["median"])] for name in names]
        yield "JSON, a decision of a batch", [["", "ns"], *rows]
    if "audit" in result:
        names = [name for name in result["audit"] if name.endswith("_per_s")]
        rows = [[_words(name, "_per_s"), number(result["audit"][name]["median"])] for name in names]
        waits = result["audit"]["acknowledged_ms"]
        said = [[f"acknowledged, {name}, ms", f"{value:.2f}"] for name, value in waits.items()]
        yield "Audit, durable", [["", "records/s"], *rows, *said]
    for part, title in HTTP.items():
        if part in result:
            yield title, _http_rows(result[part])
    ratios = ratios_of(result)
    if ratios:
        yield "Ratios", [["", "ratio"], *([name, f"{value:.2f}"] for name, value in ratios.items())]


def _bar_row(bar: Mapping[str, Any]) -> list[str]:
    limit = f"{'≤' if bar['at_most'] else '≥'} {bar['limit']:,g}"
    if bar["measured"] is None:
        return [bar["of"], limit, "-", "not measured"]
    return [bar["of"], limit, number(bar["measured"]), "yes" if bar["is_met"] else "no"]


def _engine_rows(parts: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    rows = [["", "rules", "compile ms", "dict ns", "single ns", "batch ns"]]
    for part in parts:
        times = [number(part[f"{name}_ns"]["median"]) for name in ("dict", "single", "batch")]
        rows.append(
            [
                part.get("shape", "policy"),
                str(part["rules"]),
                number(part["compile_ms"]["median"]),
                *times,
            ]
        )
    return rows


def _http_rows(part: Mapping[str, Any]) -> list[list[str]]:
    rate = f"tails at {part['open_loop_per_s']:,.0f} requests/s"
    rows = [
        [rate, "requests/s", "CPU µs", "p50 ms", "p90 ms", "p99 ms", "p99.9 ms", "max ms", "errors"]
    ]
    for name, server in part["servers"].items():
        cpu = server["cpu_us_a_request"]
        tails = [f"{values['median']:.2f}" for values in server["tails_ms"].values()]
        rows.append(
            [
                f"{name} ({server['by']})",
                number(server["requests_per_s"]["median"]),
                "-" if cpu is None else number(cpu["median"]),
                *tails,
                str(server["errors"]),
            ]
        )
    return rows


def _words(name: str, unit: str) -> str:
    return name.removesuffix(unit).replace("_", " ")


def number(value: float) -> str:
    """A figure with at least three digits."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def markdown(result: Mapping[str, Any], plotted: Sequence[str] = ()) -> str:
    """The report of a run.

    Args:
        result: What was measured.
        plotted: Names of the plots beside it.
    """
    machine = result["machine"]
    said = [
        "# Benchmark",
        "",
        f"`{machine['command']}` on {machine['processor']}, {machine['cores']} cores,"
        f" {machine['system']}, {machine['python']}, {machine['time']}.",
        "",
        ", ".join(f"{name} {version}" for name, version in result["versions"].items()) + ".",
        "",
        "Medians of rounds in which the contestants take turns; ratios are medians of the ratios"
        " within each round. Tails are counted from the moment at which a request was to be sent.",
    ]
    for title, (head, *rows) in tables(result):
        said += [
            "",
            f"## {title}",
            "",
            f"| {' | '.join(head)} |",
            f"|---|{'---:|' * (len(head) - 1)}",
        ]
        said += [f"| {' | '.join(row)} |" for row in rows]
    for name in plotted:
        said += ["", f"![{name.removesuffix('.svg')}]({name})"]
    return "\n".join(said) + "\n"
