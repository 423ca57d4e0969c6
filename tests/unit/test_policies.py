"""What a policy file may say, what is refused with its line, and what is only warned about."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aegis import Action, Approval, Policy, PolicyError, PolicyRule, RiskLevel
from aegis.policy.conditions import compile_conditions
from aegis.policy.loader import MAX_POLICY_BYTES, load_document, load_text, read_policy
from aegis_core import Problem, compile_policy, reference


def problems_of(text: str | bytes) -> tuple[Problem, ...]:
    """What is wrong with a text."""
    with pytest.raises(PolicyError) as refused:
        load_text(text)
    return refused.value.problems


def in_rule(rest: str) -> str:
    """A policy whose one rule, `r`, begins in line 2 and has this in line 3."""
    return f"rules:\n  - name: r\n    {rest}\n"


def when(condition: str) -> str:
    """A policy whose one rule has this condition in line 4."""
    return in_rule(f"conditions:\n      {condition}")


# --- what is refused -----------------------------------------------------------------------------

WRONG_KEYS: list[tuple[str, int, str | None, str, str]] = [
    ("rule: []", 1, None, "rule", "did you mean `rules`?"),
    ("version: 1\ndefault: {}", 2, None, "default", "did you mean `defaults`?"),
    ("Rules: []", 1, None, "Rules", "did you mean `rules`?"),
    ("zzz: 1", 1, None, "zzz", "known here: defaults, description, rules"),
    ("xy: 1", 1, None, "xy", "unknown key `xy`"),
    ("defaults:\n  risk: low", 2, None, "defaults.risk", "did you mean `risk_level`?"),
    ("defaults:\n  x-a: 1", 2, None, "defaults.x-a", "unknown key"),
    (in_rule("approvel: auto"), 3, "r", "rules[0].approvel", "did you mean `approval`?"),
    (in_rule("condition: {}"), 3, "r", "rules[0].condition", "did you mean `conditions`?"),
    (in_rule("x-note: hello"), 3, "r", "rules[0].x-note", "unknown key"),
    (in_rule("match:\n      typ: x"), 4, "r", "rules[0].match.typ", "did you mean `type`?"),
    (in_rule("match:\n      x-a: x"), 4, "r", "rules[0].match.x-a", "unknown key"),
    (
        when("param_gtt: {a: 1}"),
        4,
        "r",
        "rules[0].conditions.param_gtt",
        "did you mean `param_gt`?",
    ),
    (when("weekday: [1]"), 4, "r", "rules[0].conditions.weekday", "did you mean `weekdays`?"),
    (when("x-a: 1"), 4, "r", "rules[0].conditions.x-a", "unknown condition"),
    (in_rule("action: deny"), 3, "r", "rules[0].action", "did you mean `approval`?"),
    (in_rule("effect: deny"), 3, "r", "rules[0].effect", "did you mean `approval`?"),
    (in_rule("id: a"), 3, "r", "rules[0].id", "did you mean `name`?"),
    (in_rule("type: read"), 3, "r", "rules[0].type", "it belongs under `match`"),
    (in_rule("weekdays: [1]"), 3, "r", "rules[0].weekdays", "it belongs under `conditions`"),
    (in_rule("match: {action: x}"), 3, "r", "rules[0].match.action", "did you mean `type`?"),
    (in_rule("match: {tool: x}"), 3, "r", "rules[0].match.tool", "did you mean `type`?"),
    (in_rule("match: {effect: x}"), 3, "r", "rules[0].match.effect", "known here: agent,"),
    (when("param_ge: {a: 1}"), 4, "r", "rules[0].conditions.param_ge", "mean `param_gte`?"),
    (when("param_geq: {a: 1}"), 4, "r", "rules[0].conditions.param_geq", "mean `param_gte`?"),
    (when("param_leq: {a: 1}"), 4, "r", "rules[0].conditions.param_leq", "mean `param_lte`?"),
    (when("param_ne: {a: 1}"), 4, "r", "rules[0].conditions.param_ne", "no condition says not"),
    (when("param_not_eq: {a: 1}"), 4, "r", "rules[0].conditions.param_not_eq", "says not"),
    (when("not_weekdays: [1]"), 4, "r", "rules[0].conditions.not_weekdays", "says not"),
    (when("param_in: {a: [1]}"), 4, "r", "rules[0].conditions.param_in", "param_matches"),
    (when("time_between: x"), 4, "r", "rules[0].conditions.time_between", "and `time_before`"),
]

WRONG_VALUES: list[tuple[str, int, str | None, str, str]] = [
    ("version: 2", 1, None, "version", 'write `"1"`'),
    ('version: "2"', 1, None, "version", "unknown"),
    ("version: true", 1, None, "version", "`true` is unknown"),
    ("version: 1.5", 1, None, "version", "unknown"),
    ("version: ~", 1, None, "version", "unknown"),
    ("version: [1]", 1, None, "version", "unknown"),
    ("scope: 5", 1, None, "scope", "must be text, not a number; put it in quotes"),
    ("scope_id: ~", 1, None, "scope_id", "must be text, not null"),
    ("description: [a]", 1, None, "description", "must be text, not a list"),
    ("rules: 5", 1, None, "rules", "must be a list of rules, not a number"),
    ("rules: {}", 1, None, "rules", "must be a list of rules, not an object"),
    ("rules: none", 1, None, "rules", "must be a list of rules, not text"),
    ("defaults: []", 1, None, "defaults", "must be a mapping, not a list"),
    ("defaults: {risk_level: ~}", 1, None, "defaults.risk_level", "not null"),
    ("defaults: {risk_level: 3}", 1, None, "defaults.risk_level", "not a number"),
    ("defaults: {risk_level: hihg}", 1, None, "defaults.risk_level", "did you mean `high`?"),
    ("defaults: {risk_level: ' low'}", 1, None, "defaults.risk_level", "unknown risk_level"),
    ("defaults: {approval: BLOCK}", 1, None, "defaults.approval", "did you mean `block`?"),
    ("defaults: {approval: deny}", 1, None, "defaults.approval", "did you mean `block`?"),
    ("defaults: {approval: allow}", 1, None, "defaults.approval", "did you mean `auto`?"),
    ("defaults: {risk_level: severe}", 1, None, "defaults.risk_level", "did you mean `critical`?"),
    ("defaults: {approval: yes}", 1, None, "defaults.approval", "not true or false"),
    ("rules:\n  - ~", 2, "rule_0", "rules[0]", "must be a mapping, not null"),
    ("rules:\n  - {}\n  - text", 3, "rule_1", "rules[1]", "must be a mapping, not text"),
    ("rules:\n  - name: 5", 2, "rule_0", "rules[0].name", "put it in quotes"),
    ("rules:\n  - name: ~", 2, "rule_0", "rules[0].name", "must be text, not null"),
    (in_rule("description: 5"), 3, "r", "rules[0].description", "must be text"),
    (in_rule("approval: Auto"), 3, "r", "rules[0].approval", "did you mean `auto`?"),
    (in_rule("approval:"), 3, "r", "rules[0].approval", "not null"),
    (in_rule("risk_level: 4"), 3, "r", "rules[0].risk_level", "not a number"),
    (in_rule("match:"), 3, "r", "rules[0].match", "must be a mapping, not null"),
    (in_rule("match: delete"), 3, "r", "rules[0].match", "must be a mapping, not text"),
    (in_rule("match: [delete]"), 3, "r", "rules[0].match", "must be a mapping, not a list"),
    (in_rule("match: {type: }"), 3, "r", "rules[0].match.type", "must be text, not null"),
    (in_rule("match: {target: 5}"), 3, "r", "rules[0].match.target", "put it in quotes"),
    (in_rule("match: {agent: [a, b]}"), 3, "r", "rules[0].match.agent", "not a list"),
    (in_rule("match: {type: [read, list]}"), 3, "r", "rules[0].match.type", "a rule for each"),
    (in_rule("match: {type: {a: b}}"), 3, "r", "rules[0].match.type", "be text, not an object"),
    (in_rule("match: {type: no}"), 3, "r", "rules[0].match.type", "not true or false"),
    (in_rule("conditions:"), 3, "r", "rules[0].conditions", "must be a mapping"),
    (in_rule("conditions: []"), 3, "r", "rules[0].conditions", "must be a mapping"),
]

TIME = "rules[0].conditions.time_after"
REGEX = "rules[0].conditions.param_matches.a"
ZONE = "rules[0].conditions.timezone"
DAYS = "rules[0].conditions.weekdays"

WRONG_CONDITIONS: list[tuple[str, int, str | None, str, str]] = [
    (when("time_after: 18:00"), 4, "r", TIME, "write the time in quotes"),
    (when("time_after: 1800"), 4, "r", TIME, "write the time in quotes"),
    (when("time_after: "), 4, "r", TIME, "not null"),
    (when("time_after: '24:00'"), 4, "r", TIME, "`24:00` is not a time"),
    (when("time_after: '12:60'"), 4, "r", TIME, "is not a time"),
    (when("time_after: '7:5'"), 4, "r", TIME, "is not a time"),
    (when("time_after: ' 7:05'"), 4, "r", TIME, "is not a time"),
    (when("time_after: '18:00:00'"), 4, "r", TIME, "is not a time"),
    (when("time_after: '\u0660\u0668:\u0660\u0660'"), 4, "r", TIME, "is not a time"),
    (when('time_after: "18:00\\n"'), 4, "r", TIME, "is not a time"),
    (when("time_after: noon"), 4, "r", TIME, "is not a time"),
    (when("timezone: Mars/Olympus"), 4, "r", ZONE, "unknown time zone `Mars/Olympus`"),
    (when("timezone: ../../etc/passwd"), 4, "r", ZONE, "unknown time zone"),
    (when("timezone: /etc/localtime"), 4, "r", ZONE, "unknown time zone"),
    (when("timezone: ''"), 4, "r", ZONE, "unknown time zone"),
    (when("timezone: 5"), 4, "r", ZONE, "must be text"),
    (when("weekdays: 5"), 4, "r", DAYS, "must be a list of days"),
    (when("weekdays: "), 4, "r", DAYS, "not null"),
    (when("weekdays: [1, 0]"), 4, "r", f"{DAYS}[1]", "`0` is not a day"),
    (when("weekdays: [8]"), 4, "r", f"{DAYS}[0]", "`8` is not a day"),
    (when("weekdays: [true]"), 4, "r", f"{DAYS}[0]", "`true` is not a day"),
    (when("weekdays: ['1']"), 4, "r", f"{DAYS}[0]", "`1` is not a day"),
    (when("weekdays: [monday]"), 4, "r", f"{DAYS}[0]", "`monday` is not a day"),
    (when("param_gt: 5"), 4, "r", "rules[0].conditions.param_gt", "must be a mapping"),
    (when("param_gt: "), 4, "r", "rules[0].conditions.param_gt", "not null"),
    (when("param_gt: {a: }"), 4, "r", "rules[0].conditions.param_gt.a", "null is never a value"),
    (when("param_eq: {a: ~}"), 4, "r", "rules[0].conditions.param_eq.a", "null is never a value"),
    (when("param_contains: {a: ~}"), 4, "r", "rules[0].conditions.param_contains.a", "null"),
    (when("param_gt: {a: true}"), 4, "r", "rules[0].conditions.param_gt.a", "a number or text"),
    (when("param_lte: {a: [1]}"), 4, "r", "rules[0].conditions.param_lte.a", "a number or text"),
    (when("param_matches: {a: 5}"), 4, "r", REGEX, "must be a regular expression"),
    (when("param_matches: {a: '('}"), 4, "r", REGEX, "not a regular expression of RE2"),
    (when("param_matches: {a: '(?=x)'}"), 4, "r", REGEX, "RE2 has no lookaround"),
    (when("param_matches: {a: '(?!x)'}"), 4, "r", REGEX, "RE2 has no lookaround"),
    (when("param_matches: {a: '(?<=x)'}"), 4, "r", REGEX, "RE2 has no lookaround"),
    (when("param_matches: {a: '(?<!x)'}"), 4, "r", REGEX, "RE2 has no lookaround"),
    (when(r"param_matches: {a: '(a)\1'}"), 4, "r", REGEX, "RE2 has no backreference"),
    (when("param_matches: {a: '(.{900}){1}(.{900})'}"), 4, "r", REGEX, "smaller"),
]

WRONG_YAML: list[tuple[str | bytes, int, str]] = [
    ("rules: []\na: b: c", 2, "not YAML"),
    ("rules: [\n", 2, "not YAML"),
    ("rules: []\n\tx-a: 1", 2, "not YAML: a tab may not indent; use blanks"),
    ("rules:\n\t- name: a", 2, "not YAML: a tab may not indent; use blanks"),
    ("rules:\n- name: a\n  \tmatch: {}", 3, "not YAML: a tab may not indent; use blanks"),
    ("rules: []\nx-a: b: c", 2, "put texts that hold `: ` in quotes"),
    ("x-a: &a {}\nrules:\n- <<: *a\n  <<: *a", 4, "key `<<` stands twice; it was first written"),
    ("x-a: &a {}\nx-b: {<<: *a, <<: 5}", 2, "write `<<: [*a, *b]`"),
    ("rules: []\nx-a: '\x07'", 2, "not YAML: the character"),
    ("rules: []\nx-a: *b", 2, "alias `b` has no anchor"),
    ("x-b: 1\nx-a: &a [*a]", 2, "alias `a` stands inside itself"),
    ("x-b: 1\nx-a: &a\n  b: *a", 3, "alias `a` stands inside itself"),
    ("rules: []\nrules: []", 2, "key `rules` stands twice; it was first written in line 1"),
    ("rules:\n- name: a\n  'name': b", 3, "key `name` stands twice"),
    ('{"rules": [],\n "rules": []}', 2, "key `rules` stands twice"),
    ("x-b: 1\nx-a: !!str a", 2, "tags are not taken"),
    ("x-b: 1\nx-a: !!python/object/apply:os.system [x]", 2, "tags are not taken"),
    ("rules: !list []", 1, "tag `!list`"),
    ("rules: ! []", 1, "tags are not taken"),
    ("x-a: 1\n!!str x-b: 2", 2, "tags are not taken"),
    ("rules: []\n---\nrules: []", 2, "only one is taken"),
    ("rules: []\n1: x", 2, "key `1` is not text; put it in quotes"),
    ("rules: []\non: x", 2, "key `on` is not text; put it in quotes"),
    ("rules: []\n~: x", 2, "is not text; put it in quotes"),
    ("rules: []\n? [a]\n: x", 2, "is not text; put it in quotes"),
    ("rules: []\nx-a: 2026-01-31", 2, "`2026-01-31` is a date; put it in quotes"),
    ("rules: []\nx-a: 2026-01-31T18:00:00Z", 2, "is a date; put it in quotes"),
    ("rules: []\nx-a: 2026-13-31", 2, "put it in quotes if it is text"),
    ("rules: []\nx-a: .nan", 2, "`.nan` is not a number that JSON has"),
    ("rules: []\nx-a: -.inf", 2, "is not a number that JSON has"),
    ("rules: []\nx-a: 1.0e+999", 2, "is not a number that JSON has"),
    ("rules: []\nx-a: " + "9" * 5_000, 2, ""),
    ("rules: []\nx-a: 0x" + "f" * 5_000, 2, "of at most 4300 digits"),
    ('{"rules": [],\n "x-a": ' + "9" * 5_000 + "}", 2, "of at most 4300 digits"),
    ('{"rules": [],\n "x-a": 1e999}', 2, "is not a number that JSON has"),
    ('{"rules": [],\n "x-a": NaN}', 2, "is not a number that JSON has"),
    ('{"rules": [],\n "x-a": -Infinity}', 2, "is not a number that JSON has"),
    ("rules: []\nx-a: =", 2, "put it in quotes"),
    ("rules:\n- <<: 5", 2, "`<<` merges mappings, not a number"),
    ('rules: []\nx-a: "\\ud800"', 2, "not YAML"),
    ('{"rules": [],\n "x-a": "\\ud800"}', 2, ""),
    (b"rules: []\nx-a: \xff", 2, "not UTF-8"),
    ("rules: []\n".encode("utf-16"), 1, "not UTF-8"),
    ("- rules", 1, "a policy must be a mapping, not a list"),
    ("[" * 65 + "]" * 65, 1, "nested deeper than 64 levels"),
    ("x-a: " + "[" * 100_000, 1, "nested deeper than 64 levels"),
    ("x-a: " + "{a: " * 5_000, 1, "nested deeper than 64 levels"),
]


@pytest.mark.parametrize("case", [*WRONG_KEYS, *WRONG_VALUES, *WRONG_CONDITIONS])
def test_mistake_is_refused_with_its_line_rule_and_key(
    case: tuple[str, int, str | None, str, str],
) -> None:
    text, line, rule, key, message = case
    (problem,) = problems_of(text)
    assert (problem.line, problem.rule, problem.key) == (line, rule, key)
    assert message in problem.message


@pytest.mark.parametrize("case", WRONG_YAML, ids=lambda case: repr(case[0][:40]))
def test_what_no_policy_needs_of_yaml_is_refused_with_its_line(
    case: tuple[str | bytes, int, str],
) -> None:
    text, line, message = case
    (problem,) = problems_of(text)
    assert problem.line == line
    assert message in problem.message


PLACES: list[tuple[str, int, str | None, str]] = [
    ("rules:\n- name: pay\n  approval: block\n  approval: auto", 4, "pay", "rules[0].approval"),
    ("rules:\n- approval: block\n  approval: auto\n  name: pay", 3, "pay", "rules[0].approval"),
    ("rules:\n- {}\n- approval: auto\n  approval: auto", 4, "rule_1", "rules[1].approval"),
    ("rules:\n- name: a\n  name: b", 3, "a", "rules[0].name"),
    (
        when("param_eq: {d: 2026-01-31}"),
        4,
        "r",
        "rules[0].conditions.param_eq.d",
    ),
    (when("param_eq: {d: [1, .nan]}"), 4, "r", "rules[0].conditions.param_eq.d[1]"),
    (when("param_eq: {d: !x 1}"), 4, "r", "rules[0].conditions.param_eq.d"),
    (when("param_eq: {d: .nan}"), 4, "r", "rules[0].conditions.param_eq.d"),
    (when("param_eq: {5: x}"), 4, "r", "rules[0].conditions.param_eq.5"),
    (in_rule("<<: 5"), 3, "r", "rules[0].<<"),
    ("x-a: &a {}\nrules:\n- name: a\n  <<: *a\n  <<: *a", 5, "a", "rules[0].<<"),
    ("rules:\n- name: a\n\tmatch: {}", 3, "rule_0", "rules[0].name"),
    ("rules:\n- name: a\n  match: {type: *b}", 3, "a", "rules[0].match.type"),
    ("rules:\n- name: a\n  match: {type: *}", 3, "a", "rules[0].match.type"),
    ("rules:\n- 2026-01-31", 2, "rule_0", "rules[0]"),
    ("defaults: {approval: auto, approval: block}", 1, None, "defaults.approval"),
    ("x-rules:\n- {name: a, name: b}", 2, None, "x-rules[0].name"),
    (
        '{"rules": [{"name": "a"},\n{"approval": "auto", "approval": "auto", "name": "b"}]}',
        2,
        "b",
        "rules[1].approval",
    ),
    (
        '{"rules": [{"name": "a", "conditions": {"param_eq": {"n": [1,\n1e999]}}}]}',
        2,
        "a",
        "rules[0].conditions.param_eq.n[1]",
    ),
    ('{"rules": [{}, {"match": {}}],\n"rules": []}', 2, None, "rules"),
]


@pytest.mark.parametrize("case", PLACES, ids=lambda case: repr(case[0][:40]))
def test_problem_that_is_found_while_a_text_is_read_has_line_rule_and_key(
    case: tuple[str, int, str | None, str],
) -> None:
    text, line, rule, key = case
    problem = problems_of(text)[0]
    assert (problem.line, problem.rule, problem.key) == (line, rule, key)


@pytest.mark.parametrize("text", ["5", "'rules'", "true", '"a: b"'])
def test_document_that_is_no_mapping_is_refused(text: str) -> None:
    (problem,) = problems_of(text)
    assert "a policy must be a mapping" in problem.message


def test_all_problems_are_reported_at_once_in_the_order_of_the_text() -> None:
    text = """\
versoin: 1
defaults: {approval: maybe}
rules:
  - name: a
    name: b
    match: {typ: x, target: 5}
    approval: no
  - conditions:
      time_after: 18:00
      param_gt: {a: ~, b: true}
      param_matches:
        c: '('
      nope: 1
x-date: 2026-01-31
"""
    problems = problems_of(text)
    assert [problem.line for problem in problems] == [1, 2, 5, 6, 6, 7, 9, 10, 10, 12, 13, 14]


def test_each_wrong_day_is_reported() -> None:
    keys = [problem.key for problem in problems_of(when("weekdays: [0, 1, 8, x]"))]
    assert keys == [f"{DAYS}[0]", f"{DAYS}[2]", f"{DAYS}[3]"]


def test_error_is_a_value_error_that_says_every_problem() -> None:
    with pytest.raises(ValueError, match=r"unknown key `a`.*unknown key `b`") as refused:
        load_text("a: 1\nb: 2")
    assert isinstance(refused.value, PolicyError)
    assert len(refused.value.problems) == 2


@pytest.mark.parametrize("case", [*WRONG_KEYS, *WRONG_VALUES, *WRONG_CONDITIONS])
def test_message_is_one_printable_line(case: tuple[str, int, str | None, str, str]) -> None:
    (problem,) = problems_of(case[0])
    assert str(problem).isprintable()
    assert problem.message


# --- sizes ---------------------------------------------------------------------------------------


def test_file_of_16_mebibytes_is_read_and_a_larger_one_refused(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_bytes(b"rules: []\n#".ljust(MAX_POLICY_BYTES, b"x"))
    assert Policy.from_yaml(path).rules == ()
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(PolicyError, match=f"over {MAX_POLICY_BYTES} bytes"):
        Policy.from_yaml(path)


def test_no_more_of_a_file_is_read_than_tells_that_it_is_too_large(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    with path.open("wb") as file:
        file.truncate(10 * MAX_POLICY_BYTES)
    assert len(read_policy(path)) == MAX_POLICY_BYTES + 1


def test_size_is_counted_in_bytes() -> None:
    (problem,) = problems_of("rules: []\n#" + "é" * (MAX_POLICY_BYTES // 2))
    assert "bytes" in problem.message


def test_aliases_that_amplify_are_refused_at_once() -> None:
    lines = ["x-a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"x-a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    started = time.monotonic()
    (problem,) = problems_of("\n".join(lines))
    assert "aliases expand to over 100000 nodes" in problem.message
    assert problem.line is not None
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("text", ["x-a: &a [1, 2]\nx-b: [*a, *a]", "x-a: &a 1\nx-b: *a"])
def test_modest_aliases_are_fine(text: str) -> None:
    assert load_text(text).policy.rules == ()


def test_rule_written_by_alias_is_a_rule() -> None:
    loaded = load_text(
        "rules:\n- &a {name: a, match: {type: x}}\n- {name: b, match: {type: y}}\n- *a"
    )
    assert [rule.name for rule in loaded.policy.rules] == ["a", "b", "a"]


def test_policy_of_ten_thousand_rules_loads() -> None:
    rules = [f"- {{name: r{n}, match: {{type: t{n}}}, approval: auto}}" for n in range(10_000)]
    loaded = load_text("rules:\n" + "\n".join(rules))
    assert len(loaded.policy.rules) == 10_000
    assert loaded.warnings == ()


# --- what is taken -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# nothing",
        "---\n...\n",
        "null",
        "~",
        "{}",
        "rules:",
        "rules: []",
        "defaults:",
        "defaults: {}",
        "rules: ~\ndefaults: ~",
        b"\xef\xbb\xbfrules: []",
        "version: 1",
        'version: "1"',
        "scope: a\nscope_id: b\ndescription: c\nx-owner: {any: [thing, 1, ~, true]}",
    ],
)
def test_nothing_but_the_defaults_is_a_policy_that_blocks(text: str | bytes) -> None:
    policy = load_text(text).policy
    assert policy.rules == ()
    assert policy.default_approval is Approval.BLOCK
    assert policy.default_risk_level is RiskLevel.MEDIUM


def test_what_a_rule_leaves_out_has_its_default() -> None:
    (rule,) = load_text("rules: [{}]").policy.rules
    assert rule == PolicyRule("*", "*", "*", RiskLevel.MEDIUM, Approval.APPROVE, "rule_0", {})


@pytest.mark.parametrize("name", ["", "name: '', "])
def test_unnamed_rule_is_called_by_its_index(name: str) -> None:
    rules = load_text(f"rules: [{{match: {{type: a}}}}, {{{name}match: {{type: b}}}}]").policy.rules
    assert [rule.name for rule in rules] == ["rule_0", "rule_1"]


@pytest.mark.parametrize("word", ["low", "LOW", "Low", "lOW"])
def test_risk_level_is_taken_in_any_case(word: str) -> None:
    policy = load_text(f"defaults: {{risk_level: {word}}}\nrules: [{{risk_level: {word}}}]").policy
    assert (policy.default_risk_level, policy.rules[0].risk_level) == (RiskLevel.LOW,) * 2


def test_whole_rule_is_read() -> None:
    text = """\
rules:
  - name: no_deletes
    description: free text
    match: {type: "delete*", target: "prod-*", agent: "billing-*"}
    risk_level: critical
    approval: block
    conditions: {param_gt: {count: 100}, time_after: "18:00", weekdays: [1, 7]}
"""
    (rule,) = load_text(text).policy.rules
    conditions = {"param_gt": {"count": 100}, "time_after": "18:00", "weekdays": [1, 7]}
    assert rule == PolicyRule(
        "delete*",
        "prod-*",
        "billing-*",
        RiskLevel.CRITICAL,
        Approval.BLOCK,
        "no_deletes",
        conditions,
    )


def test_merge_keys_are_written_out_and_what_is_written_here_wins() -> None:
    text = """\
x-base: &base {risk_level: low, approval: auto}
x-more: &more {approval: block, description: d}
rules:
  - {<<: *base, name: a, match: {type: a}}
  - {approval: approve, <<: *base, name: b, match: {type: b}}
  - {<<: [*base, *more], name: c, match: {type: c}}
"""
    rules = load_text(text).policy.rules
    assert [rule.approval.value for rule in rules] == ["auto", "approve", "auto"]
    assert {rule.risk_level for rule in rules} == {RiskLevel.LOW}


def test_mistake_that_was_merged_is_told_by_the_line_where_it_stands() -> None:
    (problem,) = problems_of("x-base: &base\n  approval: maybe\nrules:\n  - <<: *base")
    assert (problem.line, problem.key) == (2, "rules[0].approval")


def test_json_is_a_policy_file_too() -> None:
    text = """{
\t"rules": [
\t\t{"name": "\\ud83d\\ude00 \\u00e9 \\\\ud83d", "match": {"type": "a\\tb"},
\t\t "conditions": {"param_gt": {"a": 1e3, "b": 1E-2, "c": -0.0}}}
\t]
}"""
    (rule,) = load_text(text).policy.rules
    assert rule.name == "\U0001f600 é \\ud83d"
    assert rule.match_type == "a\tb"
    assert rule.conditions == {"param_gt": {"a": 1000.0, "b": 0.01, "c": 0.0}}
    assert type(rule.conditions["param_gt"]["a"]) is float


def test_mistake_in_json_has_its_line() -> None:
    (problem,) = problems_of('{\n\t"rules": [\n\t\t{"approval": "maybe"}\n\t]\n}')
    assert (problem.line, problem.key) == (3, "rules[0].approval")


ODD_TEXTS = [
    "\x7f",
    "\x80",
    "\x85",
    "\x9f",
    "\u2028",
    "\u2029",
    "\ufeff",
    "\ufffe",
    "\uffff",
    "a/b",
]
"""What JSON has as it stands, and what YAML refuses, or takes for the end of a line."""


@pytest.mark.parametrize("text", [*ODD_TEXTS, "k" * 1_100])
def test_json_may_hold_any_text_as_it_stands(text: str) -> None:
    written = '{"rules": [{"match": {"type": "<>"}, "conditions": {"param_eq": {"<>": "<>"}}}]}'
    (rule,) = load_text(written.replace("<>", text)).policy.rules
    assert rule.match_type == text
    assert rule.conditions == {"param_eq": {text: text}}


@pytest.mark.parametrize(
    "text",
    [
        '{"rules"\n:\n[]\n}',
        '{"rules":[],"x-a":{"b":1}}',
        '\n\t {"rules" :[ ]\r\n}\n',
        '{"rules": [], "x-a": "a\\/b"}',
    ],
)
def test_json_may_be_spaced_in_any_way(text: str) -> None:
    assert load_text(text).policy.rules == ()


@pytest.mark.parametrize("text", [*ODD_TEXTS, "k" * 1_100])
def test_source_of_a_document_loads_as_the_same_policy(text: str) -> None:
    loaded = load_document(
        {"rules": [{"match": {"type": f"a{text}b"}, "conditions": {"param_eq": {text: text}}}]}
    )
    assert load_text(loaded.source).policy == loaded.policy
    assert load_text(loaded.policy.source).policy == loaded.policy


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**40), 10**40)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text("ab<é😀\t\\"), inner, max_size=4)
    ),
    max_leaves=8,
)


@given(json_values.filter(lambda value: value is not None), st.booleans())
def test_json_means_in_a_file_what_it_means_in_json(value: Any, ascii_only: bool) -> None:
    document = {"rules": [{"conditions": {"param_eq": {"a": value}}}]}
    loaded = load_text(json.dumps(document, ensure_ascii=ascii_only))
    (rule,) = loaded.policy.rules
    read = rule.conditions["param_eq"]["a"]
    assert json.dumps(read, sort_keys=True) == json.dumps(value, sort_keys=True)


def outcome(text: str, line: int) -> Any:
    """What becomes of a text that stands in one line, and what is wrong or odd about it there."""
    try:
        loaded = load_text(text)
    except PolicyError as error:
        return [str(problem).replace(f"line {line}", "line") for problem in error.problems]
    assert {*loaded.lines, *(odd.line for odd in loaded.warnings)} <= {line}
    said = [str(odd).replace(f"line {line}", "line") for odd in loaded.warnings]
    return loaded.policy, said


ODD_DOCUMENTS = [
    '{"rules": [{"name": "a"}, {"name": "a"}]}',
    '{"rules": [{"nam": "a", "approval": "maybe", "match": {"type": 5}}], "x": 1}',
    '{"rules": [{"conditions": {"param_gt": {"a": true}, "weekdays": [1, 9]}}]}',
    '{"rules": [], "rules": []}',
    '{"x-a": {"b": 1, "b": 2}}',
    '{"x-a": NaN}',
    '{"x-a": 1e999}',
    '{"x-a": 18446744073709551616}',
    '{"x-a": -9223372036854775809}',
    '{"x-a": ' + "9" * 5_000 + "}",
    '{"x-a": "\\ud800"}',
    '{"x-\\udc00": 1}',
    '{"x-a": "\\ud83d\\ude00"}',
    '{"x-a": ' + "[" * 63 + "]" * 63 + "}",
    '{"x-a": ' + "[" * 64 + "]" * 64 + "}",
    '{"x-a": ' + "[" * 100_000 + "]" * 100_000 + "}",
    '{"rules": [}',
    "{rules: []}",
    "{}  ",
]


@pytest.mark.parametrize("text", ODD_DOCUMENTS, ids=lambda text: text[:40])
def test_json_in_one_line_is_read_as_json_in_several(text: str) -> None:
    assert outcome(text, 1) == outcome("\n" + text, 2)


def endless(kind: str) -> dict[str, object]:
    value: dict[str, object] = {}
    if kind == "holds itself":
        value["a"] = value["b"] = value
        return value
    value = {"a": 1}
    for _ in range(40):
        value = {"a": value, "b": value}
    return value


@pytest.mark.parametrize("kind", ["holds itself", "used more than once"])
@pytest.mark.parametrize("operator", ["param_eq", "param_contains"])
def test_value_without_an_end_is_refused_at_once(kind: str, operator: str) -> None:
    with pytest.raises(PolicyError, match=f"rules\\[0\\].conditions.{operator}.p.*{kind}"):
        Policy.from_dict({"rules": [{"conditions": {operator: {"p": endless(kind)}}}]})


@pytest.mark.parametrize("kind", ["holds itself", "used more than once"])
def test_value_without_an_end_is_shown_in_part(kind: str) -> None:
    for version in (endless(kind), [object(), endless(kind)]):
        with pytest.raises(PolicyError, match=r"version `.+` is unknown") as refused:
            Policy.from_dict({"version": version})
        assert len(str(refused.value)) < 200


def test_values_that_are_used_again_may_be_nested_to_the_limit_only() -> None:
    part: object = 1
    for _ in range(40):
        part = [part]
    deep: object = [part, part]
    for _ in range(21):
        deep = [deep]
    rule = {"conditions": {"param_eq": {"p": deep}}}
    with pytest.raises(PolicyError, match="nested deeper"):
        Policy.from_dict({"rules": [{"conditions": {"param_eq": {"p": [part, [deep]]}}}]})
    assert Policy.from_dict({"rules": [rule]}).rules


def test_source_and_its_digest_are_kept() -> None:
    loaded = load_text("rules: [] # ä")
    assert loaded.source == "rules: [] # ä"
    assert loaded.sha256 == hashlib.sha256(loaded.source.encode()).hexdigest()


# --- warnings ------------------------------------------------------------------------------------


def warned(*rules: str) -> list[tuple[int | None, str]]:
    """Index of each warned rule, from its line, and what is said."""
    text = "rules:\n" + "".join(
        f"  - {{{rule if 'approval' in rule else f'approval: approve, {rule}'}}}\n"
        for rule in rules
    )
    loaded = load_text(text if rules else "rules: []")
    for warning in loaded.warnings:
        assert warning.line is not None
        assert warning.key == f"rules[{warning.line - 2}]"
    return [(warning.line and warning.line - 2, warning.message) for warning in loaded.warnings]


def test_duplicate_name_is_warned_about() -> None:
    ((index, said),) = warned("name: a, match: {type: x}", "name: a, match: {type: y}")
    assert index == 1
    assert "has the name of rules[0]" in said


def test_name_that_equals_an_unnamed_rules_is_warned_about() -> None:
    ((index, said),) = warned("match: {type: x}", "name: rule_0, match: {type: y}")
    assert index == 1
    assert "has the name of rules[0]" in said


def test_name_of_the_default_is_warned_about() -> None:
    ((index, said),) = warned("name: <default>, match: {type: x}")
    assert index == 0
    assert "`<default>`" in said


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        ("match: {type: x}", "match: {type: x}"),
        (
            "match: {type: x, agent: a}, approval: auto",
            "match: {agent: a, type: x}, approval: block",
        ),
        ("match: {type: x}", "match: {type: x}, conditions: {param_eq: {a: 1}}"),
        ("match: {type: x}, conditions: {param_eq: {a: 1}}",) * 2,
        (
            "conditions: {param_eq: {a: 1, b: 2}, weekdays: [1]}",
            "conditions: {weekdays: [1], param_eq: {b: 2, a: 1}}",
        ),
        ("approval: block", "match: {type: x}"),
        ("match: {type: '*'}", "match: {type: x}, conditions: {param_eq: {a: 1}}"),
        ("match: {type: '**', target: '***'}", "match: {agent: x}"),
        ("match: {type: 'delete*'}", "match: {type: 'delete*', target: prod}"),
        ("match: {type: 'delete*'}", "match: {type: delete_user}"),
        ("match: {type: 'delete*'}", "match: {type: 'delete_*'}"),
        (
            "match: {type: 'a*'}, conditions: {param_eq: {a: 1}}",
            "match: {type: 'ab*'}, conditions: {param_eq: {b: 2, a: 1}, weekdays: [1]}",
        ),
        (
            "conditions: {time_after: '18:00', weekdays: [1, 2]}",
            "conditions: {weekdays: [2, 1, 1], time_after: '18:00', timezone: UTC}, approval: auto",
        ),
        (
            "conditions: {param_matches: {a: x}}",
            "conditions: {param_matches: {a: x, b: y}, param_eq: {c: {d: 1}}}",
        ),
        ("conditions: {param_eq: {a: {b: 1, c: 2}}}", "conditions: {param_eq: {a: {c: 2, b: 1}}}"),
    ],
)
def test_rule_that_an_earlier_one_covers_is_warned_about(earlier: str, later: str) -> None:
    ((index, said),) = warned(f"name: a, {earlier}", f"name: b, {later}")
    assert index == 1
    assert "can never match: rule `a` (rules[0]) on line 2 " in said


@pytest.mark.parametrize(
    ("earlier", "later", "told"),
    [
        ("match: {type: '**'}", "risk_level: medium", "is the same"),
        ("approval: block", "approval: auto", "has the same patterns and conditions"),
        ("risk_level: low", "risk_level: high", "has the same patterns and conditions"),
        ("", "conditions: {weekdays: [1]}", "has the same patterns and needs less"),
        ("", "match: {type: x}", "matches all that it does"),
    ],
)
def test_warning_says_in_what_the_earlier_rule_is_alike(
    earlier: str, later: str, told: str
) -> None:
    ((_, said),) = warned(f"name: a, {earlier}", f"name: b, {later}")
    assert said == f"can never match: rule `a` (rules[0]) on line 2 {told}, and comes first"


def test_warning_about_rules_without_lines_names_none() -> None:
    (warning,) = load_document({"rules": [{"approval": "auto"}, {"approval": "auto"}]}).warnings
    assert warning.message == (
        "can never match: rule `rule_0` (rules[0]) is the same, and comes first"
    )


def test_duplicate_name_is_told_with_both_lines() -> None:
    ((index, said),) = warned("name: a, match: {type: x}", "name: a, match: {type: y}")
    assert index == 1
    assert "has the name of rules[0] on line 2" in said


@pytest.mark.parametrize(
    "rules",
    [
        (),
        ("approval: block",),
        ("match: {type: x}", "match: {type: y}", "approval: block"),
        ("match: {type: x}", "match: {target: x}", "match: {agent: x}"),
        ("match: {type: x}", "match: {type: X}"),
        ("match: {type: x}", "match: {type: 'x*'}", "match: {type: '*'}"),
        ("match: {type: '?*'}", "match: {type: '*'}"),
        ("match: {type: ''}", "match: {type: '*'}"),
        ("match: {type: '[*]'}", "match: {type: '*'}"),
        ("conditions: {param_eq: {a: 1}}", "match: {type: x}"),
        ("conditions: {param_eq: {a: 1}}", "conditions: {param_eq: {a: true}}"),
        ("conditions: {param_eq: {a: 1}}", "conditions: {param_eq: {a: '1'}}"),
        ("conditions: {param_gt: {a: 1}}", "conditions: {param_gte: {a: 1}}"),
        ("conditions: {weekdays: [1]}", ""),
        ("conditions: {weekdays: [1]}", "conditions: {weekdays: [1, 2]}"),
        ("conditions: {param_eq: {a: 1, b: 1}}", "conditions: {param_eq: {a: 1}}"),
        ("conditions: {param_gt: {a: 1}}", "conditions: {param_gt: {b: 1}}"),
        (
            "conditions: {time_after: '18:00'}",
            "conditions: {time_after: '18:00', time_before: '19:00'}",
        ),
        (
            "conditions: {time_after: '22:00', time_before: '06:00'}",
            "conditions: {time_after: '22:00'}",
        ),
        (
            "conditions: {time_after: '18:00'}",
            "conditions: {time_after: '18:00', timezone: Europe/Paris}",
        ),
        (
            "conditions: {weekdays: [1]}",
            "conditions: {weekdays: [1], timezone: Europe/Paris}",
        ),
        ("match: {type: x, target: y}", "match: {type: x}"),
    ],
)
def test_rules_that_can_match_are_not_warned_about(rules: tuple[str, ...]) -> None:
    assert warned(*rules) == []


globs = st.sampled_from([*["*"] * 5, "**", "a", "b", "a*", "?", "", "[ab]", "[!a]", "ab"])
ATOMS: list[dict[str, Any]] = [
    {"param_matches": {"n": "1"}},
    {"param_matches": {"n": "a"}},
    {"param_matches": {"m": "a"}},
    {"param_eq": {"n": 1}},
    {"param_eq": {"n": "a"}},
    {"param_eq": {"m": 1}},
    {"param_gt": {"n": 1}},
    {"param_gt": {"m": "a"}},
    {"time_after": "06:00"},
    {"time_after": "18:00"},
    {"time_before": "18:00"},
    {"weekdays": [4]},
    {"weekdays": [4, 5]},
    {"timezone": "Asia/Tokyo"},
]
small_conditions = st.lists(st.sampled_from(ATOMS), max_size=3).map(
    lambda atoms: {name: value for atom in atoms for name, value in atom.items()}
)
small_rules = st.builds(
    PolicyRule,
    globs,
    globs,
    st.sampled_from(["*", "a"]),
    conditions=small_conditions,
)
small_texts = st.sampled_from(["", "a", "b", "ab", "aa", "c"])
small_params = st.fixed_dictionaries(
    {}, optional=dict.fromkeys("nm", st.sampled_from([1, 2, "a", "b", [], "\ud800"]))
)


@settings(max_examples=300)
@given(
    st.lists(small_rules, min_size=2, max_size=6),
    st.lists(
        st.tuples(small_texts, small_texts, st.just("a") | st.just(""), small_params), max_size=12
    ),
    st.integers(0, 47),
)
def test_rule_that_is_said_never_to_match_never_decides(
    rules: list[PolicyRule], asked: list[tuple[str, str, str, dict[str, Any]]], hour: int
) -> None:
    policy = Policy(tuple(rules))
    said = {
        warning.rule
        for warning in load_text(policy.source).warnings
        if "never match" in warning.message
    }
    engine = compile_policy(policy, condition=compile_conditions, clock=lambda: hour * 3600.0)
    assert said.isdisjoint(engine.evaluate(*one).matched_rule for one in asked)


# --- from Python ---------------------------------------------------------------------------------


def test_policy_made_in_python_names_its_rules() -> None:
    policy = Policy(rules=(PolicyRule("a"), PolicyRule("b", name="mine"), PolicyRule("c", name="")))
    assert [rule.name for rule in policy.rules] == ["rule_0", "mine", "rule_2"]


def test_rules_may_be_a_list() -> None:
    rules: Any = [PolicyRule("a", approval=Approval.AUTO)]
    policy = Policy(rules=rules)
    assert type(policy.rules) is tuple
    assert policy.evaluate(Action("a")).is_allowed


def test_policy_made_in_python_blocks_by_default() -> None:
    decision = Policy().evaluate(Action("a"))
    assert (decision.matched_rule, decision.approval) == ("<default>", Approval.BLOCK)
    assert decision.risk_level is RiskLevel.MEDIUM
    assert decision.is_allowed is False


@pytest.mark.parametrize(
    "rule",
    [
        {"match_type": None},
        {"match_target": 5},
        {"match_agent": ["a"]},
        {"name": None},
        {"risk_level": 5},
        {"risk_level": None},
        {"approval": "maybe"},
        {"approval": None},
        {"conditions": None},
        {"conditions": {"param_gtt": {}}},
        {"conditions": {"param_eq": {"a": None}}},
        {"conditions": {"param_eq": {"a": float("nan")}}},
        {"conditions": {"param_eq": {"a": {1, 2}}}},
        {"conditions": {"param_eq": {"a": b"bytes"}}},
        {"conditions": {"param_eq": {"a": 10**4300}}},
        {"conditions": {"param_eq": {5: 1}}},
        {"conditions": {"param_eq": {"a": "\ud800"}}},
        {"match_type": "\ud800"},
        {"name": "\udfff"},
    ],
)
def test_rule_that_could_not_stand_in_a_file_is_refused_in_python(rule: dict[str, Any]) -> None:
    with pytest.raises(PolicyError) as refused:
        Policy(rules=(PolicyRule(**rule),))
    assert refused.value.problems[0].key.startswith("rules[0]")


@pytest.mark.parametrize("rule", [None, "a", 5])
def test_what_is_no_rule_is_refused_in_python(rule: Any) -> None:
    with pytest.raises(PolicyError):
        Policy(rules=(rule,))


@pytest.mark.parametrize(
    "defaults",
    [{"default_approval": "maybe"}, {"default_approval": None}, {"default_risk_level": 9}],
)
def test_impossible_default_is_refused_in_python(defaults: Any) -> None:
    with pytest.raises(PolicyError):
        Policy(**defaults)


def test_policy_from_a_mapping_is_the_policy_from_its_text() -> None:
    document = {
        "version": "1",
        "defaults": {"risk_level": "low", "approval": "auto"},
        "rules": [{"match": {"type": "a*"}, "conditions": {"param_gt": {"n": 1}}}],
    }
    assert Policy.from_dict(document) == load_text(json.dumps(document)).policy


@pytest.mark.parametrize("document", [None, {}, {"rules": None}, {"rules": ()}])
def test_empty_mapping_is_a_policy(document: Any) -> None:
    assert Policy.from_dict(document) == Policy()


def test_problem_of_a_mapping_has_a_key_and_no_line() -> None:
    with pytest.raises(PolicyError) as refused:
        load_document({"rules": [{"approval": "maybe"}, {"name": "b", "match": {"typ": "x"}}]})
    assert [(problem.line, problem.rule, problem.key) for problem in refused.value.problems] == [
        (None, "rule_0", "rules[0].approval"),
        (None, "b", "rules[1].match.typ"),
    ]


@pytest.mark.parametrize("document", [{5: 1}, {"rules": [{5: 1}]}, [], "rules", 5, {"rules": "a"}])
def test_mapping_that_is_no_policy_is_refused(document: Any) -> None:
    with pytest.raises(PolicyError):
        load_document(document)


def test_mapping_without_end_is_refused() -> None:
    endless: dict[str, Any] = {}
    endless["a"] = endless
    with pytest.raises(PolicyError, match="holds itself"):
        Policy.from_dict({"rules": [{"conditions": {"param_eq": {"a": endless}}}]})


def test_missing_file_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="missing"):
        Policy.from_yaml(tmp_path / "missing.yaml")


def test_path_may_be_text(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text("rules: [{name: a}]")
    assert Policy.from_yaml(str(path)).rules[0].name == "a"


def test_source_of_a_policy_loads_as_the_same_policy() -> None:
    rules = (
        PolicyRule("a*", "é", "😀", RiskLevel.CRITICAL, Approval.AUTO, "a\t\n"),
        PolicyRule(conditions={"param_eq": {"x": [1, 1.0, True, "1", {"a": "\\ud83d"}]}}),
    )
    policy = Policy(rules, RiskLevel.HIGH, Approval.APPROVE)
    assert load_text(policy.source).policy == policy


def test_decision_is_about_its_action() -> None:
    policy = Policy((PolicyRule("a", approval=Approval.AUTO, risk_level=RiskLevel.LOW, name="r"),))
    action = Action("a", "t", {"n": 1})
    decision = policy.evaluate(action)
    assert decision.action is action
    assert (decision.risk_level, decision.approval, decision.matched_rule, decision.error) == (
        RiskLevel.LOW,
        Approval.AUTO,
        "r",
        None,
    )


def test_many_decisions_are_those_of_each() -> None:
    policy = load_text("rules: [{match: {type: 'a*'}, approval: auto}]").policy
    actions = [Action(text) for text in ("a", "b", "ab", "")]
    assert policy.evaluate_many(actions) == [policy.evaluate(action) for action in actions]
    assert policy.evaluate_many(iter(actions)) == policy.evaluate_many(actions)
    assert policy.evaluate_many([]) == []


def test_undecidable_action_is_blocked_with_the_reason() -> None:
    policy = load_text("rules: [{approval: auto, conditions: {param_gt: {n: 1}}}]").policy
    decision = policy.evaluate(Action("a", params={"n": "x"}))
    assert (decision.is_allowed, decision.matched_rule) == (False, "rule_0")
    assert "param_gt.n" in str(decision.error)


@pytest.mark.parametrize("field", ["type", "target"])
def test_action_whose_text_is_none_is_a_type_error(field: str) -> None:
    values: dict[str, Any] = {"type": "a", field: None}
    with pytest.raises(TypeError):
        Policy().evaluate(Action(**values))


def test_decision_equals_the_reference() -> None:
    loaded = load_text("rules: [{match: {type: '[a-c]?'}, approval: auto}]").policy
    for text in ("ab", "d", "a", "c\n"):
        expected = reference.evaluate(loaded, text, condition=lambda _: None, now=0.0)
        assert loaded.evaluate(Action(text)).matched_rule == expected.matched_rule


def test_action_without_an_agent_has_the_empty_one() -> None:
    policy = Policy((PolicyRule(match_agent="", approval=Approval.AUTO),))
    nobody: Any = None
    assert policy.evaluate(Action("a", agent_id=nobody)).is_allowed
    assert policy.evaluate_many([Action("a", agent_id=nobody)])[0].is_allowed


@pytest.mark.parametrize(
    "text",
    [
        "rules: [{match: {type: " + "a" * 1_000_000 + "}}]",
        "rules:\n"
        + "".join(
            f"- match: {{type: {'a' * n}*, target: {'b' * n}*, agent: {'c' * n}*}}\n"
            for n in range(1, 300)
        ),
    ],
    ids=["a long pattern", "nested in every field"],
)
def test_looking_for_covered_rules_is_bounded(text: str) -> None:
    begun = time.process_time()
    load_text(text)
    assert time.process_time() - begun < 5


def test_past_a_thousand_problems_are_counted() -> None:
    problems = problems_of("rules: [" + "1," * 5_000 + "1]")
    assert len(problems) == 1_001
    assert problems[-1].message == "and 4001 more problems"


def test_text_of_an_error_names_the_first_problems_only() -> None:
    with pytest.raises(PolicyError) as refused:
        load_text("rules: [" + "1," * 500 + "1]")
    assert str(refused.value).endswith("and 491 more")


@pytest.mark.parametrize(
    ("conditions", "said"),
    [
        ("{param_gt: {}}", "without a parameter, which always holds"),
        ("{timezone: UTC}", "neither a time nor weekdays"),
        ("{weekdays: []}", "never matches"),
        ("{time_after: '6:00', time_before: '06:00'}", "never matches"),
        ("{time_before: '00:00'}", "never matches"),
    ],
)
def test_half_written_condition_is_warned_about(conditions: str, said: str) -> None:
    ((_, message),) = warned(f"conditions: {conditions}")
    assert said in message


@pytest.mark.parametrize(
    ("window", "is_odd"),
    [
        ("weekdays: [5], time_after: '22:00', time_before: '06:00'", True),
        ("weekdays: [1, 2], time_after: '22:00', time_before: '6:00'", True),
        ("weekdays: [5], time_after: '22:00', time_before: '00:00'", False),
        ("weekdays: [5], time_after: '06:00', time_before: '22:00'", False),
        ("weekdays: [5], time_after: '22:00'", False),
        ("weekdays: [1, 2, 3, 4, 5, 6, 7], time_after: '22:00', time_before: '06:00'", False),
        ("time_after: '22:00', time_before: '06:00'", False),
    ],
)
def test_weekdays_beside_a_window_over_midnight_are_warned_about(window: str, is_odd: bool) -> None:
    said = [message for _, message in warned(f"conditions: {{{window}}}")]
    assert [message[:40] for message in said] == (
        ["has `weekdays` and a window over midnight"[:40]] if is_odd else []
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rules: [{}]", "matches every action and has no `approval`, which means `approve`"),
        ("rules: [{match: {type: x}}]", "has no `approval`, which means `approve`"),
        ("rules: [{risk_level: low}]", "matches every action and has no `approval`"),
        ('{"rules": [{}]}', "matches every action and has no `approval`"),
        ("", "has no rules, so that the defaults decide about every action"),
        ("# nothing", "has no rules"),
        ("{}", "has no rules"),
        ("rules:", "has no rules"),
        ("version: 1", "has no rules"),
    ],
)
def test_what_is_left_out_is_warned_about(text: str, said: str) -> None:
    (warning,) = load_text(text).warnings
    assert said in warning.message


def test_rule_without_approval_is_warned_about_by_its_line_name_and_key() -> None:
    (warning,) = load_text(
        "rules:\n- {name: a, match: {type: x}, approval: auto}\n- {name: b, risk_level: low}"
    ).warnings
    assert (warning.line, warning.rule, warning.key) == (3, "b", "rules[1]")


def test_policy_without_rules_on_purpose_is_not_warned_about() -> None:
    assert load_text("rules: []").warnings == ()


def test_rule_that_takes_its_approval_from_a_merge_is_not_warned_about() -> None:
    assert load_text("x-a: &a {approval: auto}\nrules: [{<<: *a}]").warnings == ()


LOOK_ALIKES = [
    ("param_eq: {a: NO}", "`NO` is read as `false`; put it in quotes if it is text"),
    ("param_eq: {a: on}", "`on` is read as `true`"),
    ("param_eq: {a: 017}", "`017` is read as the number 15"),
    ("param_eq: {a: 0x1F}", "`0x1F` is read as the number 31"),
    ("param_eq: {a: 0b11}", "`0b11` is read as the number 3"),
    ("param_eq: {a: 1_000}", "`1_000` is read as the number 1000"),
    ("param_eq: {a: 1:30}", "`1:30` is read as the number 90"),
    ("param_eq: {a: 1:30.5}", "`1:30.5` is read as the number 90.5"),
    ("param_gt: {a: 1e6}", "`1e6` is read as text, not as a number"),
    ("param_gt: {a: 1.5e3}", "`1.5e3` is read as text"),
    ("param_eq: {a: 08}", "`08` is read as text"),
    ("param_eq: {a: 0o17}", "`0o17` is read as text"),
    ("param_gt:\n        a: 1,000", "`1,000` is read as text"),
    ("param_gt: {a: '100'}", "`100` is text, which no number can be compared with"),
    ("param_lte: {a: '-0.5'}", "`-0.5` is text, which no number can be compared with"),
    ("param_eq: {a: [x, NO]}", "`NO` is read as `false`"),
    ("param_eq: {a: {b: NO}}", "`NO` is read as `false`"),
    ('param_matches: {a: "\\brm\\b"}', "holds a backspace"),
    ("param_matches: {a: 'a{,3}'}", "write `{0,3}`"),
    ("param_contains: {a: 'x\u200b'}", "holds `\\u200b`, which cannot be seen"),
    ("param_contains: {a: “x”}", "`“x”` holds its quotes"),
    ("param_eq:\n        a: |\n          x", "ends with a line's end"),
    ("param_eq: {a: p\u0430y}", "mixes Latin letters with `\u0430`, cyrillic small letter a"),
    ("param_eq: {user.id: 5}", "`user.id` is one parameter of that name"),
    ("param_gt: {'items[0]': 5}", "`items[0]` is one parameter of that name"),
]


@pytest.mark.parametrize(("condition", "said"), LOOK_ALIKES, ids=lambda text: repr(text[:40]))
def test_value_that_is_not_what_it_looks_like_is_warned_about(condition: str, said: str) -> None:
    (warning,) = load_text(when(f"{condition}\n    approval: block")).warnings
    assert said in warning.message
    assert warning.rule == "r"
    assert warning.key.startswith("rules[0].conditions.param_")
    assert warning.message.isprintable()


@pytest.mark.parametrize(
    "text",
    [
        "x-a: &a NO\nrules: [{approval: auto, conditions: {param_eq: {c: *a}}}]",
        "x-a: &a {c: NO}\nrules: [{approval: auto, conditions: {param_eq: {<<: *a}}}]",
    ],
)
def test_look_alike_is_warned_about_where_it_is_used(text: str) -> None:
    (warning,) = load_text(text).warnings
    assert (warning.key, warning.rule) == ("rules[0].conditions.param_eq.c", "rule_0")


@pytest.mark.parametrize(
    "condition",
    [
        "param_eq: {a: true, b: False, c: 5, d: -5, e: 0.5, f: 1.50, g: 1.5e+3, h: 0, i: text}",
        "param_eq: {a: 'NO', b: '017', c: \"1e6\", d: '1:30'}",
        "param_matches: {a: '\\brm\\b', b: '^a{0,3}$', c: \"a\\n\\tb\", d: '[\u0430-\u044f]+'}",
        "param_contains: {a: \"\\n\", b: '\u0440\u0430\u0443', c: 'é'}",
    ],
)
def test_value_that_is_what_it_looks_like_is_not_warned_about(condition: str) -> None:
    assert load_text(when(f"{condition}\n    approval: block")).warnings == ()


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("{read,write}", "`{read,write}` is matched as it stands"),
        ("db.{read, write}_all", "`{read, write}` is matched as it stands"),
        ("[read, list]", "matches one character"),
        ("[read list]", "matches one character"),
        ("read|list", "is one pattern, not a list"),
        ("read,list", "is one pattern, not a list"),
        ("^read", "is not a regular expression"),
        ("read$", "is not a regular expression"),
        ("!delete*", "begins with `!` itself"),
        ("[^abc]", "one character that is none of them is `[!…]`"),
        ("read ", "begins or ends with a blank"),
        ("\u00a0read", "begins or ends with a blank"),
        ("read\n", "begins or ends with a blank or a line's end"),
        ("\u201cread\u201d", "holds its quotes"),
        ("'read'", "holds its quotes"),
        ("re\u200bad", "holds `\\u200b`, which cannot be seen"),
        ("re\x08ad", "holds `\\x08`, which cannot be seen"),
        ("p\u0430y", "mixes Latin letters with"),
    ],
)
@pytest.mark.parametrize("member", ["type", "target", "agent"])
def test_pattern_that_reads_like_another_notation_is_warned_about(
    member: str, pattern: str, said: str
) -> None:
    rule = {"match": {member: pattern}, "approval": "auto"}
    (warning,) = load_text("\n" + json.dumps({"rules": [rule]})).warnings
    assert said in warning.message
    assert (warning.line, warning.key) == (2, f"rules[0].match.{member}")


@pytest.mark.parametrize(
    "pattern",
    [
        "*", "", "read*", "db.*", "prod-[a-z]?", "[!abc]*", "*.[eE][xX][eE]", "https://a.b/{id}",
        "a[|]b", "a[,]b", "$HOME", "été", "\u0440\u0430\u0443", "a b", "[", "a\\*", "equity/RSTR*",
    ],
)  # fmt: skip
def test_plain_pattern_is_not_warned_about(pattern: str) -> None:
    assert (
        load_text(
            json.dumps({"rules": [{"match": {"target": pattern}, "approval": "auto"}]})
        ).warnings
        == ()
    )


def test_pattern_without_its_quotes_is_explained() -> None:
    (problem,) = problems_of("rules: [{match: {type: *}}]")
    assert "in quotes" in problem.message


@pytest.mark.parametrize("version", ["1.0", "2", "true", "null", "", '"1.0"', "[1]"])
def test_any_version_but_one_is_refused(version: str) -> None:
    (problem,) = problems_of(f"version: {version}")
    assert problem.key == "version"
