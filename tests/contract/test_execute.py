"""`POST /api/v1/execute`: decides, approves, executes and records."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.contract.client import EVALUATE, EXECUTE, app_of, served

WHOLE = {
    "action_type": "write",
    "target": "crm",
    "params": {"n": 1, "tags": ["a", None, True], "ä": "ö"},
    "description": "update a contact",
    "agent_id": "sales-1",
    "session_id": "s-1",
    "parent_agent_id": "boss",
    "chain_id": "c-1",
    "chain_depth": 2,
}


def recorded(action: dict[str, Any]) -> dict[str, Any]:
    """The record of one action."""
    with served() as client:
        assert client.post(EXECUTE, action).status == 200
        (record,) = client.records()
        return record


def test_result_has_these_members_and_no_others() -> None:
    with served() as client:
        assert client.post(EXECUTE, WHOLE).json == {
            "action_type": "write",
            "target": "crm",
            "status": "success",
            "data": {"executed": True},
            "error": None,
        }


@pytest.mark.parametrize(
    ("action_type", "rule"), [("delete", "no_deletes"), ("unheard of", "<default>")]
)
def test_blocked_action_says_which_rule_blocked_it(action_type: str, rule: str) -> None:
    with served() as client:
        assert client.post(EXECUTE, {"type": action_type, "target": "t"}).json == {
            "action_type": action_type,
            "target": "t",
            "status": "blocked",
            "data": None,
            "error": f"Blocked by policy rule: {rule}",
        }


def test_record_holds_all_that_was_sent_and_decided() -> None:
    record = recorded(WHOLE)
    params = json.loads(record.pop("action_params"))
    data = json.loads(record.pop("result_data"))
    timestamp = record.pop("timestamp")
    assert (params, data) == (WHOLE["params"], {"executed": True})
    assert is_now(timestamp)
    assert record == {
        "id": 1,
        "session_id": "s-1",
        "action_type": "write",
        "action_target": "crm",
        "action_desc": "update a contact",
        "risk_level": "HIGH",
        "approval": "approve",
        "matched_rule": "writes",
        "human_decision": "auto-approved",
        "result_status": "success",
        "result_error": None,
        "agent_id": "sales-1",
        "parent_agent_id": "boss",
        "chain_id": "c-1",
        "chain_depth": 2,
        "policy_version": 1,
        "key_name": None,
        "operation": "execute",
        "worker": None,
        "call_id": None,
        "request_id": None,
        "trace_id": None,
        "ended": None,
        "seq": 1,
        "hash": record["hash"],
    }


@pytest.mark.parametrize("path", [EXECUTE, EVALUATE])
def test_record_has_the_request_id_that_its_client_sent(path: str) -> None:
    with served(app_of(audit_decisions="all")) as client:
        client.post(path, [WHOLE, {"type": "delete"}], headers={"x-request-id": "mine-1"})
        client.post(path, WHOLE)
        assert [record["request_id"] for record in client.records()] == ["mine-1", "mine-1", None]


def is_now(timestamp: str) -> bool:
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}(Z|\+00:00)", timestamp)
    age = datetime.now(UTC) - datetime.fromisoformat(timestamp)
    return timedelta(0) <= age < timedelta(minutes=1)


def test_what_was_left_out_is_null_or_its_default() -> None:
    record = recorded({"type": "read"})
    assert record["action_params"] == "{}"
    assert record["action_target"] == ""
    assert record["chain_depth"] == 0
    for member in ("action_desc", "agent_id", "parent_agent_id", "chain_id", "human_decision"):
        assert record[member] is None


@pytest.mark.parametrize("description", ["", None])
def test_empty_description_is_stored_as_null(description: str | None) -> None:
    assert recorded({"type": "read", "description": description})["action_desc"] is None


def test_blocked_action_is_recorded_without_data() -> None:
    record = recorded({"type": "delete", "target": "t"})
    assert (record["result_status"], record["result_data"]) == ("blocked", None)
    assert record["result_error"] == "Blocked by policy rule: no_deletes"


@pytest.mark.parametrize(
    ("action_type", "decision"),
    [("read", None), ("write", "auto-approved"), ("delete", None), ("unheard of", None)],
)
def test_human_decision_claims_no_human(action_type: str, decision: str | None) -> None:
    assert recorded({"type": action_type})["human_decision"] == decision


def test_left_out_session_is_one_of_the_servers_own() -> None:
    with served() as client:
        client.post(EXECUTE, {"type": "read"})
        client.post(EXECUTE, [{"type": "delete"}, {"type": "read", "session_id": None}])
        client.post(EXECUTE, {"type": "read", "session_id": ""})
        sessions = {record["session_id"] for record in client.records()}
        assert len(sessions) == 1
        assert "" not in sessions


def test_each_server_has_a_session_of_its_own() -> None:
    assert recorded({"type": "read"})["session_id"] != recorded({"type": "read"})["session_id"]


def test_given_session_is_kept() -> None:
    assert recorded({"type": "read", "session_id": "mine"})["session_id"] == "mine"


def test_batch_is_answered_and_recorded_in_order() -> None:
    types = ["read", "delete", "write", "unheard of", "read"]
    statuses = ["success", "blocked", "success", "blocked", "success"]
    with served() as client:
        answers = client.post(EXECUTE, [{"type": type_} for type_ in types]).json
        records = client.records()
        assert [answer["status"] for answer in answers] == statuses
        assert [record["result_status"] for record in records] == statuses
        assert [record["action_type"] for record in records] == types
        assert [record["id"] for record in records] == [1, 2, 3, 4, 5]


def test_empty_batch_leaves_no_record() -> None:
    with served() as client:
        assert client.post(EXECUTE, []).json == []
        assert client.records() == []


def test_batch_is_decided_by_one_policy() -> None:
    with served() as client:
        client.put("/api/v1/policy", {"rules": [{"approval": "auto"}]})
        client.post(EXECUTE, [{"type": "read"}] * 3)
        assert {record["policy_version"] for record in client.records()} == {2}


@pytest.mark.parametrize("text", ["", "\x00", "a\x00b", "'; DROP TABLE record; --", "\U0010ffff"])
def test_any_text_is_recorded_as_it_was_sent(text: str) -> None:
    sent = {"action_type": f"read{text}", "target": text, "params": {text: text}}
    record = recorded(sent | {"description": text, "agent_id": text, "chain_id": text})
    assert record["action_type"] == f"read{text}"
    assert record["action_target"] == text
    assert json.loads(record["action_params"]) == {text: text}
    assert record["action_desc"] == (text or None)
    assert record["agent_id"] == (text or None)


NUMBERS = [
    0,
    -1,
    2**53 + 1,
    2**64 - 1,
    -(2**63),
    2**64,
    -(2**64),
    10**4299,
    1.0,
    0.1,
    1e300,
    5e-324,
]


@pytest.mark.parametrize("number", NUMBERS, ids=len(NUMBERS) * ["n"])
def test_number_is_recorded_as_it_was_sent(number: float) -> None:
    record = recorded({"type": "read", "params": {"n": number, "token": "s"}})
    assert repr(json.loads(record["action_params"])["n"]) == repr(number)


def test_integers_of_any_size_decide_exactly() -> None:
    policy = """
        rules:
        - {name: large, conditions: {param_gt: {wei: 100000000000000000000}}, approval: block}
        - {name: same, conditions: {param_eq: {wei: 100000000000000000000}}, approval: auto}
        - {name: rest, approval: auto}
    """
    batch = [{"action_type": "pay", "params": {"wei": 10**20 + more}} for more in (-1, 0, 1)]
    rules = ["rest", "same", "large"]
    with served(app_of(policy)) as client:
        for sent in (batch, {"actions": batch}):
            answers = client.post("/api/v1/evaluate", sent).json
            assert [answer["matched_rule"] for answer in answers] == rules
        for action, rule in zip(batch, rules, strict=True):
            assert client.post("/api/v1/evaluate", action).json["matched_rule"] == rule
            client.post(EXECUTE, action)
        assert [record["matched_rule"] for record in client.records()] == rules
        wanted = client.get("/api/v1/policy").json["rules"][0]["conditions"]
        assert wanted == {"param_gt": {"wei": 10**20}}


@pytest.mark.parametrize("number", ["9" * 100_000, "1e400"])
@pytest.mark.parametrize("path", [EXECUTE, "/api/v1/evaluate"])
def test_number_that_cannot_be_kept_is_refused(number: str, path: str) -> None:
    body = f'{{"actions":[{{"action_type":"read","params":{{"n":{number}}}}}]}}'
    with served() as client:
        reply = client.post(path, body=body.encode())
        assert (reply.status, reply.code) == (400, "invalid_json")
        assert "a number that is too large" in reply.json["error"]
        assert client.records() == []


def test_tool_call_as_a_model_gives_it_is_refused() -> None:
    call = {"type": "tool_use", "id": "t", "name": "delete_rows", "input": {"table": "t"}}
    with served() as client:
        for path in (EXECUTE, "/api/v1/evaluate"):
            for body in (call, [{"type": "read"}, call]):
                reply = client.post(path, body)
                assert (reply.status, reply.code) == (400, "invalid_body")
                assert "send its `name` as `action_type`" in reply.json["error"]
        assert client.records() == []


def test_nothing_is_kept_by_a_database_in_memory() -> None:
    app = app_of()
    with served(app) as client:
        client.post(EXECUTE, {"type": "read"})
    with served() as client:
        assert client.records() == []
