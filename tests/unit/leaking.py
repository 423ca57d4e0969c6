"""What may leak, many times over, in a process of its own; tests.unit.test_leaks starts it.

Run: python -m tests.unit.leaking WORK    (prints what has grown as JSON)
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from aegis_core import (
    Action,
    Approval,
    Engine,
    Evaluator,
    Policy,
    PolicyRule,
    RiskLevel,
    Work,
    compile_policy,
)

WARM_UP = 3_000
TIMES = 20_000
COMPILES = 4
"""A policy is compiled once for so many turns of the others."""

PATTERNS = (
    "read", "re*", "*ad", "*ea*", "r?ad", "[a-r]ead", "*r*d*", "é*", "漢*😀", "x[!y]*", "",
)  # fmt: skip
TYPES = ("read", "reread", "éa", "漢字😀", "xz", "none of these", "")


def _held(written: Mapping[str, Any]) -> Any:
    return written["held"]


def _raises(params: Mapping[str, Any], now: float, work: Work) -> bool:
    raise ValueError(f"{now} says nothing about {len(params)} parameters")


def _policy() -> Policy:
    rules = [PolicyRule(pattern, name=f"rule_{index}") for index, pattern in enumerate(PATTERNS)]
    rules.append(PolicyRule("none*", conditions={"held": _raises}, approval=Approval.AUTO))
    rules.insert(0, PolicyRule("*", conditions={"held": lambda params, now, work: "n" in params}))
    return Policy(tuple(rules), RiskLevel.LOW, Approval.AUTO)


POLICY = _policy()
ENGINE = compile_policy(POLICY, condition=_held)
DECISIONS = [ENGINE.evaluate(kind) for kind in TYPES[:-2]]


def _texts(number: int) -> list[str]:
    return [f"{kind}{number % 7}"[: -1 if number % 2 else None] for kind in TYPES]


def decide(number: int) -> None:
    """One by one."""
    for kind in _texts(number):
        ENGINE.evaluate(kind, f"target {number}", "agent", {"m": number})
        ENGINE.evaluate(kind, params={"n": 1})


def batch(number: int) -> None:
    """Many in a call."""
    ENGINE.evaluate_many([(kind, f"{number}", "", None) for kind in _texts(number)])
    ENGINE.evaluate_many((kind, "", "", {"n": 1}) for kind in _texts(number))


def to_json(number: int) -> None:
    """To bytes; short ones and ones that need more room."""
    for kind in _texts(number):
        ENGINE.evaluate_json(kind, "\x01é" * (number % 700))
        ENGINE.evaluate_object_json({"action_type": kind, "params": {"a": number}})
    ENGINE.evaluate_many_json([(kind, f"{number}", "", None) for kind in _texts(number)])
    ENGINE.evaluate_objects_json([{"type": kind, "target": "x"} for kind in _texts(number)])


class _Compiled(Evaluator):
    @property
    def engine(self) -> Engine:
        return ENGINE


EVALUATOR = _Compiled()


def values(number: int) -> None:
    """Actions and decisions: made, read, compared, and refused."""
    actions = [Action(kind, f"{number}", agent_id="agent") for kind in _texts(number)]
    for decision in (*EVALUATOR.evaluate_many(actions), EVALUATOR.evaluate(actions[0])):
        if decision.is_allowed and decision.error is None:
            repr(decision)
    with suppress(AttributeError):
        actions[0].type = "other"  # type: ignore[misc]
    with suppress(TypeError):
        Action()  # type: ignore[call-arg]
    with suppress(TypeError):
        EVALUATOR.evaluate(Action(number))  # type: ignore[arg-type]
    with suppress(AttributeError):
        EVALUATOR.evaluate(Action.__new__(Action))


def indeterminate(number: int) -> None:
    """Conditions that raise."""
    ENGINE.evaluate("none of these", f"{number}", "", {"a": number})
    ENGINE.evaluate_many([("none of these", f"{number}", "", None)] * 3)
    ENGINE.evaluate_json("none of these")


def refused(number: int) -> None:
    """Arguments that are no text, and actions that are none, at every place of a batch."""
    wrong: list[Any] = [number, None, b"read", ["read"]]
    for bad in wrong:
        for arguments in ((bad,), ("read", bad), ("read", "", bad)):
            for ask in (ENGINE.evaluate, ENGINE.evaluate_json):
                with suppress(TypeError):
                    ask(*arguments)
        good = ("read", f"{number}", "", None)
        for items in ([good, (bad, "", "", None)], [good, bad], [bad], bad):
            for ask_many in (ENGINE.evaluate_many, ENGINE.evaluate_many_json):
                with suppress(TypeError, ValueError):
                    ask_many(items)
        ENGINE.evaluate_object_json({"action_type": bad})
        ENGINE.evaluate_objects_json([{"action_type": f"{number}"}, {"action_type": bad}, bad])
    with suppress(UnicodeEncodeError):
        ENGINE.evaluate_json("\ud800")
    with suppress(UnicodeEncodeError):
        ENGINE.evaluate_many_json([("a" * 5_000, "", "", None), ("\ud800", "", "", None)])


def compile_(number: int) -> None:
    """Compiling, also what cannot be compiled."""
    if number % COMPILES:
        return
    made = compile_policy(POLICY, condition=_held)
    made.evaluate("read")
    with suppress(ValueError):
        compile_policy(POLICY, condition=_refuses)
    with suppress(TypeError):
        Engine(POLICY)  # type: ignore[arg-type, call-arg]


def _refuses(written: Mapping[str, Any]) -> None:
    raise ValueError(f"{len(written)} conditions cannot be compiled")


# --- what leaks, so that it is seen to be seen -----------------------------------------------------

_kept: list[object] = []
_libc = ctypes.CDLL(None)


def leak_objects(number: int) -> None:
    """Keeps an object of each turn."""
    _kept.append(ENGINE.evaluate_json("read", f"{number}"))


def leak_memory(_: int) -> None:
    """Keeps a block that Python does not know of."""
    # SOURCE: calloc(3). What is not written to would not be resident.
    _libc.memset(ctypes.c_void_p(_libc_malloc(128)), 1, 128)


_libc_malloc = _libc.malloc
_libc_malloc.restype = ctypes.c_void_p


def leak_references(_: int) -> None:
    """Counts a reference to a shared decision that nobody has."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(DECISIONS[0]))


WORK: dict[str, Callable[[int], None]] = {
    "decide": decide,
    "batch": batch,
    "json": to_json,
    "values": values,
    "indeterminate": indeterminate,
    "refused": refused,
    "compile": compile_,
    "leak objects": leak_objects,
    "leak memory": leak_memory,
    "leak references": leak_references,
}


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _sizes() -> dict[str, int]:
    gc.collect()
    shared = [ENGINE, POLICY, *POLICY.rules, *DECISIONS, *PATTERNS, *TYPES, _held, _raises]
    return {
        "blocks": sys.getallocatedblocks(),
        "references": sum(map(sys.getrefcount, shared)) + sys.getrefcount(None),
        "resident_bytes": _resident_bytes(),
    }


def grown(work: Callable[[int], None]) -> dict[str, int]:
    """What has grown by so many turns, after a warm-up."""
    for number in range(WARM_UP):
        work(number)
    _sizes()
    before = _sizes()
    for number in range(TIMES):
        work(number)
    after = _sizes()
    return {name: after[name] - before[name] for name in before}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(grown(WORK[sys.argv[1]])))
