"""Aegis: decides by a policy what AI agents may do, executes it, and keeps an audit."""

__version__ = "2.0.0a1"

from aegis.audit import ResultStatus
from aegis.errors import AegisError, PolicyError
from aegis.execution import Executor, Result
from aegis.policies import Policy
from aegis_core import Action, Approval, PolicyDecision, PolicyRule, RiskLevel

BaseExecutor = Executor
"""The name that agent-aegis has for `Executor`."""

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
