"""`--audit-decisions`: what `evaluate` answers is recorded as well, and its answer is the same."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import apsw
import pytest

from aegis.config import AuditDecisions, Settings
from aegis.errors import ConfigError
from aegis.policy.compiled_cache import CompiledFiles
from aegis.server.composition import build_app
from aegis.server.http.app import App
from tests.contract.client import EVALUATE, EXECUTE, POLICY, app_of, served

READ = {"action_type": "read", "target": "t", "agent_id": "a", "params": {"token": "s", "n": 1}}
ASKED: list[object] = [
    READ,
    {"type": "write", "target": "é\u0000\"'"},
    {"type": "delete", "session_id": "mine", "description": "d", "chain_id": "c", "chain_depth": 2},
    {"type": "unheard of"},
    [],
    [READ],
    [{"type": "delete"}, READ, {"type": "unheard of", "target": "x"}],
    {"actions": [READ, {"type": "write"}]},
    {"type": "x", "params": {"n": "many"}},
]
MODES = list(AuditDecisions)


def app_with(decisions: AuditDecisions, **settings: Any) -> App:
    """An application that records decisions."""
    wanted = Settings(**({"audit_db": ":memory:"} | settings), audit_decisions=decisions)
    policy = POLICY + "  - {name: odd, match: {type: x}, conditions: {param_gt: {n: 1}}}\n"
    return build_app(wanted, file=CompiledFiles(":memory:").load(policy))


@pytest.mark.parametrize("asked", ASKED)
def test_answer_is_the_same_whatever_is_recorded(asked: object) -> None:
    replies = []
    for decisions in MODES:
        with served(app_with(decisions)) as client:
            replies.append(client.post(EVALUATE, asked))
    assert {reply.status for reply in replies} == {200}
    assert replies[1].json == replies[0].json
    assert replies[2].json == replies[0].json
    assert len({reply.header("x-aegis-policy-version") for reply in replies}) == 1


@pytest.mark.parametrize(
    "asked", [{"type": ""}, [READ, 5], {"actions": 1}, "text", {"type": "a", "target": 1}]
)
def test_refusal_is_the_same_whatever_is_recorded(asked: object) -> None:
    replies = []
    for decisions in MODES:
        with served(app_with(decisions)) as client:
            reply = client.post(EVALUATE, asked)
            replies.append((reply.status, reply.json))
            assert client.records() == []
    assert replies[0][0] == 400
    assert replies == [replies[0]] * 3


@pytest.mark.parametrize(
    ("decisions", "recorded"),
    [
        (AuditDecisions.NONE, []),
        (AuditDecisions.BLOCKED, [("c", "blocked"), ("d", "blocked")]),
        (
            AuditDecisions.ALL,
            [("a", "decided"), ("b", "decided"), ("c", "blocked"), ("d", "blocked")],
        ),
    ],
)
def test_each_item_of_a_batch_has_its_record(
    decisions: AuditDecisions, recorded: list[tuple[str, str]]
) -> None:
    types = {"a": "read", "b": "write", "c": "delete", "d": "unheard of"}
    with served(app_with(decisions)) as client:
        client.post(EVALUATE, [{"type": kind, "target": name} for name, kind in types.items()])
        records = client.records()
        found = [(record["action_target"], record["result_status"]) for record in records]
        assert found == recorded
        assert {record["operation"] for record in records} <= {"evaluate"}


def test_record_says_what_was_asked_and_decided_and_that_nobody_approved() -> None:
    with served(app_with(AuditDecisions.ALL)) as client:
        asked = {"type": "write", "target": "t", "agent_id": "a", "session_id": "s"}
        client.post(EVALUATE, asked | {"params": {"token": "s3cret", "n": 1}})
        (record,) = client.records()
    said = {
        "operation": "evaluate",
        "action_type": "write",
        "action_target": "t",
        "action_params": '{"token":"[REDACTED]","n":1}',
        "agent_id": "a",
        "session_id": "s",
        "risk_level": "HIGH",
        "approval": "approve",
        "matched_rule": "writes",
        "human_decision": None,
        "result_status": "decided",
        "result_data": None,
        "policy_version": 1,
        "worker": None,
    }
    assert {name: record[name] for name in said} == said


def test_recorded_decisions_are_told_from_executions() -> None:
    with served(app_with(AuditDecisions.ALL)) as client:
        client.post(EVALUATE, READ)
        client.post(EXECUTE, READ)
        operations = [record["operation"] for record in client.records()]
        assert operations == ["evaluate", "execute"]
        for operation in ("evaluate", "execute"):
            (record,) = client.records(f"?operation={operation}")
            assert record["operation"] == operation


def test_application_takes_what_is_recorded_from_its_argument_or_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AEGIS_AUDIT_DECISIONS", "blocked")
    for wanted, recorded in ((None, ["delete"]), ("all", ["read", "delete"]), ("none", [])):
        with served(app_of(audit_decisions=wanted)) as client:
            client.post(EVALUATE, [{"type": "read"}, {"type": "delete"}])
            assert [record["action_type"] for record in client.records()] == recorded


@pytest.mark.one_interface
@pytest.mark.parametrize("name", ["audit_decisions", "audit_durability"])
def test_unknown_kind_of_audit_is_refused_with_the_known_ones(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for wanted in ("often", ""):
        with pytest.raises(ConfigError, match=f"{name} `{wanted}` is unknown; known: "):
            app_of(**{name: wanted})
    monkeypatch.setenv(f"AEGIS_{name.upper()}", "Commit")
    with pytest.raises(ConfigError, match=f"AEGIS_{name.upper()} `Commit` is unknown"):
        app_of()


def test_recorded_decision_names_the_key_that_asked() -> None:
    app = app_with(AuditDecisions.BLOCKED, api_key="k")
    with served(app) as client:
        headers = {"x-api-key": "k"}
        client.post(EVALUATE, {"type": "delete"}, headers=headers)
        (record,) = client.get("/api/v1/audit", headers=headers).json
        assert record["key_name"]


@pytest.mark.parametrize(
    ("decisions", "kind", "status"),
    [
        (AuditDecisions.NONE, "delete", 200),
        (AuditDecisions.BLOCKED, "read", 200),
        (AuditDecisions.BLOCKED, "delete", 503),
        (AuditDecisions.ALL, "read", 503),
    ],
)
def test_decision_that_cannot_be_recorded_is_withheld(
    tmp_path: Path, decisions: AuditDecisions, kind: str, status: int
) -> None:
    path = tmp_path / "audit.db"
    app = app_with(decisions, audit_db=str(path), audit_timeout=0.05)
    with served(app) as client:
        with closing(apsw.Connection(str(path))) as other:
            other.execute("BEGIN IMMEDIATE")
            reply = client.post(EVALUATE, {"type": kind})
            other.execute("ROLLBACK")
        assert reply.status == status
        if status == 503:
            assert reply.code == "audit_unavailable"
            assert int(reply.header("retry-after") or 0) > 0


def test_nothing_is_recorded_by_default() -> None:
    with served(app_of()) as client:
        client.post(EVALUATE, [READ, {"type": "delete"}])
        assert client.records() == []
