"""The parts in one process beside deciding: JSON, the audit."""

from __future__ import annotations

import asyncio
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter, perf_counter_ns
from typing import Any

from aegis import codec, wire
from aegis.audit import AuditLog, AuditRecord, ResultStatus
from aegis.bench import workload
from aegis.bench.deciding import BATCH, compiled
from aegis.bench.measure import figures, quiet, ratio, turns
from aegis.store.database import Store
from aegis.timestamps import now_us
from aegis_core import Approval, Policy, RiskLevel

__all__ = ["audit", "json_parts"]

WRITERS = 32


def _nothing() -> None:
    pass


def json_parts(
    policy: Policy,
    questions: list[wire.Question],
    *,
    rounds: int = 11,
    tick: Callable[[], None] = _nothing,
) -> dict[str, Any]:
    """What JSON costs in and out, a decision of a batch; beside answers made of dicts.

    Returns:
        Nanoseconds an action.
    """
    made = compiled(policy)
    asked = questions[:BATCH]
    bodies = [workload.body(question) for question in asked]
    whole = b"[%b]" % b",".join(bodies)
    items = codec.loads(whole, 64)

    def timed(do: Callable[[], object]) -> Callable[[], float]:
        def once() -> float:
            with quiet():
                begun = perf_counter_ns()
                for _ in range(5):
                    do()
                return (perf_counter_ns() - begun) / len(asked) / 5

        return once

    def of_dicts() -> bytes:
        return codec.dumps(
            [
                {
                    "action_type": item["action_type"],
                    "target": item["target"],
                    "risk_level": decision.risk_level.name,
                    "approval": decision.approval.value,
                    "is_allowed": decision.is_allowed,
                    "matched_rule": decision.matched_rule,
                }
                for item, decision in zip(
                    items, made.evaluate_many([wire.question(item) for item in items]), strict=True
                )
            ]
        )

    found = turns(
        {
            "parse single": timed(lambda: [codec.loads(one, 64) for one in bodies]),
            "parse batch": timed(lambda: codec.loads(whole, 64)),
            "check": timed(lambda: [wire.question(item) for item in items]),
            "decide and write": timed(lambda: made.evaluate_objects_json(items)),
            "decide and write dicts": timed(of_dicts),
        },
        rounds,
        tick,
    )
    return {
        "batch": len(asked),
        "bytes_an_action": len(whole) / len(asked),
        **{f"{name}_ns".replace(" ", "_"): figures(values) for name, values in found.items()},
        "ratios": {
            "decide and write over dicts": ratio(
                found["decide and write"], found["decide and write dicts"]
            )
        },
    }


def audit(*, rounds: int = 5, tick: Callable[[], None] = _nothing) -> dict[str, Any]:
    """What a durable record costs: one after the other, many writers at once, large batches.

    Returns:
        Records a second, and milliseconds until they are acknowledged; on the disk of the
        temporary folder.
    """
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "audit.db")
        log = AuditLog(store, most_queued=1_000_000, timeout_s=60)
        waits: list[float] = []
        try:
            with asyncio.Runner() as runner:
                found = turns(
                    {
                        "one writer": lambda: runner.run(_appended(log, 1, 300, 1)),
                        "many writers": lambda: runner.run(_appended(log, WRITERS, 60, 1, waits)),
                        "batches": lambda: runner.run(_appended(log, 2, 5, BATCH)),
                    },
                    rounds,
                    tick,
                )
        finally:
            log.close()
            store.close()
    cuts = statistics.quantiles(waits, n=100)
    return {
        "writers": WRITERS,
        "batch": BATCH,
        **{f"{name}_per_s".replace(" ", "_"): figures(values) for name, values in found.items()},
        "acknowledged_ms": {"p50": cuts[49], "p99": cuts[98], "max": max(waits)},
        "ratios": {
            "many writers over one": ratio(found["many writers"], found["one writer"]),
            "batches over one": ratio(found["batches"], found["one writer"]),
        },
    }


async def _appended(
    log: AuditLog, writers: int, appends: int, size: int, waits: list[float] | None = None
) -> float:
    async def write() -> None:
        for _ in range(appends):
            start = perf_counter()
            await log.append([_record() for _ in range(size)])
            if waits is not None:
                waits.append((perf_counter() - start) * 1_000)

    start = perf_counter()
    await asyncio.gather(*(write() for _ in range(writers)))
    return writers * appends * size / (perf_counter() - start)


def _record() -> AuditRecord:
    return AuditRecord(
        now_us(), "session", "crm.update", "crm/accounts/17", '{"count":5}', None,
        RiskLevel.MEDIUM, Approval.AUTO, "crm_updates", None, ResultStatus.SUCCESS,
        '{"executed":true}', None, "sales-1", None, None, 0, 1,
    )  # fmt: skip
