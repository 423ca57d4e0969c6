"""`/api/v1/policy/reload`, and what `/health/ready` tells of the policy file."""

from __future__ import annotations

from pathlib import Path

from tests.contract.client import (
    EVALUATE,
    POLICY_PATH,
    RELOAD,
    VERSIONS,
    app_of_file,
    served,
)

NEW = "rules:\n  - {name: new, approval: auto}\n  - {name: never, approval: auto}\n"


def test_changed_file_is_in_force_when_it_is_answered(tmp_path: Path) -> None:
    with served(app_of_file(tmp_path)) as client:
        (tmp_path / "policy.yaml").write_text(NEW)
        reply = client.post(RELOAD)
        assert (reply.status, reply.json["status"], reply.json["version"]) == (200, "updated", 2)
        assert (reply.json["rule_count"], len(reply.json["warnings"])) == (2, 1)
        assert reply.header("etag") == '"2"'
        assert client.post(EVALUATE, {"type": "read"}).json["matched_rule"] == "new"
        assert client.get(POLICY_PATH).json["origin"] == "file"


def test_unchanged_file_changes_nothing(tmp_path: Path) -> None:
    with served(app_of_file(tmp_path)) as client:
        assert client.post(RELOAD).json["version"] == 1
        client.put(POLICY_PATH, {"rules": []})
        assert client.post(RELOAD).json["version"] == 2
        assert len(client.get(VERSIONS).json) == 2


def test_refused_file_changes_nothing_and_is_told_without_the_policy(tmp_path: Path) -> None:
    with served(app_of_file(tmp_path)) as client:
        assert client.get("/health/ready").json == {"status": "ok"}
        (tmp_path / "policy.yaml").write_text("rules:\n  - {nam: secret}\n")
        reply = client.post(RELOAD)
        assert (reply.status, reply.code) == (400, "invalid_policy")
        assert [problem["line"] for problem in reply.json["problems"]] == [2]
        assert client.post(EVALUATE, {"type": "read"}).json["matched_rule"] == "reads"
        ready = client.get("/health/ready")
        assert (ready.status, ready.json["policy_file"]["failures"]) == (200, 1)
        assert "line 2" in ready.json["policy_file"]["error"]
        assert b"secret" not in ready.body
        (tmp_path / "policy.yaml").write_text(NEW)
        assert client.post(RELOAD).status == 200
        assert client.get("/health/ready").json["policy_file"] == {"failures": 1, "error": None}


def test_file_that_is_gone_is_503(tmp_path: Path) -> None:
    with served(app_of_file(tmp_path)) as client:
        (tmp_path / "policy.yaml").unlink()
        reply = client.post(RELOAD)
        assert (reply.status, reply.code) == (503, "not_ready")


def test_without_a_file_there_is_nothing_to_reload() -> None:
    with served() as client:
        reply = client.post(RELOAD)
        assert (reply.status, reply.code) == (404, "not_found")


def test_file_holds_for_every_process_when_it_is_answered(tmp_path: Path) -> None:
    path = tmp_path / "audit.db"
    with (
        served(app_of_file(tmp_path, audit_db_path=path)) as one,
        served(app_of_file(tmp_path, audit_db_path=path)) as other,
    ):
        (tmp_path / "policy.yaml").write_text(NEW)
        assert one.post(RELOAD).json["workers"] == 2
        assert other.post(EVALUATE, {"type": "read"}).json["matched_rule"] == "new"
