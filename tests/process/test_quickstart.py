"""The REST documentation of agent-aegis, done request by request as it stands there."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import aegis
from tests.process.server import AsgiServer, Server

AS_JSON = ("-H", "Content-Type: application/json")
UNDER_UVICORN = """
from aegis.server import create_app

app = create_app(
    policy_path="policy.yaml",
    audit_db_path="audit.db",
)

import uvicorn
uvicorn.run(app, host="0.0.0.0", port=0)
"""
EXECUTOR = """
from aegis import BaseExecutor, Result, ResultStatus

class MyExecutor(BaseExecutor):
    async def execute(self, action):
        return Result(action=action, status=ResultStatus.SUCCESS, data={"did": action.type})
"""
EXECUTOR_UNDER_UVICORN = f"""
from aegis.server import create_app
{EXECUTOR}
app = create_app(
    policy_path="policy.yaml",
    executor=MyExecutor(),
)

import uvicorn
uvicorn.run(app, host="127.0.0.1", port=0)
"""


def curl(*arguments: str) -> Any:
    """What `curl` answers, which must be 200; Python asks the same where there is no curl."""
    if shutil.which("curl") is None:
        return _urllib(arguments)
    command = ("curl", "-sS", "-w", "\n%{http_code}", *arguments)
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    body, _, status = done.stdout.rpartition("\n")
    assert status == "200", body
    return json.loads(body)


def _urllib(arguments: tuple[str, ...]) -> Any:
    method, body, url = None, None, ""
    headers = {}
    left = iter(arguments)
    for argument in left:
        match argument:
            case "-X":
                method = next(left)
            case "-H":
                name, _, headers[name] = next(left).partition(": ")
            case "-d":
                body = next(left).encode()
            case _:
                url = argument
    request = urllib.request.Request(url, body, headers, method=method)
    with urllib.request.urlopen(request, timeout=20) as answer:
        return json.load(answer)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose policy stays as it is."""
    with Server(tmp_path_factory.mktemp("quickstart")) as running:
        yield running


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that has recorded these actions and nothing else."""
    actions = [
        {"action_type": "read", "target": "crm", "session_id": "one"},
        {"action_type": "delete", "target": "db", "session_id": "one"},
        {"action_type": "write", "target": "crm", "session_id": "two"},
        {"action_type": "write", "target": "prod-db", "session_id": "two"},
    ]
    with Server(tmp_path_factory.mktemp("recorded")) as running:
        assert running.ask("POST", "/api/v1/execute", actions).status == 200
        yield running


@pytest.fixture(scope="module")
def changing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose policy is put by each test."""
    with Server(tmp_path_factory.mktemp("changing")) as running:
        yield running


def test_health_says_ok_and_the_version(server: Server) -> None:
    assert curl(f"{server.url}/health") == {"status": "ok", "version": aegis.__version__}


def test_evaluate_decides_about_one_action(server: Server) -> None:
    answer = curl(
        "-X", "POST", f"{server.url}/api/v1/evaluate", *AS_JSON,
        "-d", '{"action_type": "delete", "target": "db"}',
    )  # fmt: skip
    assert answer == {
        "action_type": "delete",
        "target": "db",
        "risk_level": "CRITICAL",
        "approval": "block",
        "is_allowed": False,
        "matched_rule": "no_deletes",
    }


def test_evaluate_decides_about_a_batch_in_its_order(server: Server) -> None:
    answer = curl(
        "-X", "POST", f"{server.url}/api/v1/evaluate", *AS_JSON,
        "-d", '{"actions": [\n    {"action_type": "read", "target": "crm"},\n'
        '    {"action_type": "delete", "target": "db"}\n]}',
    )  # fmt: skip
    assert [decision["matched_rule"] for decision in answer] == ["reads", "no_deletes"]


def test_execute_answers_that_the_action_was_executed(server: Server) -> None:
    answer = curl(
        "-X", "POST", f"{server.url}/api/v1/execute", *AS_JSON,
        "-d", '{"action_type": "read", "target": "crm"}',
    )  # fmt: skip
    assert answer == {
        "action_type": "read",
        "target": "crm",
        "status": "success",
        "data": {"executed": True},
        "error": None,
    }


@pytest.mark.parametrize(
    ("query", "targets"),
    [
        ("", ["crm", "db", "crm", "prod-db"]),
        ("?action_type=delete", ["db"]),
        ("?risk_level=HIGH", ["crm"]),
        ("?action_type=write&risk_level=CRITICAL&limit=10", ["prod-db"]),
        ("?session_id=one", ["crm", "db"]),
        ("?result_status=blocked", ["db"]),
        ("?result_status=success", ["crm", "crm", "prod-db"]),
        ("?limit=2", ["crm", "prod-db"]),
    ],
)
def test_audit_answers_the_records_of_its_filters(
    recorded: Server, query: str, targets: list[str]
) -> None:
    records = curl(f"{recorded.url}/api/v1/audit{query}")
    assert [record["action_target"] for record in records] == targets


def test_audit_record_has_the_members_of_agent_aegis(recorded: Server) -> None:
    (record,) = curl(f"{recorded.url}/api/v1/audit?action_type=delete")
    known = {
        "id": 2,
        "session_id": "one",
        "action_type": "delete",
        "action_target": "db",
        "action_params": "{}",
        "action_desc": None,
        "risk_level": "CRITICAL",
        "approval": "block",
        "matched_rule": "no_deletes",
        "human_decision": None,
        "result_status": "blocked",
        "result_data": None,
        "result_error": "Blocked by policy rule: no_deletes",
        "agent_id": None,
        "parent_agent_id": None,
        "chain_id": None,
        "chain_depth": 0,
    }
    assert {name: record.get(name, "missing") for name in known} == known


def test_policy_shows_the_rules_in_force(server: Server) -> None:
    policy = curl(f"{server.url}/api/v1/policy")
    assert policy["default_risk_level"] == "MEDIUM"
    assert policy["default_approval"] == "block"
    assert policy["rules"][0] == {
        "name": "no_deletes",
        "match_type": "delete*",
        "match_target": "*",
        "match_agent": "*",
        "risk_level": "CRITICAL",
        "approval": "block",
        "conditions": policy["rules"][0]["conditions"],
    }


def test_policy_put_as_a_yaml_string_is_in_force(changing: Server) -> None:
    answer = curl(
        "-X", "PUT", f"{changing.url}/api/v1/policy", *AS_JSON,
        "-d", r'{"yaml": "rules:\n  - name: block_all\n    match: {type: \"*\"}\n    approval: block"}',
    )  # fmt: skip
    assert (answer["status"], answer["rule_count"]) == ("updated", 1)
    assert changing.rule_for("read") == "block_all"


def test_policy_put_as_rules_is_in_force(changing: Server) -> None:
    answer = curl(
        "-X", "PUT", f"{changing.url}/api/v1/policy", *AS_JSON,
        "-d", '{"rules": [{"name": "allow_reads", "match": {"type": "read*"}, "approval": "auto"}]}',
    )  # fmt: skip
    assert (answer["status"], answer["rule_count"]) == ("updated", 1)
    assert changing.rule_for("read") == "allow_reads"


def test_policy_put_as_yaml_itself_is_in_force(changing: Server) -> None:
    rules = "rules:\n  - name: from_yaml\n    match: {type: read}\n    approval: auto\n"
    answer = curl(
        "-X", "PUT", f"{changing.url}/api/v1/policy", "-H", "Content-Type: application/yaml",
        "-d", rules,
    )  # fmt: skip
    assert (answer["status"], answer["rule_count"]) == ("updated", 1)
    assert changing.rule_for("read") == "from_yaml"


def test_application_under_uvicorn_decides_and_records_in_its_database(tmp_path: Path) -> None:
    with AsgiServer(tmp_path, UNDER_UVICORN) as running:
        answer = curl(
            "-X", "POST", f"{running.url}/api/v1/execute", *AS_JSON,
            "-d", '{"action_type": "delete", "target": "db"}',
        )  # fmt: skip
        assert answer["status"] == "blocked"
        assert [record["id"] for record in curl(f"{running.url}/api/v1/audit")] == [1]
        assert running.stop(signal.SIGINT) == 0
    assert (tmp_path / "audit.db").exists()


def test_custom_executor_under_uvicorn_does_the_actions(tmp_path: Path) -> None:
    with AsgiServer(tmp_path, EXECUTOR_UNDER_UVICORN) as running:
        answer = curl(
            "-X", "POST", f"{running.url}/api/v1/execute", *AS_JSON,
            "-d", '{"action_type": "read", "target": "crm"}',
        )  # fmt: skip
    assert (answer["status"], answer["data"]) == ("success", {"did": "read"})


def test_executor_of_the_command_line_is_found_in_the_working_folder(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(EXECUTOR)
    with Server(tmp_path, "--executor", "mine:MyExecutor") as running:
        answer = curl(
            "-X", "POST", f"{running.url}/api/v1/execute", *AS_JSON,
            "-d", '{"action_type": "read", "target": "crm"}',
        )  # fmt: skip
    assert (answer["status"], answer["data"]) == ("success", {"did": "read"})
