"""Actions and decisions are frozen dataclasses to those who use them."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from aegis import Action, Approval, Policy, PolicyDecision, PolicyRule, RiskLevel

ACTION = Action("read", "crm", {"fields": ["mail"]}, agent_id="bot", chain_depth=2)
DECISION = PolicyDecision(ACTION, RiskLevel.HIGH, Approval.APPROVE, "reads", None)
BLOCKED = Policy().evaluate(ACTION)
"""Made by a policy, not by its constructor."""


@dataclasses.dataclass(frozen=True)
class Tagged(Action):
    tag: str = "none"


@dataclasses.dataclass(frozen=True, slots=True)
class Slotted(Action):
    tag: str = "none"


class Named(Action):
    def __init__(self, name: str) -> None:
        super().__init__(name, "fixed")


VALUES = [
    pytest.param(ACTION, id="action"),
    pytest.param(DECISION, id="decision"),
    pytest.param(BLOCKED, id="made by a policy"),
    pytest.param(Tagged("read", tag="x"), id="dataclass"),
    pytest.param(Slotted("read", tag="x"), id="dataclass with slots"),
    pytest.param(Named("read"), id="subclass"),
]


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize(
    "repeat",
    [lambda value: pickle.loads(pickle.dumps(value)), copy.copy, copy.deepcopy],
    ids=["pickled", "copied", "deeply copied"],
)
def test_copy_is_equal_and_of_the_same_class(value: Any, repeat: Callable[[Any], Any]) -> None:
    repeated = repeat(value)
    assert repeated == value
    assert type(repeated) is type(value)


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize(
    "change",
    [
        lambda value, name: setattr(value, name, "other"),
        delattr,
    ],
    ids=["set", "deleted"],
)
def test_no_field_changes(value: Any, change: Callable[[Any, str], None]) -> None:
    for field in dataclasses.fields(value):
        with pytest.raises(dataclasses.FrozenInstanceError):
            change(value, field.name)


def test_not_even_the_setter_of_objects_changes_an_action() -> None:
    with pytest.raises(AttributeError):
        object.__setattr__(ACTION, "type", "write")


def test_copy_of_an_action_cannot_be_changed_either() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        pickle.loads(pickle.dumps(ACTION)).type = "write"


def test_action_says_what_it_holds() -> None:
    assert repr(Action("read", "crm")) == (
        "Action(type='read', target='crm', params={}, description='', agent_id='', session_id='',"
        " parent_agent_id='', chain_id='', chain_depth=0)"
    )


def test_decision_of_a_policy_says_what_it_holds() -> None:
    assert repr(BLOCKED) == (
        f"PolicyDecision(action={ACTION!r}, risk_level=<RiskLevel.MEDIUM: 2>,"
        " approval=<Approval.BLOCK: 'block'>, matched_rule='<default>', error=None)"
    )


def test_decision_of_a_policy_equals_one_that_is_constructed() -> None:
    assert PolicyDecision(ACTION, RiskLevel.MEDIUM, Approval.BLOCK, "<default>") == BLOCKED


def test_values_that_differ_are_not_equal() -> None:
    assert Action("read") != Action("read", "crm")
    assert dataclasses.replace(BLOCKED, matched_rule="other") != BLOCKED
    assert Named("read") != Action("read", "fixed")


def test_action_without_params_has_a_mapping_of_its_own() -> None:
    assert Action("read").params == {}
    assert Action("read").params is not Action("read").params


def test_replace_keeps_the_rest() -> None:
    assert dataclasses.replace(ACTION, target="erp") == Action(
        "read", "erp", {"fields": ["mail"]}, agent_id="bot", chain_depth=2
    )


def test_action_can_be_matched() -> None:
    match ACTION:
        case Action("read", target=target):
            assert target == "crm"
        case _:
            pytest.fail("did not match")


def test_fields_are_those_of_a_dataclass() -> None:
    assert dataclasses.asdict(Action("read", "crm")) == {
        "type": "read", "target": "crm", "params": {}, "description": "", "agent_id": "",
        "session_id": "", "parent_agent_id": "", "chain_id": "", "chain_depth": 0,
    }  # fmt: skip
    assert list(inspect.signature(PolicyDecision).parameters) == [
        "action", "risk_level", "approval", "matched_rule", "error"
    ]  # fmt: skip


@pytest.mark.parametrize("arguments", [{}, {"type": "read", "kind": "x"}])
def test_wrong_arguments_are_refused(arguments: dict[str, str]) -> None:
    with pytest.raises(TypeError):
        Action(**arguments)  # type: ignore[arg-type]


def test_action_is_as_hashable_as_its_params() -> None:
    with pytest.raises(TypeError):
        hash(ACTION)
    assert hash(Action("read", params=())) == hash(Action("read", params=()))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [Action, PolicyDecision])
def test_value_that_was_never_initialised_has_no_fields(kind: Any) -> None:
    made = kind.__new__(kind)
    for field in dataclasses.fields(kind):
        with pytest.raises(AttributeError):
            getattr(made, field.name)
    with pytest.raises((AttributeError, TypeError)):
        Policy().evaluate(made)


def test_field_of_one_class_is_not_read_from_another() -> None:
    with pytest.raises(AttributeError):
        vars(Action)["chain_depth"].__get__(DECISION)
    with pytest.raises(TypeError):
        vars(Action)["type"].__get__("read")


POLICY = Policy(rules=[PolicyRule(match_type="w*", name="writes", approval=Approval.AUTO)])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("action", "rule"),
    [
        (Action("write"), "writes"),
        (Tagged("write", tag="x"), "writes"),
        (Slotted("write"), "writes"),
        (Named("write"), "writes"),
        (Named("read"), "<default>"),
        (Action("write", agent_id=None), "writes"),  # type: ignore[arg-type]
    ],
)
def test_policy_decides_about_each_kind_of_action(action: Action, rule: str) -> None:
    decision = POLICY.evaluate(action)
    assert decision.action is action
    assert decision.matched_rule == rule
    assert POLICY.evaluate_many([action, action]) == [decision, decision]


def test_subclass_may_compute_a_field() -> None:
    class Lowered(Action):
        @property
        def type(self) -> str:
            return super().type.lower()

    assert POLICY.evaluate(Lowered("WRITE")).matched_rule == "writes"


@pytest.mark.parametrize("of", [Action(5), Action("read", None), Action("read", agent_id=7)])  # type: ignore[arg-type]
def test_action_of_the_wrong_types_is_refused(of: Action) -> None:
    with pytest.raises(TypeError):
        POLICY.evaluate(of)
    with pytest.raises(TypeError):
        POLICY.evaluate_many([of])


def test_policy_that_has_decided_can_be_pickled() -> None:
    POLICY.evaluate(ACTION)
    copied = pickle.loads(pickle.dumps(POLICY))
    assert copied == POLICY
    assert copied.evaluate(Action("write")).matched_rule == "writes"


def test_condition_that_empties_the_list_of_actions_takes_nothing_from_the_batch() -> None:
    actions = [Action("read", params={"n": number}) for number in range(50)]

    class Emptying(dict[str, Any]):
        def get(self, *_: Any) -> None:
            actions.clear()

    actions[3] = Action("write", params=Emptying())
    policy = Policy.from_dict({"rules": [{"conditions": {"param_eq": {"n": 1}}}]})
    assert len(policy.evaluate_many(actions)) == 50
