"""What is to be reached: each bar beside what a run measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aegis.bench import report

MOST = {
    "engine, 10 rules: single over dict": 0.6,
    "engine, 1000 rules: single over dict": 0.8,
    "engine, 10000 rules: single over dict": 1.2,
    "engine, 100000 rules: single over dict": 2.0,
    "engine, 10 rules: batch over single": 0.75,
    "engine, 1000 rules: batch over single": 0.75,
    "engine, 10000 rules: batch over single": 0.75,
    "engine, 100000 rules: batch over single": 0.75,
    **{
        f"engine, {rules} rules: {of}": limit
        for of, limits in {
            "policy over single": (1.3, 1.3, 1.3, 1.3),
            "policy over dict": (1.5, 1.8, 1.5, 2.0),
            "policy batch over policy": (0.8, 0.8, 0.8, 0.8),
            "constructed and decided over dict": (2.2, 2.2),
        }.items()
        for rules, limit in zip((10, 1_000, 10_000, 100_000), limits, strict=False)
    },
    "hard: infixes over mix, short": 4.0,
    "hard: infixes over mix, 4 KiB": 4.0,
    "hard: one type over mix, short": 4.0,
    "hard: one type over mix, 4 KiB": 4.0,
    "hard: sets over mix, short": 4.0,
    "hard: sets over mix, 4 KiB": 4.0,
    "hard: single characters over mix, short": 4.0,
    "hard: single characters over mix, 4 KiB": 4.0,
    "letters: µs a decision": 25.0,
    "endless: endless over mix": 2.0,
    "memory: grown by, of what it was": 0.01,
    "request: bytes to bytes over orjson loads": 1.4,
    "http: aegis p99 over the faster bare": 1.3,
    "switching: of a request's time over HTTP": 0.02,
    "executing, 32 connections: execute p99 at half its rate, ms": 15.0,
    "executing, 128 connections: execute p99 at half its rate, ms": 15.0,
    "compile: ms, 10000 rules": 150.0,
    "compile: ms, 100000 rules": 2_500.0,
    "compile: bytes a rule, at most": 1_024.0,
    "loading: loaded and compiled over orjson": 14.0,
    "loading: YAML over composer": 1.15,
    "loading: ms, 10000 rules": 250.0,
}
LEAST = {
    "executing, 32 connections: execute rate over evaluate": 0.42,
    "executing, 128 connections: execute rate over evaluate": 0.5,
    "executing, 32 connections: noted rate over evaluate": 0.6,
    "letters: re over single": 150.0,
    "http: aegis rate over the faster bare": 0.93,
    "agent-aegis: 1000 rules, agent-aegis over single": 300.0,
    "agent-aegis: 10000 rules, agent-aegis over single": 2_500.0,
    "agent-aegis singles: aegis rate over agent-aegis": 15.0,
    "agent-aegis batches: aegis rate over agent-aegis": 50.0,
    "agent-aegis executes: aegis rate over agent-aegis": 10.0,
}
# What few rules cost is a table's fixed size.
FEW_RULES = 1_000
HARD_RULES = 10_000
AT_FULL_SIZE_ONLY = ("hard: ", "letters: ", "endless: ", "request: ", "http: ", "loading: ")


def judged(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each bar, and what a run says about it; None where it did not measure that."""
    measured = _measured(result)
    found = []
    for of, limit in (MOST | LEAST).items():
        value = measured.get(of)
        is_met = None if value is None else value <= limit if of in MOST else value >= limit
        found.append(
            {"of": of, "limit": limit, "at_most": of in MOST, "measured": value, "is_met": is_met}
        )
    return found


def _measured(result: Mapping[str, Any]) -> dict[str, float]:
    found = {
        of: value
        for of, value in report.ratios_of(result).items()
        if not of.startswith(AT_FULL_SIZE_ONLY) or _size(result, of) == HARD_RULES
    }
    if _size(result, "letters: ") == HARD_RULES:
        found["letters: µs a decision"] = result["letters"]["single_ns"]["median"] / 1_000
    if "http" in result and "switching" in result:
        price_ns = [result["switching"][of]["median"] for of in ("in_force_ns", "fixed_ns")]
        per_s = result["http"]["servers"]["aegis"]["requests_per_s"]["median"]
        found["switching: of a request's time over HTTP"] = (
            (price_ns[0] - price_ns[1]) * per_s / 1e9
        )
    if _size(result, "loading: ") == HARD_RULES:
        found["loading: ms, 10000 rules"] = result["loading"]["loaded_ms"]["median"]
    if "memory" in result:
        memory = result["memory"]
        found["memory: grown by, of what it was"] = memory["grown_bytes"] / memory["before_bytes"]
    for name, part in result.items():
        if name.startswith("executing, "):
            tails = part["servers"]["execute"]["tails_ms"]
            found[f"{name}: execute p99 at half its rate, ms"] = tails["p99"]["median"]
    for part in result["engine"]:
        found[f"compile: ms, {part['rules']} rules"] = part["compile_ms"]["median"]
    found["compile: bytes a rule, at most"] = max(
        (
            part["image_bytes"] / part["rules"]
            for part in (*result["engine"], *result["shapes"])
            if part["rules"] >= FEW_RULES
        ),
        default=0.0,
    )
    return found


def _size(result: Mapping[str, Any], of: str) -> int:
    size: int = result.get(of.partition(":")[0], {}).get("rules", 0)
    return size
