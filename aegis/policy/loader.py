"""Policies: texts and documents to policies that are checked, with what is odd about them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self, TypeVar

import aegis_core
from aegis.documents import (
    read_document,
)
from aegis.errors import PolicyError, Problem
from aegis.policy.checker import Checker
from aegis.policy.conditions import compiler
from aegis.policy.regexes import Searches
from aegis_core import (
    Approval,
    Engine,
    Evaluator,
    PolicyRule,
    RiskLevel,
    compile_policy,
)

__all__ = [
    "MAX_POLICY_BYTES",
    "LoadedPolicy",
    "Policy",
    "decoded_policy",
    "load_document",
    "load_text",
    "read_policy",
]

MAX_POLICY_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True)
class Policy(Evaluator, aegis_core.Policy):
    """Ordered rules and defaults that can be loaded and asked.

    Args:
        rules: The rules, first match wins; unnamed ones become `rule_<index>`.
        default_risk_level: Risk level where no rule matches.
        default_approval: Approval where no rule matches.

    Raises:
        PolicyError: A rule could not stand in a policy file.
    """

    rules: tuple[PolicyRule, ...] = ()
    default_risk_level: RiskLevel = RiskLevel.MEDIUM
    default_approval: Approval = Approval.BLOCK

    def __post_init__(self) -> None:
        checked = Checker({}).policy(_as_document(self))
        object.__setattr__(self, "rules", checked.rules)
        object.__setattr__(self, "default_risk_level", checked.default_risk_level)
        object.__setattr__(self, "default_approval", checked.default_approval)

    @classmethod
    def from_yaml(cls, path: str | Path) -> Self:
        """Load a policy file.

        Args:
            path: A YAML or JSON file of at most 16 MiB.

        Raises:
            PolicyError: With every problem of the file.
            OSError: It cannot be read.
        """
        document = read_document(decoded_policy(read_policy(path)))
        return _made(cls, Checker(document.lines, document.problems).policy(document.value))

    @classmethod
    def from_dict(cls, document: Mapping[str, Any] | None) -> Self:
        """Load a policy from the mapping that a policy file would hold.

        Raises:
            PolicyError: With every problem of the mapping.
        """
        return _made(cls, Checker({}).policy(document))

    @cached_property
    def engine(self) -> Engine:
        """The compiled policy; made on first use."""
        searches = Searches()
        engine = compile_policy(self, condition=compiler(searches))
        searches.compile()
        return engine

    @cached_property
    def source(self) -> str:
        """The policy as a text that loads as the same policy: JSON, the same for equal policies."""
        document = _as_document(self)
        return json.dumps(document, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


_P = TypeVar("_P", bound=Policy)


def _made(kind: type[_P], policy: aegis_core.Policy) -> _P:
    """A policy of what was checked already: `__post_init__` need not do it again."""
    made = kind.__new__(kind)
    object.__setattr__(made, "rules", policy.rules)
    object.__setattr__(made, "default_risk_level", policy.default_risk_level)
    object.__setattr__(made, "default_approval", policy.default_approval)
    return made


@dataclass(frozen=True, slots=True)
class LoadedPolicy:
    """A policy together with the text it came from.

    Attributes:
        policy: The checked policy.
        source: Its text.
        warnings: What is odd about it, though it loads.
        lines: The line of each rule in the text; empty where the policy was not read from one.
    """

    policy: Policy
    source: str
    warnings: tuple[Problem, ...] = ()
    lines: tuple[int | None, ...] = ()
    sha256: str = field(init=False)

    def __post_init__(self) -> None:
        digest = hashlib.sha256(self.source.encode()).hexdigest()
        object.__setattr__(self, "sha256", digest)


def read_policy(path: str | Path) -> bytes:
    """The bytes of a policy file, at most one more than may be loaded.

    Raises:
        OSError: It cannot be read.
    """
    with Path(path).open("rb") as file:
        return file.read(MAX_POLICY_BYTES + 1)


def load_text(text: str | bytes, searches: Searches | None = None) -> LoadedPolicy:
    """Load a policy from its text.

    Args:
        text: YAML, or JSON of the same shape; bytes are UTF-8 and may start with a byte order mark.
        searches: Count what its regular expressions take, and may refuse to; None: those of any policy.

    Raises:
        PolicyError: With every problem of the text, each with its line.
    """
    source = decoded_policy(text)
    document = read_document(source)
    checker = Checker(document.lines, document.problems, document.look_alikes)
    checker.searches = searches or checker.searches
    policy = _made(Policy, checker.policy_with_warnings(document.value))
    lines = checker.lines_of_rules(document.value)
    return LoadedPolicy(policy, source, tuple(checker.warnings.all()), lines)


def load_document(document: object) -> LoadedPolicy:
    """Load a policy from plain values: problems have keys, but no lines.

    Raises:
        PolicyError: With every problem.
    """
    checker = Checker({})
    policy = _made(Policy, checker.policy_with_warnings(document))
    return LoadedPolicy(policy, policy.source, tuple(checker.warnings.all()))


def decoded_policy(text: str | bytes) -> str:
    """A policy's text as it is kept, and as its digest is taken of.

    Raises:
        PolicyError: It is too large, or no text.
    """
    data = text if isinstance(text, bytes) else text.encode(errors="surrogatepass")
    if len(data) > MAX_POLICY_BYTES:
        raise PolicyError([Problem(f"over {MAX_POLICY_BYTES} bytes; split the policy")])
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise PolicyError([Problem("not UTF-8; save the file as UTF-8", line)]) from None


def _as_document(policy: aegis_core.Policy) -> dict[str, Any]:
    rules: Any = policy.rules
    return {
        "defaults": {
            "risk_level": _written(policy.default_risk_level),
            "approval": _written(policy.default_approval),
        },
        "rules": [_written(rule) for rule in rules] if isinstance(rules, list | tuple) else rules,
    }


def _written(value: object) -> object:
    """A value of a policy made in Python as its file would have it; what is none stays."""
    match value:
        case RiskLevel():
            return value.name.lower()
        case Approval():
            return value.value
        case PolicyRule():
            return {
                "name": value.name,
                "match": {
                    "type": value.match_type,
                    "target": value.match_target,
                    "agent": value.match_agent,
                },
                "risk_level": _written(value.risk_level),
                "approval": _written(value.approval),
                "conditions": value.conditions,
            }
        case _:
            return value
