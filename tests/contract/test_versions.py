"""`/api/v1/policy/versions` and `/rollback`: every policy that was ever in force, and the way back."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from aegis.auth.keys_file import add_key, change_keys
from aegis.auth.roles import Role
from tests.contract.client import (
    EVALUATE,
    POLICY_PATH,
    ROLLBACK,
    VERSIONS,
    Client,
    app_of,
    served,
)

FIRST = "rules: [{name: first, approval: auto}]"
SECOND = "rules: [{name: second, approval: auto}]"


def rule_for(client: Client) -> str:
    """The rule that decides."""
    return str(client.post(EVALUATE, {"type": "read"}).json["matched_rule"])


def put(client: Client, text: str, query: str = "") -> int:
    """Put a policy; its version."""
    reply = client.put(f"{POLICY_PATH}{query}", {"yaml": text})
    assert reply.status == 200
    return int(reply.json["version"])


@pytest.fixture
def client() -> Iterator[Client]:
    """A server with three versions: its file, and two that were put."""
    with served() as made:
        assert [put(made, FIRST), put(made, SECOND, "?note=not%20bad")] == [2, 3]
        yield made


# --- reading -------------------------------------------------------------------------------------


def test_versions_are_listed_newest_first(client: Client) -> None:
    versions = client.get(VERSIONS).json
    assert [(one["version"], one["origin"], one["note"]) for one in versions] == [
        (3, "put", "not bad"),
        (2, "put", None),
        (1, "file", None),
    ]
    assert versions[1]["sha256"] == hashlib.sha256(FIRST.encode()).hexdigest()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}\+00:00", versions[0]["created"])


@pytest.mark.parametrize(
    ("query", "numbers"),
    [
        ("?limit=1", [3]),
        ("?limit=0", []),
        ("?before=3", [2, 1]),
        ("?before=3&limit=1", [2]),
        ("?before=1", []),
        ("?before=&limit=", [3, 2, 1]),
    ],
)
def test_versions_are_listed_in_pages(client: Client, query: str, numbers: list[int]) -> None:
    assert [one["version"] for one in client.get(VERSIONS + query).json] == numbers


@pytest.mark.parametrize(
    "query",
    [
        "?limit=1001",
        "?limit=-1",
        "?limit=x",
        "?before=x",
        "?befor=1",
        "?before=%ff",
        f"?before={2**63}",
    ],
)
def test_impossible_page_is_refused(client: Client, query: str) -> None:
    reply = client.get(VERSIONS + query)
    assert (reply.status, reply.code) == (400, "invalid_query")


def test_version_is_answered_with_its_text(client: Client) -> None:
    answer = client.get(f"{VERSIONS}/2").json
    assert answer["source"] == FIRST
    assert (answer["version"], answer["origin"], answer["key_name"]) == (2, "put", None)
    assert answer.keys() - {"source"} == client.get(VERSIONS).json[0].keys()


@pytest.mark.parametrize(
    "item", ["4", "0", "-1", "x", "01x", "9" * 30, str(2**63), "1%2f", "{version", "2/"]
)
def test_version_that_is_not_there_is_not_found(client: Client, item: str) -> None:
    reply = client.get(f"{VERSIONS}/{item}")
    assert (reply.status, reply.code) == (404, "not_found")


def test_only_get_is_allowed_on_a_version(client: Client) -> None:
    for path in (f"{VERSIONS}/1", f"{VERSIONS}/4"):
        reply = client.ask("DELETE", path)
        assert (reply.status, reply.header("allow")) == (405, "GET, HEAD")
    assert client.ask("HEAD", f"{VERSIONS}/2").status == 200


@pytest.mark.one_interface
def test_versions_are_below_the_path_that_the_application_is_mounted_at() -> None:
    with served(root_path="/aegis") as client:
        assert client.get(f"{VERSIONS}/1").json["version"] == 1


# --- tags ----------------------------------------------------------------------------------------


def test_tag_of_the_policy_is_its_version(client: Client) -> None:
    assert client.get(POLICY_PATH).header("etag") == '"3"'
    assert client.put(POLICY_PATH, {"rules": []}).header("etag") == '"4"'
    assert client.post(ROLLBACK, {"version": 1}).header("etag") == '"5"'


def test_tag_that_was_read_is_taken_as_a_condition(client: Client) -> None:
    tag = client.get(POLICY_PATH).header("etag") or ""
    assert client.post(ROLLBACK, {"version": 1}, headers={"if-match": tag}).status == 200
    assert client.post(ROLLBACK, {"version": 2}, headers={"if-match": tag}).status == 412
    assert client.put(POLICY_PATH, {"rules": []}, headers={"if-match": tag}).status == 412
    assert client.get(POLICY_PATH).json["version"] == 4


# --- going back ----------------------------------------------------------------------------------


def test_earlier_version_is_in_force_again_as_a_new_one(client: Client) -> None:
    reply = client.post(ROLLBACK, {"version": 2})
    assert (reply.status, reply.json["status"]) == (200, "updated")
    assert (reply.json["version"], reply.json["rule_count"]) == (4, 1)
    assert reply.header("x-aegis-policy-version") == "4"
    assert rule_for(client) == "first"
    policy = client.get(POLICY_PATH).json
    assert (policy["origin"], policy["source"]) == ("rollback", FIRST)
    assert policy["note"] == "back to version 2"


def test_going_back_can_be_given_a_note(client: Client) -> None:
    client.post(ROLLBACK, {"version": 2, "note": "second was wrong"})
    assert client.get(POLICY_PATH).json["note"] == "second was wrong"


def test_number_of_a_version_may_be_written_as_any_number(client: Client) -> None:
    assert client.post(ROLLBACK, {"version": 1.0}).json["version"] == 4


def test_going_back_to_the_text_in_force_makes_no_new_version(client: Client) -> None:
    assert client.post(ROLLBACK, {"version": 3}).json["version"] == 3
    client.post(ROLLBACK, {"version": 2})
    assert client.post(ROLLBACK, {"version": 2}).json["version"] == 4
    assert len(client.get(VERSIONS).json) == 4


def test_going_back_to_no_version_is_not_found_and_changes_nothing(client: Client) -> None:
    reply = client.post(ROLLBACK, {"version": 9})
    assert (reply.status, reply.code) == (404, "not_found")
    assert rule_for(client) == "second"


@pytest.mark.parametrize(
    "body",
    [
        {},
        [],
        None,
        1,
        {"version": None},
        {"version": "1"},
        {"version": 1.5},
        {"version": True},
        {"version": 0},
        {"version": -1},
        {"version": 2**63},
        {"version": 1, "note": 5},
        {"version": 1, "note": "x" * 1_001},
    ],
)
def test_what_is_no_way_back_is_refused(client: Client, body: Any) -> None:
    reply = client.post(ROLLBACK, body if body is not None else [None])
    assert (reply.status, reply.code) == (400, "invalid_body")
    assert len(client.get(VERSIONS).json) == 3


def test_note_that_is_too_long_is_refused_and_changes_nothing(client: Client) -> None:
    reply = client.put(f"{POLICY_PATH}?note={'x' * 1_001}", {"rules": []})
    assert (reply.status, reply.code) == (400, "invalid_query")
    assert client.get(POLICY_PATH).json["version"] == 3


# --- who -----------------------------------------------------------------------------------------


def test_versions_name_the_key_that_made_them(tmp_path: Path) -> None:
    keys = tmp_path / "keys.yaml"
    for name in ("ann", "bob"):
        change_keys(str(keys), partial(_with_operator, name))
    with served(app_of(keys_path=keys)) as client:
        client.put(POLICY_PATH, {"yaml": FIRST}, headers={"x-api-key": "ann"})
        client.post(ROLLBACK, {"version": 1}, headers={"x-api-key": "bob"})
        versions = client.get(VERSIONS, headers={"x-api-key": "ann"}).json
        assert [one["key_name"] for one in versions] == ["bob", "ann", None]


def _with_operator(name: str, source: str) -> str:
    return add_key(source, "keys.yaml", name, Role.OPERATOR, name, [], "")


def test_versions_outlive_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "audit.db"
    with served(app_of(audit_db_path=path)) as client:
        put(client, FIRST)
    with served(app_of(audit_db_path=path)) as client:
        assert [one["version"] for one in client.get(VERSIONS).json] == [2, 1]
        client.post(ROLLBACK, {"version": 1})
        assert rule_for(client) == "reads"
    with served(app_of(audit_db_path=path)) as client:
        assert rule_for(client) == "reads"
        assert client.get(POLICY_PATH).json["origin"] == "rollback"
