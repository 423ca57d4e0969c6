"""Aegis: decides by a policy what AI agents may do, executes it, and keeps an audit.

What it exports is imported when it is first asked for, so that a command loads only what it needs.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from aegis._version import __version__

if TYPE_CHECKING:
    from aegis.audit import ResultStatus
    from aegis.errors import AegisError, PolicyError
    from aegis.execution.executors import Executor, Result
    from aegis.execution.executors import Executor as BaseExecutor
    from aegis.policy.loader import Policy
    from aegis_core import Action, Approval, PolicyDecision, PolicyRule, RiskLevel

__all__ = [
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

_HOMES = {
    "Action": "aegis_core",
    "AegisError": "aegis.errors",
    "Approval": "aegis_core",
    "BaseExecutor": "aegis.execution.executors",
    "Executor": "aegis.execution.executors",
    "Policy": "aegis.policy.loader",
    "PolicyDecision": "aegis_core",
    "PolicyError": "aegis.errors",
    "PolicyRule": "aegis_core",
    "Result": "aegis.execution.executors",
    "ResultStatus": "aegis.audit",
    "RiskLevel": "aegis_core",
}
_OTHER_NAMES = {"BaseExecutor": "Executor"}  # that agent-aegis has


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'aegis' has no attribute {name!r}")
    value = getattr(import_module(home), _OTHER_NAMES.get(name, name))
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
