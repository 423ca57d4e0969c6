"""`POST /api/v1/evaluate`: decides, and does nothing else."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.contract.client import AUDIT, EVALUATE, EXECUTE, Reply, app_of, served

DECISIONS = [
    ("read", "LOW", "auto", True, "reads"),
    ("write", "HIGH", "approve", True, "writes"),
    ("delete", "CRITICAL", "block", False, "no_deletes"),
    ("unheard of", "MEDIUM", "block", False, "<default>"),
]

BOTH = pytest.mark.parametrize("path", [EVALUATE, EXECUTE])
"""What is said of an action's shape holds for both routes that take one."""


def decided(policy: str, action: Any) -> Any:
    """The answer of a policy to an action."""
    with served(app_of(policy)) as client:
        reply = client.post(EVALUATE, action)
        assert reply.status == 200, reply.body
        return reply.json


@pytest.mark.parametrize("decision", DECISIONS)
def test_decision_has_these_members_and_no_others(
    decision: tuple[str, str, str, bool, str],
) -> None:
    action_type, risk_level, approval, is_allowed, matched_rule = decision
    with served() as client:
        assert client.post(EVALUATE, {"action_type": action_type, "target": "crm"}).json == {
            "action_type": action_type,
            "target": "crm",
            "risk_level": risk_level,
            "approval": approval,
            "is_allowed": is_allowed,
            "matched_rule": matched_rule,
        }


def test_evaluation_is_not_recorded() -> None:
    with served() as client:
        client.post(EVALUATE, [{"type": "read"}, {"type": "delete"}])
        assert client.get(AUDIT).json == []


# --- shapes --------------------------------------------------------------------------------------


@BOTH
def test_one_action_answers_an_object(path: str) -> None:
    with served() as client:
        assert type(client.post(path, {"type": "read"}).json) is dict


@BOTH
@pytest.mark.parametrize("count", [0, 1, 2, 50])
@pytest.mark.parametrize("is_wrapped", [True, False])
def test_batch_answers_a_list_in_order(path: str, count: int, is_wrapped: bool) -> None:
    actions = [{"type": "read", "target": str(index)} for index in range(count)]
    with served() as client:
        answers = client.post(path, {"actions": actions} if is_wrapped else actions).json
        assert [answer["target"] for answer in answers] == [str(index) for index in range(count)]


@BOTH
def test_actions_beside_other_members_are_a_batch(path: str) -> None:
    with served() as client:
        body = {"actions": [{"type": "read"}], "type": "delete", "target": 5}
        assert [answer["action_type"] for answer in client.post(path, body).json] == ["read"]


@BOTH
@pytest.mark.parametrize("actions", [None, {}, "read", 1, True, {"type": "read"}])
def test_actions_must_be_a_list(path: str, actions: Any) -> None:
    with served() as client:
        reply = client.post(path, {"actions": actions})
        assert (reply.status, reply.code) == (400, "invalid_body")
        assert "`actions`" in reply.json["error"]


# --- members -------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize(
    "action",
    [
        {"action_type": "read"},
        {"type": "read"},
        {"action_type": "read", "type": "delete"},
        {"action_type": None, "type": "read"},
        {"action_type": "read", "type": 5},
    ],
)
def test_type_has_two_names_of_which_the_long_one_counts(path: str, action: Any) -> None:
    with served() as client:
        assert client.post(path, action).json["action_type"] == "read"


@BOTH
@pytest.mark.parametrize(
    "member",
    [
        "params",
        "description",
        "agent_id",
        "session_id",
        "parent_agent_id",
        "chain_id",
        "chain_depth",
        "type",
    ],
)
def test_null_means_left_out(path: str, member: str) -> None:
    with served() as client:
        reply = client.post(path, {"action_type": "read", member: None})
        assert (reply.status, reply.json["action_type"]) == (200, "read")


@BOTH
def test_left_out_target_is_empty(path: str) -> None:
    with served() as client:
        assert client.post(path, {"type": "read"}).json["target"] == ""


WRONG: dict[str, tuple[Any, ...]] = {
    "target": (None, 5, True, [], {}, 1.5),
    "action_type": (5, True, [], {}, "", None),
    "params": (5, True, [], "", "{}", [["a", 1]]),
    "description": (5, False, [], {}),
    "agent_id": (5, 0, False, [], {}),
    "session_id": (5, 0, [], {}),
    "parent_agent_id": (5, True, []),
    "chain_id": (5, True, []),
    "chain_depth": ("1", "", 1.5, True, False, [], {}, 2**63, 1e300),
}


@BOTH
@pytest.mark.parametrize(
    ("member", "value"),
    [(member, value) for member, values in WRONG.items() for value in values],
)
def test_member_of_the_wrong_type_is_refused(path: str, member: str, value: Any) -> None:
    with served() as client:
        reply = client.post(path, {"action_type": "read"} | {member: value})
        assert (reply.status, reply.code) == (400, "invalid_body")
        assert f"`{member}`" in reply.json["error"]
        assert client.records() == []


@BOTH
def test_action_without_a_type_is_refused(path: str) -> None:
    with served() as client:
        assert client.post(path, {"target": "t"}).status == 400


@BOTH
@pytest.mark.parametrize("value", [None, 1, "x", [], {"a": 1}])
def test_unknown_members_are_ignored(path: str, value: Any) -> None:
    with served() as client:
        assert client.post(path, {"type": "read", "verbose": value, "risk": value}).status == 200


@BOTH
@pytest.mark.parametrize("depth", [0, 1, -1, 2**63 - 1, -(2**63), 3.0])
def test_chain_depth_is_any_integer_of_64_bits(path: str, depth: float) -> None:
    with served() as client:
        assert client.post(path, {"type": "read", "chain_depth": depth}).status == 200


@BOTH
@pytest.mark.parametrize(
    "text",
    ["ä", "日本語", "\U0001f600", "\x00", 'q"uote', "back\\slash", "\x7f\x80", "\u2028", " ", "é"],
)
def test_text_is_echoed_as_it_was_sent(path: str, text: str) -> None:
    with served() as client:
        for action_type, target in ((text, ""), (f"read{text}", text)):
            answer = client.post(path, {"action_type": action_type, "target": target}).json
            assert (answer["action_type"], answer["target"]) == (action_type, target)


# --- agents --------------------------------------------------------------------------------------

AGENTS = """\
rules:
  - {name: none, match: {agent: ""}, approval: auto}
  - {name: billing, match: {agent: "billing-*"}, approval: auto}
"""


@pytest.mark.parametrize(
    ("agent", "rule"),
    [
        ({}, "none"),
        ({"agent_id": None}, "none"),
        ({"agent_id": ""}, "none"),
        ({"agent_id": "billing-1"}, "billing"),
        ({"agent_id": "Billing-1"}, "<default>"),
        ({"agent": "billing-1"}, "none"),
    ],
)
def test_missing_agent_is_the_empty_text(agent: dict[str, Any], rule: str) -> None:
    assert decided(AGENTS, {"type": "read"} | agent)["matched_rule"] == rule


# --- what cannot be judged -----------------------------------------------------------------------

UNDECIDABLE = """\
defaults: {approval: auto, risk_level: low}
rules:
  - {name: small, match: {type: pay}, approval: auto, risk_level: low,
     conditions: {param_lt: {amount: 100}}}
  - {name: rest, match: {type: pay}, approval: approve}
"""


@pytest.mark.parametrize("amount", ["5", True, [], {}, [5]])
def test_rule_that_cannot_be_judged_blocks_in_its_own_name(amount: Any) -> None:
    answer = decided(UNDECIDABLE, {"type": "pay", "params": {"amount": amount}})
    error = answer.pop("error")
    assert answer == {
        "action_type": "pay",
        "target": "",
        "risk_level": "CRITICAL",
        "approval": "block",
        "is_allowed": False,
        "matched_rule": "small",
    }
    assert "param_lt.amount" in error


@pytest.mark.parametrize("params", [{}, {"amount": None}, {"Amount": 5}, {"amount": 100}, None])
def test_rule_whose_condition_does_not_hold_is_passed_over(params: Any) -> None:
    answer = decided(UNDECIDABLE, {"type": "pay", "params": params})
    assert answer["matched_rule"] == "rest"
    assert "error" not in answer


def test_undecidable_action_does_not_disturb_its_batch() -> None:
    actions = [{"type": "pay", "params": {"amount": amount}} for amount in (5, "5", 500)]
    answers = decided(UNDECIDABLE, actions)
    assert [answer["is_allowed"] for answer in answers] == [True, False, True]
    assert ["error" in answer for answer in answers] == [False, True, False]


def test_undecidable_action_is_blocked_and_recorded() -> None:
    with served(app_of(UNDECIDABLE)) as client:
        answer = client.post(EXECUTE, {"type": "pay", "params": {"amount": "5"}}).json
        assert answer["status"] == "blocked"
        (record,) = client.records()
        assert (record["matched_rule"], record["risk_level"]) == ("small", "CRITICAL")


def test_answers_of_both_forms_of_a_batch_are_alike() -> None:
    actions = [{"type": decision[0]} for decision in DECISIONS]
    with served() as client:
        listed = client.post(EVALUATE, actions)
        wrapped = client.post(EVALUATE, {"actions": actions})
        singles = [client.post(EVALUATE, action) for action in actions]
        assert listed.body == wrapped.body == joined(singles)


def joined(replies: list[Reply]) -> bytes:
    return b"[" + b",".join(reply.body for reply in replies) + b"]"


def test_decision_depends_on_the_type_and_not_on_its_spelling_in_json() -> None:
    with served() as client:
        reply = client.post(EVALUATE, body=rb'{"action_type":"\u0072ead\u0000"}')
        assert reply.json["action_type"] == "read\x00"
        assert reply.json["matched_rule"] == "reads"


def test_of_a_repeated_member_the_last_counts_on_both_routes() -> None:
    body = json.dumps({"type": "read"}).encode()[:-1] + b',"type":"delete"}'
    with served() as client:
        assert client.post(EVALUATE, body=body).json["matched_rule"] == "no_deletes"
        assert client.post(EXECUTE, body=body).json["status"] == "blocked"
