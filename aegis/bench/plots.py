"""Plots of a run, in SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from aegis.bench.report import number

__all__ = ["bars", "lines", "plots"]

COLORS = ("#2563eb", "#dc2626", "#059669", "#d97706")
WIDTH, HEIGHT = 640, 360
LEFT, RIGHT, TOP, BOTTOM = 70, 20, 44, 48


def plots(result: Mapping[str, Any]) -> dict[str, str]:
    """Plots of a run, by file name."""
    made = {}
    if len(result.get("engine", [])) > 1:
        sizes = {
            of: [(part["rules"], part[f"{of}_ns"]["median"]) for part in result["engine"]]
            for of in ("single", "batch", "dict")
        }
        made["engine.svg"] = lines(
            "Deciding, by size of the policy", "rules", "ns a decision", sizes
        )
    if result.get("shapes"):
        largest = max(part["rules"] for part in result["shapes"])
        shapes = {
            part["shape"]: part["single_ns"]["median"]
            for part in result["shapes"]
            if part["rules"] == largest
        }
        made["shapes.svg"] = bars(
            f"Shapes that are hard, {largest:,} rules", "ns a decision", shapes
        )
    if "http" in result:
        servers = result["http"]["servers"]
        rates = {name: server["requests_per_s"]["median"] for name, server in servers.items()}
        made["throughput.svg"] = bars("Single evaluates, one worker", "requests/s", rates)
        steps = {"p50": 2, "p90": 10, "p99": 100, "p99.9": 1_000}
        tails = {
            name: [(step, server["tails_ms"][of]["median"]) for of, step in steps.items()]
            for name, server in servers.items()
        }
        made["tails.svg"] = lines(
            "Latency at a fixed rate: one request in x takes longer", "x", "ms", tails
        )
    return made


def _ticks(low: float, high: float) -> list[float]:
    """Powers of ten that enclose a range."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    return [10.0**power for power in range(first, max(last, first + 1) + 1)]


def _frame(title: str, height: int = HEIGHT) -> list[str]:
    return [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}"'
        f' height="{height}" font-family="sans-serif" font-size="12" role="img">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        f'<text x="{LEFT}" y="24" font-size="15" font-weight="bold">{escape(title)}</text>',
    ]


def lines(
    title: str, across: str, up: str, series: Mapping[str, Sequence[tuple[float, float]]]
) -> str:
    """A plot of lines; both axes are logarithmic.

    Args:
        title: Of the plot.
        across: What the horizontal axis is, with its unit.
        up: What the vertical axis is, with its unit.
        series: Points of each line; positive.
    """
    points = [point for line in series.values() for point in line]
    marks_x = _ticks(min(x for x, _ in points), max(x for x, _ in points))
    marks_y = _ticks(min(y for _, y in points), max(y for _, y in points))

    def place_x(value: float) -> float:
        part = math.log10(value / marks_x[0]) / math.log10(marks_x[-1] / marks_x[0])
        return LEFT + part * (WIDTH - LEFT - RIGHT)

    def place_y(value: float) -> float:
        part = math.log10(value / marks_y[0]) / math.log10(marks_y[-1] / marks_y[0])
        return HEIGHT - BOTTOM - part * (HEIGHT - TOP - BOTTOM)

    made = _frame(title)
    for mark in marks_x:
        x = place_x(mark)
        made.append(
            f'<line x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{HEIGHT - BOTTOM}" stroke="#e5e7eb"/>'
        )
        made.append(
            f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{mark:,g}</text>'
        )
    for mark in marks_y:
        y = place_y(mark)
        made.append(
            f'<line x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}" stroke="#e5e7eb"/>'
        )
        made.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{mark:,g}</text>')
    for index, (name, line) in enumerate(series.items()):
        color = COLORS[index % len(COLORS)]
        path = " ".join(f"{place_x(x):.1f},{place_y(y):.1f}" for x, y in line)
        made.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"/>')
        made += [
            f'<circle cx="{place_x(x):.1f}" cy="{place_y(y):.1f}" r="3" fill="{color}"/>'
            for x, y in line
        ]
        y = TOP + 8 + 16 * index
        made.append(f'<rect x="{LEFT + 10}" y="{y - 8}" width="10" height="10" fill="{color}"/>')
        made.append(f'<text x="{LEFT + 26}" y="{y + 1}">{escape(name)}</text>')
    made.append(
        f'<text x="{(LEFT + WIDTH) / 2}" y="{HEIGHT - 10}" text-anchor="middle">{escape(across)}</text>'
    )
    made.append(
        f'<text transform="translate(16,{HEIGHT / 2}) rotate(-90)" text-anchor="middle">{escape(up)}</text>'
    )
    return "\n".join([*made, "</svg>\n"])


def bars(title: str, unit: str, values: Mapping[str, float]) -> str:
    """A plot of bars, from zero.

    Args:
        title: Of the plot.
        unit: Of the values.
        values: Each bar's.
    """
    step, side = 34, 170
    height = TOP + step * len(values) + 30
    most = max(values.values())
    made = _frame(title, height)
    for index, (name, value) in enumerate(values.items()):
        y = TOP + step * index
        wide = (WIDTH - side - 100) * value / most
        made.append(f'<text x="{side - 8}" y="{y + 17}" text-anchor="end">{escape(name)}</text>')
        made.append(
            f'<rect x="{side}" y="{y + 2}" width="{wide:.1f}" height="22" fill="{COLORS[0]}"/>'
        )
        made.append(f'<text x="{side + wide + 6:.1f}" y="{y + 17}">{number(value)}</text>')
    made.append(f'<text x="{side}" y="{height - 10}">{escape(unit)}</text>')
    return "\n".join([*made, "</svg>\n"])
