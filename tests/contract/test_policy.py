"""`/api/v1/policy`: the policy in force, and its change."""

from __future__ import annotations

import asyncio
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from aegis.policy.loader import load_text
from aegis.server import create_app
from tests.contract.client import (
    EVALUATE,
    EXECUTE,
    POLICY,
    POLICY_PATH,
    RELOAD,
    ROLLBACK,
    Client,
    Reply,
    app_of,
    app_of_file,
    served,
)

YAML = {"content-type": "application/yaml"}
OPEN_TO_ALL = "rules: [{name: all, approval: auto, risk_level: low}]"


def rule_for(client: Client, action_type: str = "read") -> str:
    """The rule that decides about an action."""
    return str(client.post(EVALUATE, {"type": action_type}).json["matched_rule"])


def assert_unchanged(client: Client) -> None:
    """The first policy is in force."""
    policy = client.get(POLICY_PATH).json
    assert (policy["version"], len(policy["rules"])) == (1, 3)
    assert rule_for(client) == "reads"


# --- reading -------------------------------------------------------------------------------------


def test_policy_is_answered_as_it_is_in_force() -> None:
    policy = """\
defaults: {risk_level: HIGH, approval: auto}
rules:
  - match: {type: "a*", target: "b?", agent: "[c]"}
    conditions: {param_gt: {count: 100}, time_after: "18:00", timezone: Europe/Paris}
  - {name: named, description: free, risk_level: low, approval: block}
"""
    with served(app_of(policy)) as client:
        answer = client.get(POLICY_PATH).json
        assert answer["default_risk_level"] == "HIGH"
        assert answer["default_approval"] == "auto"
        assert answer["version"] == 1
        assert answer["rules"] == [
            {
                "name": "rule_0",
                "match_type": "a*",
                "match_target": "b?",
                "match_agent": "[c]",
                "risk_level": "MEDIUM",
                "approval": "approve",
                "conditions": {
                    "param_gt": {"count": 100},
                    "time_after": "18:00",
                    "timezone": "Europe/Paris",
                },
            },
            {
                "name": "named",
                "match_type": "*",
                "match_target": "*",
                "match_agent": "*",
                "risk_level": "LOW",
                "approval": "block",
                "conditions": {},
            },
        ]


def test_source_is_the_text_of_the_file_and_sha256_is_its_digest(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(f"# ä comment\n{POLICY}", encoding="utf-8")
    with served(create_app(path, ":memory:")) as client:
        answer = client.get(POLICY_PATH).json
        assert answer["source"] == path.read_text("utf-8")
        assert answer["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_source_loads_as_the_policy_in_force() -> None:
    with served() as client:
        source = client.get(POLICY_PATH).json["source"]
        assert load_text(source).policy == load_text(POLICY).policy


def test_without_a_policy_the_defaults_block_everything() -> None:
    with served(create_app(audit_db_path=":memory:")) as client:
        assert client.get(POLICY_PATH).json["rules"] == []
        assert client.post(EVALUATE, {"type": "read"}).json["is_allowed"] is False


# --- changing ------------------------------------------------------------------------------------


def put_json(client: Client) -> Reply:
    return client.put(POLICY_PATH, {"rules": [{"name": "all", "approval": "auto"}]})


def put_yaml_in_json(client: Client) -> Reply:
    return client.put(POLICY_PATH, {"yaml": OPEN_TO_ALL})


def put_yaml(client: Client) -> Reply:
    return client.put(POLICY_PATH, body=OPEN_TO_ALL.encode(), headers=YAML)


@pytest.mark.parametrize("put", [put_json, put_yaml_in_json, put_yaml])
def test_policy_is_put_in_any_of_its_forms(put: Any) -> None:
    with served() as client:
        reply = put(client)
        assert reply.status == 200
        assert reply.json["status"] == "updated"
        assert (reply.json["rule_count"], reply.json["version"]) == (1, 2)
        assert reply.header("x-aegis-policy-version") == "2"
        assert rule_for(client, "anything") == "all"
        assert client.get(POLICY_PATH).json["version"] == 2


@pytest.mark.parametrize(
    "declared",
    [
        "application/yaml",
        "application/x-yaml",
        "text/yaml",
        "text/x-yaml; charset=utf-8",
        "Application/YAML",
    ],
)
def test_yaml_may_be_declared_in_each_of_its_names(declared: str) -> None:
    with served() as client:
        body, headers = OPEN_TO_ALL.encode(), {"content-type": declared}
        assert client.put(POLICY_PATH, body=body, headers=headers).status == 200


@pytest.mark.parametrize(
    "document",
    [
        {"rules": []},
        {"rules": None},
        {"defaults": {"approval": "auto"}},
        {"rules": [], "defaults": None, "version": "1", "x-owner": "me", "description": "d"},
    ],
)
def test_document_may_leave_out_what_a_file_may(document: Any) -> None:
    with served() as client:
        reply = client.put(POLICY_PATH, document)
        assert (reply.status, reply.json["rule_count"]) == (200, 0)


def test_comment_alone_is_a_policy_of_nothing_but_the_defaults() -> None:
    with served() as client:
        assert client.put(POLICY_PATH, body=b"# nothing\n", headers=YAML).status == 200
        assert rule_for(client) == "<default>"


def test_source_of_a_put_policy_is_its_text() -> None:
    with served() as client:
        put_yaml(client)
        answer = client.get(POLICY_PATH).json
        assert answer["source"] == OPEN_TO_ALL
        assert answer["sha256"] == hashlib.sha256(OPEN_TO_ALL.encode()).hexdigest()


def test_each_put_is_a_version_of_its_own() -> None:
    with served() as client:
        puts = [put_json, put_yaml, put_json]
        assert [put(client).json["version"] for put in puts] == [2, 3, 4]


def test_put_of_the_text_in_force_makes_no_new_version() -> None:
    with served() as client:
        replies = [put_yaml(client), put_yaml(client), put_yaml_in_json(client)]
        assert [reply.json["version"] for reply in replies] == [2, 2, 2]
        assert {reply.json["status"] for reply in replies} == {"updated"}
        refused = client.put(POLICY_PATH, {"yaml": OPEN_TO_ALL}, headers={"if-match": '"1"'})
        assert refused.status == 412


def test_policy_over_the_body_limit_of_actions_is_taken() -> None:
    text = OPEN_TO_ALL + "\n#" + "x" * (2 * 1024 * 1024)
    with served() as client:
        assert client.put(POLICY_PATH, body=text.encode(), headers=YAML).status == 200


def test_policy_over_16_mebibytes_is_refused() -> None:
    with served() as client:
        body = OPEN_TO_ALL.encode() + b"\n#" + b"x" * (16 * 1024 * 1024)
        assert client.put(POLICY_PATH, body=body, headers=YAML).status == 413
        assert_unchanged(client)


def test_warnings_are_answered() -> None:
    text = "rules:\n  - {name: all, approval: auto}\n  - {name: never, approval: auto}\n"
    with served() as client:
        reply = client.put(POLICY_PATH, {"yaml": text})
        (warning,) = reply.json["warnings"]
        assert (warning["line"], warning["rule"], warning["key"]) == (3, "never", "rules[1]")
        assert "rule `all` (rules[0]) on line 2 " in warning["message"]


# --- refusals ------------------------------------------------------------------------------------


def test_refused_policy_changes_nothing_and_lists_every_problem() -> None:
    text = "rules:\n  - match: {typ: x}\n    approval: maybe\n  - {risk_level: 5}\n"
    with served() as client:
        for reply in (
            client.put(POLICY_PATH, {"yaml": text}),
            client.put(POLICY_PATH, body=text.encode(), headers=YAML),
        ):
            assert (reply.status, reply.code) == (400, "invalid_policy")
            places = [(problem["line"], problem["key"]) for problem in reply.json["problems"]]
            assert places == [
                (2, "rules[0].match.typ"),
                (3, "rules[0].approval"),
                (4, "rules[1].risk_level"),
            ]
            assert "did you mean `type`" in reply.json["problems"][0]["message"]
        assert_unchanged(client)


def test_problems_of_a_document_have_lines_and_keys() -> None:
    with served() as client:
        reply = client.put(POLICY_PATH, {"rules": [{"name": "a", "approval": "maybe"}]})
        (problem,) = reply.json["problems"]
        assert (problem["line"], problem["rule"], problem["key"]) == (
            1,
            "a",
            "rules[0].approval",
        )
        assert_unchanged(client)


@pytest.mark.parametrize(
    "body",
    [
        {},
        [],
        None,
        5,
        "rules: []",
        {"yaml": None},
        {"yaml": 5},
        {"yaml": {"rules": []}},
        {"yaml": "rules: []", "rules": []},
        {"yaml": "rules: []", "defaults": {}},
        {"version": "1"},
        {"rules": {}},
        {"rules": [None]},
        {"rules": [], "rule": []},
        {"defaults": []},
        {"rules": [{"match": None}]},
        {"rules": [{"conditions": {"param_eq": {"a": None}}}]},
        {"yaml": "rules: [] \n---\nrules: []"},
        {"yaml": "rules: !!python/object:os.system []"},
        {"yaml": "\x00"},
    ],
    ids=repr,
)
def test_what_is_no_policy_is_refused_and_changes_nothing(body: Any) -> None:
    with served() as client:
        reply = client.put(POLICY_PATH, body=json.dumps(body).encode())
        assert reply.status == 400
        assert reply.code in ("invalid_body", "invalid_policy")
        assert_unchanged(client)


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b"", {}),
        (b"", YAML),
        (b"rules: []", {}),
        (b"rules: [", YAML),
        (b'{"yaml": "rules: []"}', YAML),
        (b"rules: \xff", YAML),
        (b'{"rules": [{"name": "\xff"}]}', {}),
    ],
)
def test_body_that_cannot_be_read_is_refused_and_changes_nothing(
    body: bytes, headers: dict[str, str]
) -> None:
    with served() as client:
        assert client.put(POLICY_PATH, body=body, headers=headers).status == 400
        assert_unchanged(client)


def test_key_that_stands_twice_is_refused() -> None:
    body = b'{"rules": [{"approval": "block"}], "rules": [{"approval": "auto"}]}'
    with served() as client:
        for reply in (
            client.put(POLICY_PATH, body=body, headers=YAML),
            client.put(POLICY_PATH, {"yaml": body.decode()}),
        ):
            assert reply.status == 400
            assert "stands twice" in reply.json["error"]
        assert_unchanged(client)


# --- If-Match ------------------------------------------------------------------------------------


@pytest.mark.parametrize("tag", ['"1"', "*"])
def test_put_on_the_version_that_it_knows_is_taken(tag: str) -> None:
    with served() as client:
        reply = client.put(POLICY_PATH, {"rules": []}, headers={"if-match": tag})
        assert (reply.status, reply.json["version"]) == (200, 2)


@pytest.mark.parametrize("tag", ['"2"', '"0"', '"nope"', '"01"'])
def test_put_on_another_version_is_refused_and_changes_nothing(tag: str) -> None:
    with served() as client:
        reply = client.put(POLICY_PATH, {"rules": []}, headers={"if-match": tag})
        assert reply.status == 412
        assert reply.code
        assert_unchanged(client)


def test_put_after_another_came_first_is_refused() -> None:
    with served() as client:
        put_yaml(client)
        reply = client.put(POLICY_PATH, {"rules": []}, headers={"if-match": '"1"'})
        assert reply.status == 412
        assert rule_for(client) == "all"


def test_of_many_puts_on_one_version_one_is_taken() -> None:
    async def scenario(client: Client) -> list[int]:
        headers = {"if-match": '"1"'}
        asked = [
            client.request("PUT", POLICY_PATH, {"rules": []}, headers=headers) for _ in range(8)
        ]
        return sorted(reply.status for reply in await asyncio.gather(*asked))

    with served() as client:
        assert client.run(scenario(client)) == [200] + [412] * 7
        assert client.get(POLICY_PATH).json["version"] == 2


# --- in force ------------------------------------------------------------------------------------


def test_many_puts_at_once_are_all_versions_and_the_highest_is_in_force() -> None:
    async def scenario(client: Client) -> list[tuple[int, str]]:
        asked = [
            client.request("PUT", POLICY_PATH, {"rules": [{"name": f"r{number}"}]})
            for number in range(12)
        ]
        replies = await asyncio.gather(*asked)
        return sorted((reply.json["version"], f"r{n}") for n, reply in enumerate(replies))

    with served() as client:
        versions = client.run(scenario(client))
        assert [version for version, _ in versions] == list(range(2, 14))
        assert rule_for(client) == versions[-1][1]


def test_execution_is_recorded_with_the_version_that_decided_it() -> None:
    with served() as client:
        client.post(EXECUTE, {"type": "read"})
        put_json(client)
        client.post(EXECUTE, {"type": "read"})
        assert [record["policy_version"] for record in client.records()] == [1, 2]


def test_decisions_go_on_while_policies_are_put() -> None:
    async def scenario(client: Client) -> list[int]:
        puts = [client.request("PUT", POLICY_PATH, {"yaml": OPEN_TO_ALL}) for _ in range(5)]
        asks = [client.request("POST", EVALUATE, {"type": "read"}) for _ in range(50)]
        return [reply.status for reply in await asyncio.gather(*puts, *asks)]

    with served() as client:
        assert set(client.run(scenario(client))) == {200}


@pytest.mark.parametrize(
    "text",
    ["a\x7fb", "a\x85b", "a\u2028b", "a\ufeffb", "a\uffffb", "a\tb", "\U0001f600", "k" * 1_100],
)
def test_put_policy_means_the_same_to_every_process_and_after_a_restart(
    text: str, tmp_path: Path
) -> None:
    path = tmp_path / "audit.db"
    rule = {
        "match": {"type": text},
        "conditions": {"param_eq": {text: text}},
        "approval": "auto",
        "name": "odd",
    }
    action = {"type": text, "params": {text: text}}
    with (
        served(app_of(audit_db_path=path)) as one,
        served(app_of(audit_db_path=path)) as other,
    ):
        assert one.put(POLICY_PATH, {"rules": [rule]}).status == 200
        assert one.post(EVALUATE, action).json["matched_rule"] == "odd"
        assert other.post(EVALUATE, action).json["matched_rule"] == "odd"
    with served(app_of(audit_db_path=path)) as client:
        assert client.post(EVALUATE, action).json["matched_rule"] == "odd"


@pytest.mark.parametrize("text", ['{"rules"\n:[]}', '{"rules":[]} ', '{"rules":[{"name":"\x85"}]}'])
def test_json_in_yaml_is_taken_or_refused_but_no_defect(text: str) -> None:
    with served() as client:
        assert client.put(POLICY_PATH, {"yaml": text}).status in (200, 400)


def test_document_that_was_taken_is_not_too_large_to_be_loaded_again(tmp_path: Path) -> None:
    path = tmp_path / "audit.db"
    texts = ["x" * 10] * 1_200_000
    body = json.dumps({"rules": [], "x-texts": texts}, separators=(",", ":")).encode()
    with served(app_of(audit_db_path=path)) as client:
        status = client.put(POLICY_PATH, body=body).status
    with served(app_of(audit_db_path=path)) as client:
        assert status in (200, 400, 413)
        assert client.get("/health/ready").status == 200


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PUT", POLICY_PATH, b'{"yaml":"rules: []","yaml":"rules: []"}'),
        ("PUT", POLICY_PATH, rb'{"yaml":"rules: []","\u0079aml":"{}"}'),
        ("PUT", POLICY_PATH, b'{"rules":[],"rules":[]}'),
        ("PUT", POLICY_PATH, b'{"rules":[{"name":"a","name":"b"}]}'),
        ("POST", ROLLBACK, b'{"version":1,"version":1}'),
    ],
)
def test_member_that_stands_twice_is_refused(method: str, path: str, body: bytes) -> None:
    with served() as client:
        reply = client.ask(method, path, body=body)
        assert reply.status == 400
        assert "twice" in reply.json["error"]
        assert client.get(POLICY_PATH).json["version"] == 1


def test_change_says_whether_it_changed_anything(tmp_path: Path) -> None:
    with served(app_of_file(tmp_path)) as client:
        assert client.ask("POST", RELOAD).json["changed"] is False
        assert client.put(POLICY_PATH, {"rules": []}).json["changed"] is True
        again = client.put(POLICY_PATH, {"rules": []}).json
        assert (again["status"], again["changed"], again["version"]) == ("updated", False, 2)
        assert client.post(ROLLBACK, {"version": 2}).json["changed"] is False
        assert client.post(ROLLBACK, {"version": 1}).json["changed"] is True
