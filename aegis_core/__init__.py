"""The engine: compiles a policy into an image of tries and decides by it.

Pure: no input or output, no clock, no logging; the standard library only.
"""

from aegis_core.brackets import brackets_in, brackets_in_object, may_exceed_64_bits
from aegis_core.coverage import covered_rules
from aegis_core.engine import Batch, Engine, Evaluator, compile_policy
from aegis_core.errors import AegisError, PolicyError, Problem
from aegis_core.model import DEFAULT_RULE, Approval, Condition, Policy, RiskLevel
from aegis_core.values import Action, Decision, PolicyDecision, PolicyRule, plain_rules
from aegis_core.work import DEFAULT_BUDGET, Work

__all__ = [
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
