"""What it takes from a policy's document to an engine that decides by it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from time import perf_counter
from typing import Any

import orjson
import yaml

from aegis import Policy
from aegis.bench import workload
from aegis.bench.measure import figures, quiet, ratio, turns

YAML_RULES = 2_000


def loading(rules: int, rounds: int) -> dict[str, Any]:
    """A policy loaded and compiled, beside the parsers of the texts that it may come in.

    Args:
        rules: Of the policy that is loaded from plain values.
        rounds: How often.

    Returns:
        Milliseconds, and ratios: to load and compile over `orjson.loads` of the same document; to
        load YAML over the C composer of PyYAML alone.
    """
    text = workload.as_text(workload.policy(rules))
    document = json.loads(text)
    in_yaml = yaml.dump(json.loads(workload.as_text(workload.policy(YAML_RULES))))
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(in_yaml)
        file.flush()
        found = turns(
            {
                "orjson": _timed(lambda: orjson.loads(text)),
                "loaded": _timed(lambda: Policy.from_dict(document).engine),
                "composed": _timed(lambda: yaml.compose(in_yaml, Loader=yaml.CSafeLoader)),
                "yaml": _timed(lambda: Policy.from_yaml(file.name)),
            },
            rounds,
            lambda: None,
        )
    return {
        "rules": rules,
        **{f"{name}_ms": figures(values) for name, values in found.items()},
        "ratios": {
            "loaded and compiled over orjson": ratio(found["loaded"], found["orjson"]),
            "YAML over composer": ratio(found["yaml"], found["composed"]),
        },
    }


def _timed(load: Callable[[], object]) -> Callable[[], float]:
    def once() -> float:
        with quiet():
            start = perf_counter()
            load()
            return (perf_counter() - start) * 1_000

    return once
