"""The parts in one process: the engine, JSON, the audit."""

from __future__ import annotations

import asyncio
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter, perf_counter_ns
from typing import Any

from aegis import codec
from aegis.audit import AuditLog, AuditRecord, ResultStatus, now_us
from aegis.bench import workload
from aegis.bench.measure import figures, quiet, ratio, turns
from aegis.conditions import compile_conditions
from aegis.store import Store
from aegis_core import Approval, Policy, RiskLevel, compile_policy

__all__ = ["audit", "engine", "json_parts"]

BATCH = 1_000
SAMPLE = 50
TURN_NS = 3_000_000
WRITERS = 32


def _nothing() -> None:
    pass


def engine(
    policy: Policy,
    questions: list[codec.Question],
    *,
    rounds: int = 15,
    tick: Callable[[], None] = _nothing,
) -> dict[str, Any]:
    """What a decision costs, alone and in batches, beside a dict of ready answers.

    Args:
        policy: What decides.
        questions: Distinct actions; each round asks them as new objects.
        rounds: How often.
        tick: Called after each round.

    Returns:
        Nanoseconds a decision, ratios to the dict, milliseconds to compile.
    """
    start = perf_counter()
    made = compile_policy(policy, condition=compile_conditions)
    compile_ms = (perf_counter() - start) * 1_000
    answers = {question[:3]: made.evaluate(*question) for question in questions}

    # Each turn is short, and about as long for all: else a slow moment of the machine would fall on
    # those that take long, and a fast one would hardly be missed by them.
    begun = perf_counter_ns()
    for question in questions[:SAMPLE]:
        made.evaluate(*question)
    cost_ns = (perf_counter_ns() - begun) / min(SAMPLE, len(questions))
    fitting = max(SAMPLE, int(TURN_NS / cost_ns))

    def timed(
        ask: Callable[[list[codec.Question]], object], most: int = fitting
    ) -> Callable[[], float]:
        def once() -> float:
            asked = workload.fresh(questions[:most])
            with quiet():
                begun = perf_counter_ns()
                ask(asked)
                return (perf_counter_ns() - begun) / len(asked)

        return once

    def looked_up(asked: list[codec.Question]) -> None:
        for kind, target, agent, _ in asked:
            answers[kind, target, agent]

    def single(asked: list[codec.Question]) -> None:
        evaluate = made.evaluate
        for kind, target, agent, params in asked:
            evaluate(kind, target, agent, params)

    def batch(asked: list[codec.Question]) -> None:
        for first in range(0, len(asked), BATCH):
            made.evaluate_many(asked[first : first + BATCH])

    found = turns(
        {"dict": timed(looked_up, len(questions)), "single": timed(single), "batch": timed(batch)},
        rounds,
        tick,
    )
    return {
        "rules": len(policy.rules),
        "actions": len(questions),
        "compile_ms": compile_ms,
        "block_bytes": made.block_bytes,
        "dict_ns": figures(found["dict"]),
        "single_ns": figures(found["single"]),
        "batch_ns": figures(found["batch"]),
        "ratios": {
            "single over dict": ratio(found["single"], found["dict"]),
            "batch over dict": ratio(found["batch"], found["dict"]),
        },
    }


def json_parts(
    policy: Policy,
    questions: list[codec.Question],
    *,
    rounds: int = 11,
    tick: Callable[[], None] = _nothing,
) -> dict[str, Any]:
    """What JSON costs in and out, a decision of a batch; beside answers made of dicts.

    Returns:
        Nanoseconds an action.
    """
    made = compile_policy(policy, condition=compile_conditions)
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
                    items, made.evaluate_many([codec.question(item) for item in items]), strict=True
                )
            ]
        )

    found = turns(
        {
            "parse single": timed(lambda: [codec.loads(one, 64) for one in bodies]),
            "parse batch": timed(lambda: codec.loads(whole, 64)),
            "check": timed(lambda: [codec.question(item) for item in items]),
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
