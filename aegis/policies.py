"""Policies as text: YAML (or JSON) to checked rules, every problem with its line. The only YAML.

Loading is strict because this file is the security boundary: what is not understood is refused,
and all of it at once.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any, Self, TypeVar

import yaml

import aegis_core
from aegis.conditions import compile_conditions
from aegis.errors import PolicyError, Problem, did_you_mean, named, shown
from aegis_core import (
    DEFAULT_RULE,
    Action,
    Approval,
    Engine,
    PolicyDecision,
    PolicyRule,
    RiskLevel,
    compile_policy,
)

__all__ = [
    "LARGEST_POLICY_BYTES",
    "LoadedPolicy",
    "Policy",
    "load_document",
    "load_text",
    "read_policy",
]

LARGEST_POLICY_BYTES = 16 * 1024 * 1024
MOST_EXPANDED_NODES = 100_000
"""How many nodes aliases may add to those that are written."""
DEEPEST_NESTING = 64
_LARGEST_INTEGER = 2**64 - 1
_SMALLEST_INTEGER = -(2**63)

_TOP_KEYS = ("version", "defaults", "rules", "scope", "scope_id", "description")
_DEFAULT_KEYS = ("risk_level", "approval")
_RULE_KEYS = ("name", "description", "match", "risk_level", "approval", "conditions")
_MATCH_KEYS = ("type", "target", "agent")

_HALF_A_PAIR = "holds half of a surrogate pair, which is no character"

_W = TypeVar("_W")


@dataclass(frozen=True)
class Policy(aegis_core.Policy):
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
        checked = _Checker({}).document(_as_document(self))
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
        return _made(cls, load_text(read_policy(path)).policy)

    @classmethod
    def from_dict(cls, document: Mapping[str, Any] | None) -> Self:
        """Load a policy from the mapping that a policy file would hold.

        Raises:
            PolicyError: With every problem of the mapping.
        """
        return _made(cls, load_document(document).policy)

    @cached_property
    def engine(self) -> Engine:
        """The compiled policy; made on first use."""
        return compile_policy(self, condition=compile_conditions)

    def evaluate(self, action: Action) -> PolicyDecision:
        """Decide about one action.

        Raises:
            TypeError: The action's type, target or agent is not text.
        """
        decision = self.engine.evaluate(action.type, action.target, action.agent_id, action.params)
        return PolicyDecision(
            action, decision.risk_level, decision.approval, decision.matched_rule, decision.error
        )

    def evaluate_many(self, actions: Iterable[Action]) -> list[PolicyDecision]:
        """Decide about several actions at one moment, in their order."""
        asked = list(actions)
        decisions = self.engine.evaluate_many(
            [(action.type, action.target, action.agent_id, action.params) for action in asked]
        )
        return [
            PolicyDecision(
                action,
                decision.risk_level,
                decision.approval,
                decision.matched_rule,
                decision.error,
            )
            for action, decision in zip(asked, decisions, strict=True)
        ]

    @cached_property
    def source(self) -> str:
        """The policy as a text that loads as the same policy: JSON, the same for equal policies."""
        return json.dumps(_as_document(self), ensure_ascii=False, sort_keys=True)


_P = TypeVar("_P", bound=Policy)


def _made(kind: type[_P], policy: aegis_core.Policy) -> _P:
    """A policy of what was checked already: `__post_init__` need not do it again."""
    made = object.__new__(kind)
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
    """

    policy: Policy
    source: str
    warnings: tuple[Problem, ...] = ()
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
        return file.read(LARGEST_POLICY_BYTES + 1)


def load_text(text: str | bytes) -> LoadedPolicy:
    """Load a policy from its text.

    Args:
        text: YAML, or JSON of the same shape; bytes are UTF-8 and may start with a byte order mark.

    Raises:
        PolicyError: With every problem of the text, each with its line.
    """
    source = _decoded(text)
    reader = _Reader(source)
    document, lines = reader.read()
    checker = _Checker(lines, reader.problems)
    policy = _made(Policy, checker.document(document))
    return LoadedPolicy(policy, source, tuple(checker.warnings))


def load_document(document: object) -> LoadedPolicy:
    """Load a policy from plain values, as parsed from JSON: problems have keys, but no lines.

    Raises:
        PolicyError: With every problem.
    """
    checker = _Checker({})
    policy = _made(Policy, checker.document(document))
    try:
        source = json.dumps(document, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        source = policy.source
    return LoadedPolicy(policy, source, tuple(checker.warnings))


def _decoded(text: str | bytes) -> str:
    data = text if isinstance(text, bytes) else text.encode(errors="surrogatepass")
    if len(data) > LARGEST_POLICY_BYTES:
        raise PolicyError([Problem(f"over {LARGEST_POLICY_BYTES} bytes; split the policy")])
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise PolicyError([Problem("not UTF-8; save the file as UTF-8", line)]) from None


def _as_document(policy: aegis_core.Policy) -> dict[str, Any]:
    return {
        "defaults": {
            "risk_level": _written(policy.default_risk_level),
            "approval": _written(policy.default_approval),
        },
        "rules": [_written(rule) for rule in policy.rules],
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


# --- text to plain values ------------------------------------------------------------------------

Lines = dict[int, dict[Any, int]]
"""Of each mapping and list, by its `id`: the line of each key or index; of itself, under None."""

_Events: Any = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader

_SURROGATES = re.compile(r"(\\\\)|\\u([dD][89abAB][0-9a-fA-F]{2})\\u([dD][c-fC-F][0-9a-fA-F]{2})")


class _Reader:
    """Builds plain values from the parser's events: no tag is obeyed, nothing is constructed.

    Invariant: what it returns is made of dict, list, str, int, float, bool and None only.
    """

    def __init__(self, source: str) -> None:
        self.is_json = _is_json(source)
        self.lines: Lines = {}
        self.problems: list[Problem] = []
        # Each anchor's value, and how many nodes it stands for; None while it is being read.
        self.anchors: dict[str, tuple[Any, int] | None] = {}
        self.expanded = 0
        self.kept: list[Any] = []  # an `id` stays taken while `lines` speaks of it
        self.loader = _Events(_yaml_of_json(source) if self.is_json else source)

    def read(self) -> tuple[Any, Lines]:
        """The document and its lines; what no policy needs of YAML is left in `problems`.

        Raises:
            PolicyError: The text is no YAML, or cannot be read on.
        """
        try:
            document = self._document()
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line = mark.line + 1 if mark else None
            raise self._refused(f"not YAML: {error.problem or error.context}", line) from None
        except yaml.reader.ReaderError as error:
            raise self._refused(f"not YAML: {error.reason}: {error.character!r}", None) from None
        except yaml.YAMLError as error:
            raise self._refused(f"not YAML: {error}", None) from None
        finally:
            self.loader.dispose()
        return document, self.lines

    def _refused(self, message: str, line: int | None) -> PolicyError:
        return PolicyError([*self.problems, Problem(" ".join(message.split()), line)])

    def _document(self) -> Any:
        self.loader.get_event()  # the start of the stream
        if self.loader.check_event(yaml.StreamEndEvent):
            return None
        self.loader.get_event()  # the start of the document
        document, _ = self._value(self.loader.get_event(), 0)
        self.loader.get_event()  # its end
        event = self.loader.get_event()
        if not isinstance(event, yaml.StreamEndEvent):
            self._problem("a second document; a policy is one document", event)
        return document

    def _problem(self, message: str, event: Any) -> None:
        self.problems.append(Problem(message, event.start_mark.line + 1))

    def _value(self, event: Any, depth: int) -> tuple[Any, int]:
        """A value, and how many nodes it stands for when its aliases are written out."""
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event)
        if event.anchor is not None:
            self.anchors[event.anchor] = None
        if event.tag is not None:
            self._problem(f"tag {shown(event.tag)}; a policy has no tags", event)
        if isinstance(event, yaml.ScalarEvent):
            value, size = self._scalar(event), 1
        elif depth >= DEEPEST_NESTING:
            raise self._refused(
                f"nested deeper than {DEEPEST_NESTING} levels", event.start_mark.line + 1
            )
        elif isinstance(event, yaml.SequenceStartEvent):
            value, size = self._sequence(event, depth + 1)
        else:
            value, size = self._mapping(event, depth + 1)
        if event.anchor is not None:
            self.anchors[event.anchor] = value, size
        return value, size

    def _alias(self, event: Any) -> tuple[Any, int]:
        line = event.start_mark.line + 1
        if event.anchor not in self.anchors:
            raise self._refused(f"alias {shown(event.anchor)} has no anchor", line)
        known = self.anchors[event.anchor]
        if known is None:
            raise self._refused(f"alias {shown(event.anchor)} stands inside itself", line)
        self.expanded += known[1]
        if self.expanded > MOST_EXPANDED_NODES:
            raise self._refused(f"aliases expand to over {MOST_EXPANDED_NODES} nodes", line)
        return known

    def _sequence(self, start: Any, depth: int) -> tuple[list[Any], int]:
        items: list[Any] = []
        lines = self._lines_of(items, start)
        size = 1
        while not isinstance(event := self.loader.get_event(), yaml.SequenceEndEvent):
            lines[len(items)] = event.start_mark.line + 1
            item, nodes = self._value(event, depth)
            items.append(item)
            size += nodes
        return items, size

    def _mapping(self, start: Any, depth: int) -> tuple[dict[str, Any], int]:
        members: dict[str, Any] = {}
        merged: list[tuple[Any, Any]] = []
        lines = self._lines_of(members, start)
        size = 1
        while not isinstance(event := self.loader.get_event(), yaml.MappingEndEvent):
            is_merge = (
                isinstance(event, yaml.ScalarEvent) and event.implicit[0] and event.value == "<<"
            )
            key = "<<" if is_merge else self._key(event, depth)
            value, nodes = self._value(self.loader.get_event(), depth)
            size += 1 + nodes
            if is_merge:
                merged.append((event, value))
            elif key is None:
                continue
            elif key in members:
                self._problem(
                    f"key {shown(key)} stands twice; it was first written in line {lines[key]}",
                    event,
                )
            else:
                members[key] = value
                lines[key] = event.start_mark.line + 1
        for event, value in merged:
            self._merge(event, value, members, lines)
        return members, size

    def _merge(
        self, event: Any, value: Any, members: dict[str, Any], lines: dict[Any, int]
    ) -> None:
        # SOURCE: yaml.org/type/merge: what is written here, or merged earlier, stays.
        for part in value if isinstance(value, list) else [value]:
            if not isinstance(part, dict):
                self._problem(f"`<<` merges mappings, not {named(part)}", event)
                continue
            for key, member in part.items():
                if key not in members:
                    members[key] = member
                    lines[key] = self.lines[id(part)][key]

    def _key(self, event: Any, depth: int) -> str | None:
        value, _ = self._value(event, depth)
        if isinstance(value, str):
            return value
        written = shown(event.value) if isinstance(event, yaml.ScalarEvent) else named(value)
        self._problem(f"key {written} is not text; put it in quotes", event)
        return None

    def _lines_of(self, container: Any, start: Any) -> dict[Any, int]:
        self.kept.append(container)
        lines: dict[Any, int] = {None: start.start_mark.line + 1}
        self.lines[id(container)] = lines
        return lines

    def _scalar(self, event: Any) -> Any:
        text = event.value
        if not event.implicit[0]:
            return text
        if self.is_json:
            return self._number(json.loads(text), event)
        try:
            tag = self.loader.resolve(yaml.ScalarNode, text, (True, False))
            value = self.loader.construct_object(yaml.ScalarNode(tag, text, event.start_mark))
        except (ValueError, OverflowError, yaml.YAMLError):
            self._problem(f"{shown(text)} has no value; put it in quotes if it is text", event)
            return ""
        if isinstance(value, date):
            self._problem(f"{shown(text)} is a date; put it in quotes", event)
            return text
        if value is not None and not isinstance(value, str | bool | int | float):
            self._problem(f"{shown(text)} is not text; put it in quotes", event)
            return text
        return self._number(value, event)

    def _number(self, value: Any, event: Any) -> Any:
        if isinstance(value, float) and not math.isfinite(value):
            self._problem(f"{shown(event.value)} is not a number that JSON has", event)
            return 0
        if isinstance(value, int) and not _SMALLEST_INTEGER <= value <= _LARGEST_INTEGER:
            self._problem(f"{shown(event.value)} does not fit into 64 bits", event)
            return 0
        return value


def _is_json(source: str) -> bool:
    if not source.lstrip().startswith("{"):
        return False
    try:
        json.loads(source, parse_int=str, parse_float=str, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return False
    return True


def _no_constant(name: str) -> None:
    raise ValueError(name)


def _yaml_of_json(source: str) -> str:
    """JSON as a text that YAML 1.1 reads alike, line by line: it knows no tabs, no pairs."""

    def joined(match: re.Match[str]) -> str:
        if match[1]:
            return match[1]
        pair = chr(int(match[2], 16)) + chr(int(match[3], 16))
        return pair.encode("utf-16", "surrogatepass").decode("utf-16")

    return _SURROGATES.sub(joined, source.replace("\t", " "))


# --- plain values to a policy --------------------------------------------------------------------


class _Checker:
    """Checks a document and builds the policy; collects every problem on the way."""

    def __init__(self, lines: Lines, problems: Iterable[Problem] = ()) -> None:
        self.lines = lines
        self.problems = list(problems)
        self.warnings: list[Problem] = []
        self.rule: str | None = None  # the rule that is being read, for messages

    def document(self, document: object) -> aegis_core.Policy:
        """The policy of a document.

        Raises:
            PolicyError: With all problems.
        """
        policy = aegis_core.Policy()
        if document is not None:
            top = self._members(document, "", _TOP_KEYS, "a policy")
            if top is not None:
                policy = self._policy(top)
        if self.problems:
            raise PolicyError(sorted(self.problems, key=lambda problem: problem.line or 0))
        self._warn(policy.rules, document)
        return policy

    def _policy(self, top: Mapping[str, Any]) -> aegis_core.Policy:
        if "version" in top and (top["version"] not in ("1", 1) or top["version"] is True):
            self._problem(
                f'version {shown(top["version"])} is unknown; write `"1"`',
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
            rules = []
        elif not isinstance(rules, list | tuple):
            self._problem(f"must be a list of rules, not {named(rules)}", top, "rules", "rules")
            rules = []
        read = [self._rule(rules, index) for index in range(len(rules))]
        return aegis_core.Policy(tuple([rule for rule in read if rule is not None]), risk, approval)

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
            self._text(match, "type", f"{where}.match.type", "*"),
            self._text(match, "target", f"{where}.match.target", "*"),
            self._text(match, "agent", f"{where}.match.agent", "*"),
        )

    def _conditions(self, rule: Mapping[str, Any], where: str) -> Mapping[str, Any]:
        if "conditions" not in rule:
            return {}
        conditions = rule["conditions"]
        if not isinstance(conditions, Mapping):
            self._problem(
                f"must be a mapping, as in `{{param_gt: {{count: 100}}}}`, not {named(conditions)}",
                rule, "conditions", f"{where}.conditions",
            )  # fmt: skip
            return {}
        try:
            compile_conditions(conditions)
        except PolicyError as error:
            for problem in error.problems:
                path = problem.key.split(".", 1)
                inner = conditions.get(path[0])
                line = self._line(inner, path[1]) if len(path) > 1 else None
                self.problems.append(
                    replace(
                        problem,
                        line=line
                        or self._line(conditions, path[0])
                        or self._line(rule, "conditions"),
                        rule=self.rule,
                        key=f"{where}.conditions.{problem.key}",
                    )
                )
        for key, message in _unwritable(conditions, f"{where}.conditions"):
            self._problem(message, rule, "conditions", key)
        return dict(conditions)

    def _members(
        self, value: object, where: str, known: tuple[str, ...], what: str,
        parent: object = None, key: object = None,
    ) -> Mapping[str, Any] | None:  # fmt: skip
        if not isinstance(value, Mapping):
            said = f"{what} must be a mapping, not {named(value)}"
            if parent is None:
                parent = value
            self._problem(said, parent, key if key is not None else where, where)
            return None
        for member in value:
            at = f"{where}.{member}" if where else str(member)
            if not isinstance(member, str):
                self._problem(
                    f"key {shown(member)} is not text; put it in quotes", value, member, at
                )
            elif member not in known and (where or not member.startswith("x-")):
                hint = did_you_mean(member, known)
                self._problem(f"unknown key {shown(member)}{hint}", value, member, at)
        return value

    def _text(self, members: Mapping[str, Any], key: str, where: str, default: str = "") -> str:
        if key not in members:
            return default
        value = members[key]
        if not isinstance(value, str):
            quotes = "" if value is None else "; put it in quotes"
            self._problem(f"must be text, not {named(value)}{quotes}", members, key, where)
            return default
        if not _is_encodable(value):
            self._problem(_HALF_A_PAIR, members, key, where)
        return value

    def _risk(self, members: Mapping[str, Any], where: str, default: RiskLevel) -> RiskLevel:
        levels = {level.name.lower(): level for level in RiskLevel}
        return self._word(members, "risk_level", where, levels, default, folded=True)

    def _approval(self, members: Mapping[str, Any], where: str, default: Approval) -> Approval:
        approvals = {approval.value: approval for approval in Approval}
        return self._word(members, "approval", where, approvals, default)

    def _word(
        self, members: Mapping[str, Any], key: str, where: str, words: Mapping[str, _W], default: _W,
        *, folded: bool = False,
    ) -> _W:  # fmt: skip
        if key not in members:
            return default
        value = members[key]
        if not isinstance(value, str):
            known = ", ".join(words)
            self._problem(f"must be one of {known}, not {named(value)}", members, key, where)
            return default
        word = value.lower() if folded else value
        if word not in words:
            hint = did_you_mean(value, words)
            self._problem(f"unknown {key} {shown(value)}{hint}", members, key, where)
            return default
        return words[word]

    def _line(self, container: object, key: object) -> int | None:
        lines = self.lines.get(id(container))
        if lines is None:
            return None
        if key not in lines and isinstance(key, str) and key.isdecimal():
            key = int(key)
        return lines.get(key, lines[None])

    def _problem(self, message: str, container: object, key: object, where: str) -> None:
        self.problems.append(Problem(message, self._line(container, key), self.rule, where))

    def _warn(self, rules: tuple[PolicyRule, ...], document: object) -> None:
        written = document.get("rules") if isinstance(document, Mapping) else None
        for index, message in _oddities(rules):
            line = self._line(written, index)
            self.warnings.append(Problem(message, line, rules[index].name, f"rules[{index}]"))


def _unwritable(value: object, where: str, depth: int = 0) -> Iterator[tuple[str, str]]:
    """Where below a value, and what, cannot be written as JSON."""
    if depth > DEEPEST_NESTING:
        yield where, f"nested deeper than {DEEPEST_NESTING} levels"
    elif isinstance(value, str):
        if not _is_encodable(value):
            yield where, _HALF_A_PAIR
    elif isinstance(value, Mapping):
        for key, member in value.items():
            if not isinstance(key, str):
                yield where, f"key {shown(key)} is not text; put it in quotes"
            elif not _is_encodable(key):
                yield where, _HALF_A_PAIR
            yield from _unwritable(member, f"{where}.{key}", depth + 1)
    elif isinstance(value, list | tuple):
        for index, member in enumerate(value):
            yield from _unwritable(member, f"{where}[{index}]", depth + 1)
    elif (isinstance(value, float) and not math.isfinite(value)) or (
        isinstance(value, int) and not _SMALLEST_INTEGER <= value <= _LARGEST_INTEGER
    ):
        yield where, f"{shown(value)} is not a number that JSON has, of 64 bits at most"
    elif value is not None and not isinstance(value, int | float):
        yield where, f"must be a value that JSON has, not {named(value)}"


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _oddities(rules: tuple[PolicyRule, ...]) -> Iterator[tuple[int, str]]:
    """Each rule that is odd, by index, and what is odd about it.

    INVARIANT: a rule that is said never to match never decides.
    """
    names: dict[str, int] = {}
    unconditional: dict[tuple[str, ...], int] = {}
    same: dict[tuple[str, ...], int] = {}
    for index, rule in enumerate(rules):
        if rule.name == DEFAULT_RULE:
            yield index, f"is named {shown(DEFAULT_RULE)}, as what decides where no rule matches"
        if rule.name in names:
            yield (
                index,
                f"has the name of rules[{names[rule.name]}]; records cannot tell them apart",
            )
        names.setdefault(rule.name, index)
        patterns = tuple(
            "*" if set(pattern) == {"*"} else pattern
            for pattern in (rule.match_type, rule.match_target, rule.match_agent)
        )
        conditions = json.dumps(rule.conditions, sort_keys=True, default=repr)
        for covering in (
            unconditional.get(("*", "*", "*")),
            unconditional.get(patterns),
            same.get((*patterns, conditions)),
        ):
            if covering is not None:
                yield (
                    index,
                    (
                        f"can never match: rule `{rules[covering].name}` (rules[{covering}]) before it"
                        " matches all that it does"
                    ),
                )
                break
        if not rule.conditions:
            unconditional.setdefault(patterns, index)
        same.setdefault((*patterns, conditions), index)
