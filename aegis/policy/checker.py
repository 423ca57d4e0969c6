"""The checker: plain values to rules, and every problem of them at once.

Checking is strict because a policy file is the security boundary: what is not understood is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

import aegis_core
from aegis.documents import HALF_A_PAIR, Lines, LookAlikes, check_value, is_encodable
from aegis.errors import PolicyError, Problem, Problems
from aegis.messages import json_type, quote, suggest
from aegis.policy.conditions import CONDITIONS, compile_conditions
from aegis.policy.lint import oddities
from aegis.policy.lookalikes import (
    is_ordinary,
    odd_bound,
    odd_expression,
    odd_parameter,
    odd_pattern,
    odd_text,
)
from aegis.policy.regexes import Searches
from aegis_core import Approval, PolicyRule, RiskLevel, plain_rules

__all__ = ["Checker"]

_TOP_KEYS = ("version", "defaults", "rules", "scope", "scope_id", "description")
_DEFAULT_KEYS = ("risk_level", "approval")
_RULE_KEYS = ("name", "description", "match", "risk_level", "approval", "conditions")
_MATCH_KEYS = ("type", "target", "agent")

_DAY = re.compile(r"weekdays\[(\d+)\]")
_ORDERS = ("param_gt", "param_gte", "param_lt", "param_lte")

_SYNONYMS = {
    "action": "approval",
    "effect": "approval",
    "decision": "approval",
    "permission": "approval",
    "access": "approval",
    "verdict": "approval",
    "when": "conditions",
    "if": "conditions",
    "where": "conditions",
    "constraints": "conditions",
    "id": "name",
    "rule": "name",
    "title": "name",
    "comment": "description",
    "severity": "risk_level",
    "on": "match",
    "policies": "rules",
    "permissions": "rules",
    "statements": "rules",
}
"""What other policy languages call the keys of ours."""

_MATCH_SYNONYMS = {
    "action": "type",
    "action_type": "type",
    "tool": "type",
    "name": "type",
    "operation": "type",
    "resource": "target",
    "path": "target",
    "object": "target",
    "url": "target",
    "agent_id": "agent",
    "principal": "agent",
    "subject": "agent",
    "user": "agent",
}

_APPROVAL_SYNONYMS = {
    "allow": "auto",
    "allowed": "auto",
    "permit": "auto",
    "accept": "auto",
    "ask": "approve",
    "review": "approve",
    "confirm": "approve",
    "manual": "approve",
    "require_approval": "approve",
    "deny": "block",
    "denied": "block",
    "forbid": "block",
    "reject": "block",
    "never": "block",
}

_RISK_SYNONYMS = {
    "none": "low",
    "info": "low",
    "minor": "low",
    "moderate": "medium",
    "med": "medium",
    "severe": "critical",
    "crit": "critical",
}

_W = TypeVar("_W")


class Checker:
    """Checks a document and builds the policy; collects every problem on the way."""

    def __init__(
        self,
        lines: Lines,
        problems: Problems | None = None,
        look_alikes: LookAlikes | None = None,
    ) -> None:
        self.lines = lines
        self.searches = Searches()
        self.problems = Problems() if problems is None else problems
        self.look_alikes = look_alikes or {}
        self.warnings = Problems()
        self.warns = False
        self.rule: str | None = None  # the rule that is being read, for messages

    def policy(self, document: object) -> aegis_core.Policy:
        """The policy of a document, whatever is odd about it.

        Raises:
            PolicyError: With all problems.
        """
        policy = aegis_core.Policy()
        if document is not None:
            top = self._members(document, "", _TOP_KEYS, "a policy")
            if top is not None:
                policy = self._policy(top)
        if self.problems:
            raise PolicyError(self.problems.all())
        return policy

    def policy_with_warnings(self, document: object) -> aegis_core.Policy:
        """The policy of a document, and in `warnings` what is odd about it.

        Raises:
            PolicyError: With all problems.

        Cost: several times that of `policy`.
        """
        self.warns = True
        policy = self.policy(document)
        if not isinstance(document, Mapping) or document.get("rules") is None:
            said = "has no rules, so that the defaults decide about every action"
            self._warning(said, document, None, "")
        self._warn(policy.rules, self.lines_of_rules(document))
        return policy

    def lines_of_rules(self, document: object) -> tuple[int | None, ...]:
        """The line of each rule of a document that is a policy."""
        rules = document.get("rules") if isinstance(document, Mapping) else None
        return tuple(self._line(rules, index) for index in range(len(rules or ())))

    def _policy(self, top: Mapping[str, Any]) -> aegis_core.Policy:
        version = top.get("version", "1")
        if version != "1" and (type(version) is not int or version != 1):
            self._problem(
                f'version {quote(top["version"])} is unknown; write `"1"`',
                top,
                "version",
                "version",
            )
        for key in ("scope", "scope_id", "description"):
            self._text(top, key, key)
        risk, approval = RiskLevel.MEDIUM, Approval.BLOCK
        if top.get("defaults") is not None:
            defaults = self._members(top["defaults"], "defaults", _DEFAULT_KEYS, "`defaults`", top)
            if defaults is not None:
                risk = self._risk(defaults, "defaults.risk_level", risk)
                approval = self._approval(defaults, "defaults.approval", approval)
        rules = top.get("rules")
        if rules is None:
            rules = []  # an empty `rules:` is fine
        elif not isinstance(rules, list | tuple):
            self._problem(f"must be a list of rules, not {json_type(rules)}", top, "rules", "rules")
            rules = []
        read = [
            self._rule(rules, index) if rule is None else rule
            for index, rule in enumerate(self._plain_rules(rules))
        ]
        return aegis_core.Policy(tuple([rule for rule in read if rule is not None]), risk, approval)

    def _plain_rules(self, rules: Any) -> list[PolicyRule | None]:
        """The rules about which there is nothing to say; None for each of the others."""
        if self.warns and self.look_alikes:
            return [None] * len(rules)
        plain = plain_rules(rules)
        if not self.warns:
            return plain
        return [rule if rule is None or is_ordinary(rule) else None for rule in plain]

    def _rule(self, rules: Any, index: int) -> PolicyRule | None:
        where, self.rule = f"rules[{index}]", f"rule_{index}"
        written = rules[index]
        name = written.get("name") if isinstance(written, Mapping) else None
        if isinstance(name, str) and name:
            self.rule = name
        rule = self._members(written, where, _RULE_KEYS, "a rule", rules, index)
        if rule is None:
            self.rule = None
            return None
        self._text(rule, "name", f"{where}.name")
        self._text(rule, "description", f"{where}.description")
        if "approval" not in rule:
            any_action = (
                "" if {"match", "conditions"} & rule.keys() else "matches every action and "
            )
            said = f"{any_action}has no `approval`, which means `approve`; write the one you mean"
            self._warning(said, rules, index, where)
        match_type, match_target, match_agent = self._patterns(rule, where)
        made = PolicyRule(
            match_type,
            match_target,
            match_agent,
            self._risk(rule, f"{where}.risk_level", RiskLevel.MEDIUM),
            self._approval(rule, f"{where}.approval", Approval.APPROVE),
            self.rule,
            self._conditions(rule, where),
        )
        self.rule = None
        return made

    def _patterns(self, rule: Mapping[str, Any], where: str) -> tuple[str, str, str]:
        if "match" not in rule:
            return "*", "*", "*"
        match = self._members(
            rule["match"], f"{where}.match", _MATCH_KEYS, "`match`", rule, "match"
        )
        if match is None:
            return "*", "*", "*"
        return (
            self._pattern(match, "type", f"{where}.match.type"),
            self._pattern(match, "target", f"{where}.match.target"),
            self._pattern(match, "agent", f"{where}.match.agent"),
        )

    def _pattern(self, match: Mapping[str, Any], key: str, where: str) -> str:
        if isinstance(match.get(key), list | tuple):
            self._problem(
                "must be one pattern, not a list; write a rule for each", match, key, where
            )
            return "*"
        pattern = self._text(match, key, where, "*")
        for said in odd_pattern(pattern):
            self._warning(said, match, key, where)
        return pattern

    def _conditions(self, rule: Mapping[str, Any], where: str) -> Mapping[str, Any]:
        if "conditions" not in rule:
            return {}
        conditions = rule["conditions"]
        if not isinstance(conditions, Mapping):
            self._problem(
                f"must be a mapping, as in `{{param_gt: {{count: 100}}}}`, not {json_type(conditions)}",
                rule, "conditions", f"{where}.conditions",
            )  # fmt: skip
            return {}
        unwritable = check_value(conditions, f"{where}.conditions")
        for key, message in unwritable:
            self._problem(message, rule, "conditions", key)
        if unwritable:  # what holds itself could not be compiled in any time
            return {}
        try:
            compile_conditions(conditions, self.searches)
        except PolicyError as error:
            for problem in error.problems:
                line = self._line_of_condition(conditions, problem.key)
                key = f"{where}.conditions.{problem.key}"
                line = line or self._line(rule, "conditions")
                self.problems.append(replace(problem, line=line, rule=self.rule, key=key))
        for name, value in conditions.items():
            self._warn_of_look_alikes(conditions, name, value, f"{where}.conditions")
            if name.startswith("param_"):
                self._warn_of_parameters(name, value, f"{where}.conditions.{name}")
        return dict(conditions)

    def _line_of_condition(self, conditions: Mapping[str, Any], key: str) -> int | None:
        """The line of a key as `compile_conditions` writes it: `weekdays[1]`, `param_gt.count`."""
        day = _DAY.fullmatch(key)
        name, _, parameter = ("weekdays", "", int(day[1])) if day else key.partition(".")
        line = self._line(conditions.get(name), parameter) if parameter != "" else None
        return line or self._line(conditions, name)

    def _warn_of_look_alikes(self, container: Any, key: Any, value: Any, where: str) -> None:
        """Warn of a condition's scalars that are not what they look like."""
        where = f"{where}[{key}]" if isinstance(key, int) else f"{where}.{key}"
        said = self.look_alikes.get(id(container), {}).get(key)
        if said is not None:
            self._warning(said, container, key, where)
        if isinstance(value, Mapping):
            for name, member in value.items():
                self._warn_of_look_alikes(value, name, member, where)
        elif isinstance(value, list | tuple):
            for index, member in enumerate(value):
                self._warn_of_look_alikes(value, index, member, where)
        elif isinstance(value, str):
            for said in odd_text(value):
                self._warning(said, container, key, where)

    def _warn_of_parameters(self, name: str, parameters: object, where: str) -> None:
        for parameter, wanted in parameters.items() if isinstance(parameters, Mapping) else ():
            odd = [*odd_parameter(parameter)] if isinstance(parameter, str) else []
            if name == "param_matches" and isinstance(wanted, str):
                odd += odd_expression(wanted)
            elif name in _ORDERS and isinstance(wanted, str):
                odd += odd_bound(wanted)
            for said in odd:
                self._warning(said, parameters, parameter, f"{where}.{parameter}")

    def _members(
        self, value: object, where: str, known: tuple[str, ...], what: str,
        parent: object = None, key: object = None,
    ) -> Mapping[str, Any] | None:  # fmt: skip
        if not isinstance(value, Mapping):
            said = f"{what} must be a mapping, not {json_type(value)}"
            if parent is None:
                parent = value
            self._problem(said, parent, key if key is not None else where, where)
            return None
        for member in value:
            at = f"{where}.{member}" if where else str(member)
            if not isinstance(member, str):
                self._problem(
                    f"key {quote(member)} is not text; put it in quotes", value, member, at
                )
            elif member not in known and (where or not member.startswith("x-")):
                hint = _hint(member, known)
                self._problem(f"unknown key {quote(member)}{hint}", value, member, at)
        return value

    def _text(self, members: Mapping[str, Any], key: str, where: str, default: str = "") -> str:
        if key not in members:
            return default
        value = members[key]
        if not isinstance(value, str):
            quotes = "; put it in quotes" if isinstance(value, bool | int | float) else ""
            self._problem(f"must be text, not {json_type(value)}{quotes}", members, key, where)
            return default
        if not is_encodable(value):
            self._problem(HALF_A_PAIR, members, key, where)
        return value

    def _risk(self, members: Mapping[str, Any], where: str, default: RiskLevel) -> RiskLevel:
        levels = {level.name.lower(): level for level in RiskLevel}
        return self._word(
            members, "risk_level", where, levels, default, _RISK_SYNONYMS, folded=True
        )

    def _approval(self, members: Mapping[str, Any], where: str, default: Approval) -> Approval:
        approvals = {approval.value: approval for approval in Approval}
        return self._word(members, "approval", where, approvals, default, _APPROVAL_SYNONYMS)

    def _word(
        self, members: Mapping[str, Any], key: str, where: str, words: Mapping[str, _W], default: _W,
        synonyms: Mapping[str, str], *, folded: bool = False,
    ) -> _W:  # fmt: skip
        if key not in members:
            return default
        value = members[key]
        if not isinstance(value, str):
            known = ", ".join(words)
            self._problem(f"must be one of {known}, not {json_type(value)}", members, key, where)
            return default
        word = value.lower() if folded else value
        if word not in words:
            hint = suggest(value, words, synonyms)
            self._problem(f"unknown {key} {quote(value)}{hint}", members, key, where)
            return default
        return words[word]

    def _line(self, container: object, key: object) -> int | None:
        lines = self.lines.get(id(container))
        if lines is None:
            return None
        return lines.get(key, lines[None])

    def _problem(self, message: str, container: object, key: object, where: str) -> None:
        self.problems.append(Problem(message, self._line(container, key), self.rule, where))

    def _warning(self, message: str, container: object, key: object, where: str) -> None:
        self.warnings.append(Problem(message, self._line(container, key), self.rule, where))

    def _warn(self, rules: tuple[PolicyRule, ...], lines: tuple[int | None, ...]) -> None:
        for index, message in oddities(rules, lines):
            self.warnings.append(
                Problem(message, lines[index], rules[index].name, f"rules[{index}]")
            )


def _hint(key: str, known: tuple[str, ...]) -> str:
    if known is _RULE_KEYS and key in _MATCH_KEYS:
        return "; it belongs under `match`"
    if known is _RULE_KEYS and key in CONDITIONS:
        return "; it belongs under `conditions`"
    synonyms = _MATCH_SYNONYMS if known is _MATCH_KEYS else _SYNONYMS
    meant = synonyms.get(key.lower())
    return suggest(key, known, synonyms if meant in known else {})
