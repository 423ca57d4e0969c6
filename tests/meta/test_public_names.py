"""The public names, pinned: what is exported cannot grow or shrink by accident."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType

import pytest

import aegis
import aegis_core

AEGIS = [
    "Action",
    "AegisError",
    "Approval",
    "BaseExecutor",
    "Executor",
    "Policy",
    "PolicyDecision",
    "PolicyError",
    "PolicyRule",
    "Result",
    "ResultStatus",
    "RiskLevel",
    "__version__",
]

AEGIS_CORE = [
    "DEFAULT_BUDGET",
    "DEFAULT_RULE",
    "Action",
    "AegisError",
    "Approval",
    "Batch",
    "Condition",
    "Decision",
    "Engine",
    "Evaluator",
    "Policy",
    "PolicyDecision",
    "PolicyError",
    "PolicyRule",
    "Problem",
    "RiskLevel",
    "Work",
    "brackets_in",
    "brackets_in_object",
    "compile_policy",
    "covered_rules",
    "may_exceed_64_bits",
    "plain_rules",
]


@pytest.mark.parametrize(("module", "names"), [(aegis, AEGIS), (aegis_core, AEGIS_CORE)])
def test_exported_names_are_these(module: ModuleType, names: list[str]) -> None:
    assert sorted(module.__all__) == sorted(names)


@pytest.mark.parametrize("module", [aegis, aegis_core])
def test_exported_names_exist_and_stand_once(module: ModuleType) -> None:
    assert len(set(module.__all__)) == len(module.__all__)
    assert [name for name in module.__all__ if not hasattr(module, name)] == []


def test_aegis_has_the_names_of_the_engine_itself() -> None:
    for name in ("Action", "Approval", "PolicyDecision", "PolicyRule", "RiskLevel", "PolicyError"):
        assert getattr(aegis, name) is getattr(aegis_core, name)


def test_base_executor_is_the_executor() -> None:
    assert aegis.BaseExecutor is aegis.Executor


def test_risk_levels_and_approvals_have_their_values() -> None:
    assert {level.name: level.value for level in aegis.RiskLevel} == {
        "LOW": 1,
        "MEDIUM": 2,
        "HIGH": 3,
        "CRITICAL": 4,
    }
    assert [approval.value for approval in aegis.Approval] == ["auto", "approve", "block"]


def test_statuses_have_their_values() -> None:
    assert {status.value for status in aegis.ResultStatus} == {
        "success",
        "failed",
        "blocked",
        "denied",
        "skipped",
        "started",
        "interrupted",
        "decided",
    }


HEAVY = ("apsw", "asyncio", "granian", "msgspec", "orjson", "re2", "yaml", "aegis_core")


def test_a_command_imports_only_what_it_needs() -> None:
    """`aegis --version` and completion wait for nothing but click."""
    code = f"import sys, aegis.cli; print(*[name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_unknown_name_is_not_exported() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Polcy'"):
        aegis.Polcy  # noqa: B018
    assert set(aegis.__all__) <= set(dir(aegis))
