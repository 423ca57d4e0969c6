"""The policies that are shipped: `policy.yaml`, `examples/`, and what is expected of them."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from aegis import Action, Executor, PolicyError, Result, ResultStatus, wire
from aegis.cli.init import STARTER
from aegis.policy.conditions import CONDITIONS, compile_conditions
from aegis.policy.loader import LoadedPolicy, load_text
from aegis_core import Approval, Decision, PolicyRule, compile_policy, reference
from tests.meta.documents import DOCUMENTS, blocks

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "examples").glob("*/expected.yaml"))
FIELDS = [file.parent.name for file in FILES]
MOMENTS = [
    datetime(2026, 11, day, hour, 30, tzinfo=UTC).timestamp()
    for day in range(23, 30)
    for hour in range(0, 24, 4)
]


@dataclass(frozen=True)
class Case:
    """An action, and the decision that is expected.

    Attributes:
        action: As a client sends it.
        expected: `<approval> <risk level> <rule>`.
        at: When, in seconds since the epoch; None: whenever.
    """

    action: dict[str, Any]
    expected: str
    at: float | None


@cache
def expected_of(field: str) -> tuple[LoadedPolicy, list[Case]]:
    """A field's policy, and what is expected of it."""
    path = ROOT / "examples" / field / "expected.yaml"
    written = yaml.safe_load(path.read_text(encoding="utf-8"))
    loaded = load_text((path.parent / written["policy"]).read_bytes())
    cases = [
        Case(
            case.pop("action"),
            case.pop("is"),
            datetime.fromisoformat(case.pop("at")).timestamp() if "at" in case else None,
        )
        for case in written["cases"]
    ]
    assert not any(written["cases"]), "a case has a member that is not known"
    return loaded, cases


CASES = [(field, case) for field in FIELDS for case in expected_of(field)[1]]


def said(decision: Decision) -> str:
    return f"{decision.approval.value} {decision.risk_level.name} {decision.matched_rule}"


def test_there_are_examples_of_five_fields() -> None:
    assert FIELDS == ["cloud", "company", "hospital", "support", "trading"]


@pytest.mark.parametrize("field", FIELDS)
def test_policy_has_no_warnings(field: str) -> None:
    assert expected_of(field)[0].warnings == ()


@pytest.mark.parametrize("field", FIELDS)
def test_policy_blocks_what_it_does_not_name(field: str) -> None:
    assert expected_of(field)[0].policy.default_approval.value == "block"


@pytest.mark.parametrize("field", FIELDS)
def test_each_rule_is_met_by_a_case(field: str) -> None:
    loaded, cases = expected_of(field)
    met = {case.expected.split()[2] for case in cases}
    assert {rule.name for rule in loaded.policy.rules} - met == set()


def test_policy_of_the_company_has_conditions_of_every_kind() -> None:
    rules = expected_of("company")[0].policy.rules
    assert {name for rule in rules for name in rule.conditions} == CONDITIONS
    assert len(rules) >= 25


@pytest.mark.parametrize(
    ("field", "case"), CASES, ids=[f"{field}-{case.action['action_type']}" for field, case in CASES]
)
def test_decision_is_the_expected_one_at_any_moment_that_it_is_expected_at(
    field: str, case: Case
) -> None:
    policy = expected_of(field)[0].policy
    question = wire.question(case.action)
    for now in MOMENTS if case.at is None else [case.at]:
        engine = compile_policy(policy, condition=compile_conditions, clock=lambda now=now: now)  # type: ignore[misc]
        assert said(engine.evaluate(*question)) == case.expected
        traced = reference.evaluate(policy, *question, condition=compile_conditions, now=now)
        assert said(traced) == case.expected


# --- attacks: what people copy is safe ---------------------------------------------------------------

TUTORIAL = {
    block.file: block.text
    for block in blocks(ROOT / "docs" / "tutorial.md")
    if block.file is not None
}
OTHERS: list[tuple[str, dict[str, Any]]] = [
    ("starter", {"action_type": "read", "target": "crm"}),
    (
        "starter",
        {"action_type": "pay", "target": "acme", "params": {"amount": 100, "currency": "EUR"}},
    ),
    ("tutorial", {"action_type": "read_file", "target": "notes/monday.md"}),
    (
        "tutorial",
        {
            "action_type": "write_file",
            "target": "notes/monday.md",
            "agent_id": "writer-1",
            "params": {"text": "hello"},
        },
    ),
]
ALLOWED = [
    (field, Case(action, "", datetime(2026, 11, 23, 12, tzinfo=UTC).timestamp()))
    for field, action in OTHERS
] + [(field, case) for field, case in CASES if not case.expected.startswith("block")]
"""Actions that may be done, of each policy that is shipped."""


@cache
def shipped(name: str) -> LoadedPolicy:
    match name:
        case "starter":
            return load_text(STARTER)
        case "tutorial":
            return load_text(TUTORIAL["policy.yaml"])
        case _:
            return expected_of(name)[0]


def decided(name: str, action: dict[str, Any], at: float | None) -> Decision:
    now = MOMENTS[0] if at is None else at
    engine = compile_policy(shipped(name).policy, condition=compile_conditions, clock=lambda: now)
    return engine.evaluate(*wire.question(action))


def is_allowed(decision: Decision) -> bool:
    return decision.approval is not Approval.BLOCK


def rule_of(name: str, decision: Decision) -> PolicyRule:
    return next(rule for rule in shipped(name).policy.rules if rule.name == decision.matched_rule)


LATIN = "aceopxyisjhAEOPCTXHKMB"
CYRILLIC = "\u0430\u0441\u0435\u043e\u0440\u0445\u0443\u0456\u0455\u0458\u04bb\u0410\u0415\u041e\u0420\u0421\u0422\u0425\u041d\u041a\u041c\u0412"


def look_alikes(name: str) -> Iterator[str]:
    """Names that people, or programs, may take for this one."""
    yield from (f"{name} ", f" {name}", f"{name}\0", f"{name}\n", f"{name}\u200b", f"{name}s")
    yield from (name.upper(), name.capitalize(), name.swapcase())
    yield name.translate(str.maketrans(LATIN, CYRILLIC))
    yield "".join(chr(ord(char) + 0xFEE0) if "!" <= char <= "~" else char for char in name)


def wrong_values(value: Any, expression: str | None) -> Iterator[Any]:
    """What an attacker could send in the place of a value that is right."""
    yield from (None, [value], {"value": value}, [], {})
    if expression is not None:  # numbers and booleans are searched as their text
        yield from ("", *([f"{value}\n{value}"] if not re.match(r"\(\?i?s", expression) else []))
    elif isinstance(value, bool):
        yield from (not value, int(value), str(value), str(value).lower())
    elif isinstance(value, int | float):
        yield from (
            -value - 1,
            -0.01,
            -1e18,
            1e18,
            str(value),
            f"{value} ",
            value > 0,
            float("inf"),
        )
    else:
        yield from (True, 0, -1, "", f"{value} ", value.upper())


def tricks(target: str) -> Iterator[str]:
    """Targets that lead elsewhere, though they look much like this one."""
    folder = target.partition("/")[0]
    yield from (f"{folder}/../etc/passwd", f"{target}/../../other", f"{folder}/..", f"../{target}")
    yield from (f"{folder}\\..\\other", f"/{target}", f"//{target}", f"~/{target}", f"\\{target}")
    yield from (f"{target}\0", f"{target}\0.md", f"{target}\n", f"{target}\r\nx", f"\n{target}")


@pytest.mark.parametrize(
    ("name", "case"),
    ALLOWED,
    ids=[f"{name}-{case.action['action_type']}" for name, case in ALLOWED],
)
class TestAttacks:
    def test_the_action_itself_is_allowed(self, name: str, case: Case) -> None:
        assert is_allowed(decided(name, case.action, case.at))

    def test_look_alike_of_a_type_is_not_allowed(self, name: str, case: Case) -> None:
        for other in set(look_alikes(case.action["action_type"])):
            decision = decided(name, case.action | {"action_type": other}, case.at)
            assert not is_allowed(decision), (other, decision)

    def test_target_that_leads_elsewhere_is_not_allowed(self, name: str, case: Case) -> None:
        target = case.action.get("target", "")
        for other in tricks(target) if target else ():
            decision = decided(name, case.action | {"target": other}, case.at)
            assert not is_allowed(decision), (other, decision)

    def test_agent_that_looks_alike_is_not_taken_for_it(self, name: str, case: Case) -> None:
        rule = rule_of(name, decided(name, case.action, case.at))
        fixed = re.split(r"[*?\[]", rule.match_agent)[0]
        others = [*look_alikes(fixed), f"x{fixed}"] if fixed else []
        for other in set(others) - {f"{fixed}{end}" for end in ("\0", " ", "\n", "\u200b", "s")}:
            agent = case.action["agent_id"].replace(fixed, other)
            decision = decided(name, case.action | {"agent_id": agent}, case.at)
            assert decision.matched_rule != rule.name or not is_allowed(decision), (agent, decision)

    def test_missing_negative_and_wrong_values_are_not_allowed(self, name: str, case: Case) -> None:
        rule = rule_of(name, decided(name, case.action, case.at))
        params = case.action.get("params", {})
        asked = {
            parameter
            for condition, parameters in rule.conditions.items()
            if condition.startswith("param_")
            for parameter in parameters
        }
        for parameter in asked:
            expression = rule.conditions.get("param_matches", {}).get(parameter)
            attacks = [
                params | {parameter: wrong}
                for wrong in wrong_values(params[parameter], expression)
                if wrong != params[parameter]
            ]
            attacks.append({key: value for key, value in params.items() if key != parameter})
            for attack in attacks:
                decision = decided(name, case.action | {"params": attack}, case.at)
                assert not is_allowed(decision) or decision.matched_rule != rule.name, (
                    attack,
                    decision,
                )


def policies_of_documents() -> Iterator[tuple[str, LoadedPolicy]]:
    """Each policy that a document shows."""
    for document in DOCUMENTS:
        for block in blocks(document):
            if block.language == "yaml" and "rules:" in block.text:
                yield f"{document.name}:{block.line}", load_text(block.text)


EVERYTHING = [
    *((name, shipped(name)) for name in ("starter", "tutorial", *FIELDS)),
    *policies_of_documents(),
]


@pytest.mark.parametrize(("name", "loaded"), EVERYTHING, ids=[name for name, _ in EVERYTHING])
def test_rule_that_allows_bounds_numbers_on_both_sides(name: str, loaded: LoadedPolicy) -> None:
    for rule in loaded.policy.rules:
        if rule.approval is not Approval.BLOCK:
            asked = {
                side: {
                    parameter
                    for condition in conditions
                    for parameter, bound in rule.conditions.get(condition, {}).items()
                    if not isinstance(bound, str)
                }
                for side, conditions in {
                    "below": ("param_lt", "param_lte"),
                    "above": ("param_gt", "param_gte"),
                }.items()
            }
            assert asked["below"] == asked["above"], (name, rule.name)


@pytest.mark.parametrize(("name", "loaded"), EVERYTHING, ids=[name for name, _ in EVERYTHING])
def test_policy_that_is_shown_has_no_warnings(name: str, loaded: LoadedPolicy) -> None:
    nights = "window over midnight"  # one document shows what is odd about these
    assert [odd for odd in loaded.warnings if nights not in odd.message] == []


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Executor:
    """The tutorial's executor in a folder of notes, beside a secret that links lead to."""
    (tmp_path / "notes").mkdir()
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path / "notes" / "link").symlink_to("../secret.txt")
    (tmp_path / "notes" / "up").symlink_to("..")
    monkeypatch.chdir(tmp_path)
    module = ModuleType("files")
    exec(compile(TUTORIAL["files.py"], "files.py", "exec"), module.__dict__)
    executor = module.Files()
    assert isinstance(executor, Executor)
    return executor


@pytest.mark.parametrize("type_", ["read_file", "write_file"])
@pytest.mark.parametrize(
    "target",
    [
        "../secret.txt", "notes/../secret.txt", "notes/link", "notes/up/secret.txt", "secret.txt",
        "/etc/passwd", "notes//../secret.txt", "notes/a/../../secret.txt", "", ".", "notes-2/x",
        "notes/link\0", "notes/\0",
    ],
)  # fmt: skip
def test_executor_of_the_tutorial_keeps_to_its_folder(
    files: Executor, tmp_path: Path, type_: str, target: str
) -> None:
    for path in (target, f"{tmp_path}/{target}"):
        try:
            result = asyncio.run(files.execute(Action(type_, path, {"text": "changed"})))
        except ValueError:  # a zero byte; the server makes it a failed result
            continue
        assert result.status is ResultStatus.FAILED
    assert (tmp_path / "secret.txt").read_text() == "secret"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes", "secret.txt"]


def test_executor_of_the_tutorial_reads_what_it_wrote(files: Executor) -> None:
    def done(type_: str) -> Result:
        return asyncio.run(files.execute(Action(type_, "notes/monday.md", {"text": "hello"})))

    assert done("write_file").status is ResultStatus.SUCCESS
    assert done("read_file").data == {"text": "hello"}


def test_advice_for_a_list_as_a_pattern_leads_to_rules_that_match() -> None:
    with pytest.raises(PolicyError, match="must be one pattern, not a list; write a rule for each"):
        load_text("rules: [{match: {type: [read, list]}, approval: block}]")
    advised = (
        "rules: [{match: {type: read}, approval: block}, {match: {type: list}, approval: block}]"
    )
    engine = compile_policy(load_text(advised).policy, condition=compile_conditions)
    assert {engine.evaluate(type_).matched_rule for type_ in ("read", "list")} == {
        "rule_0",
        "rule_1",
    }


@pytest.mark.parametrize("pattern", ["[read, list]", "{read,list}", "read|list", "read, list"])
def test_pattern_that_looks_like_a_list_does_not_load_unsaid(pattern: str) -> None:
    loaded = load_text(f"rules: [{{match: {{type: '{pattern}'}}, approval: block}}]")
    assert any(re.search("write a rule for each", odd.message) for odd in loaded.warnings)
