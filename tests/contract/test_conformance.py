"""The conformance cases: decisions, answers and refusals as data, replayed one by one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from aegis import PolicyError
from aegis.policy.loader import load_text
from aegis.server import create_app
from tests.contract.client import Client, Reply, served

CASES: list[dict[str, Any]] = json.loads(Path(__file__).with_name("cases.json").read_text("utf-8"))

JSON_TEXTS = ("action_params", "result_data")
"""Members whose text is JSON: how it is spaced means nothing."""


def named(case: dict[str, Any]) -> str:
    return str(case["name"])


@pytest.mark.parametrize("case", [case for case in CASES if case.get("starts", True)], ids=named)
def test_case_is_answered_as_recorded(
    case: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_environment(case, monkeypatch)
    captured: dict[str, str] = {}
    with served(create_app(written(case, tmp_path), ":memory:")) as client:
        for step in case["steps"]:
            reply = ask(client, step, captured)
            assert reply.status == step["status"], reply.body
            if step["status"] >= 400:
                assert reply.code
            if "json_contains" in step:
                check(step["json_contains"], reply.json, step.get("volatile", ()))
            for name, path in step.get("capture", {}).items():
                captured[name] = str(at(reply.json, path))


@pytest.mark.one_interface
@pytest.mark.parametrize(
    "case", [case for case in CASES if not case.get("starts", True)], ids=named
)
def test_policy_of_the_case_is_refused(
    case: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_environment(case, monkeypatch)
    with pytest.raises(PolicyError) as refused:
        load_text(case["policy_yaml"])
    assert all(problem.message for problem in refused.value.problems)
    with pytest.raises(PolicyError):
        create_app(written(case, tmp_path), ":memory:")


@pytest.mark.one_interface
def test_names_of_the_cases_are_unique() -> None:
    assert len({case["name"] for case in CASES}) == len(CASES)


@pytest.mark.one_interface
@pytest.mark.parametrize(
    ("expected", "actual"),
    [
        (1, True),
        (1, 1.0),
        ([], [1]),
        ({"a": None}, {}),
        ([1, 2], [2, 1]),
        ({"action_type": "1"}, {"action_type": "1.0"}),
        ({"action_params": '{"a":1}'}, {"action_params": '{"a":true}'}),
        ({"action_params": '{"a":1}'}, {"action_params": '{"a":1,"b":2}'}),
    ],
)
def test_the_comparison_sees_a_difference(expected: Any, actual: Any) -> None:
    with pytest.raises(AssertionError):
        check(expected, actual, ())


def set_environment(case: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (case.get("env") or {}).items():
        monkeypatch.setenv(name, value)


def written(case: dict[str, Any], folder: Path) -> Path:
    path = folder / "policy.yaml"
    path.write_bytes(case["policy_yaml"].encode())
    return path


def ask(client: Client, step: dict[str, Any], captured: dict[str, str]) -> Reply:
    path = step["path"]
    for name, value in captured.items():
        path = path.replace(f"${{{name}}}", value)
    headers = step.get("headers")
    if "json" in step:
        body = json.dumps(step["json"]).encode()
        headers = {"content-type": "application/json"} | (headers or {})
    elif "raw" in step:
        body = step["raw"].encode()
    elif "raw_hex" in step:
        body = bytes.fromhex(step["raw_hex"])
    elif "raw_gen" in step:
        body = generated(step["raw_gen"])
    else:
        return client.ask(step["method"], path, headers=headers)
    return client.ask(step["method"], path, body=body, headers=headers)


def generated(parts: dict[str, Any]) -> bytes:
    middle = str(parts["fill"]) * int(parts["count"])
    return f"{parts.get('prefix', '')}{middle}{parts.get('suffix', '')}".encode()


def at(value: Any, path: list[Any]) -> Any:
    for step in path:
        value = value[step]
    return value


def check(expected: Any, actual: Any, volatile: Any, where: str = "answer") -> None:
    """Assert that a value holds at least what is expected, type by type."""
    assert type(actual) is type(expected), f"{where}: {actual!r} instead of {expected!r}"
    if isinstance(expected, dict):
        for name, value in expected.items():
            if name in volatile:
                continue
            assert name in actual, f"{where}.{name} is missing"
            check_member(name, value, actual[name], volatile, f"{where}.{name}")
    elif isinstance(expected, list):
        assert len(actual) == len(expected), f"{where}: {actual!r} instead of {expected!r}"
        for index, value in enumerate(expected):
            check(value, actual[index], volatile, f"{where}[{index}]")
    else:
        assert actual == expected, f"{where}: {actual!r} instead of {expected!r}"


def check_member(name: str, expected: Any, actual: Any, volatile: Any, where: str) -> None:
    if name in JSON_TEXTS and isinstance(expected, str) and isinstance(actual, str):
        expected, actual = json.loads(expected), json.loads(actual)
        check(actual, expected, volatile, where)  # the whole text, so in both directions
    check(expected, actual, volatile, where)
