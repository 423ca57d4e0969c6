"""`aegis policy`: versions of a running server and of a database, and the way back to one."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.process.server import POLICY, Ended, Server, end_of, free_port, until

TEXT = 'rules:\n  - {name: put, match: {type: "*"}, approval: auto}\n'


def policy(folder: Path, *arguments: str, **env: str) -> Ended:
    """`aegis policy …` in a folder."""
    return end_of(folder, "policy", *arguments, env=env)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with two versions: its file, and one that was put with a note."""
    with Server(tmp_path_factory.mktemp("versions"), "--workers", "2") as running:
        headers = {"content-type": "application/yaml"}
        put = running.ask("PUT", "/api/v1/policy?note=why%1bnot", TEXT.encode(), headers)
        assert put.status == 200
        yield running
        assert running.stderr == ""


def places(server: Server) -> list[tuple[str, ...]]:
    """Both ways to name the versions of a server."""
    return [("--url", server.url), ("--audit-db", "aegis_audit.db")]


def test_versions_are_listed_newest_first_from_server_and_database(server: Server) -> None:
    for place in places(server):
        lines = policy(server.folder, "list", *place).stdout.splitlines()
        assert [line.split()[0] for line in lines[:3]] == ["VERSION", "2", "1"]
        assert lines[1].endswith("why not")
        assert "put" in lines[1]
        assert "file" in lines[2]
        listed = policy(server.folder, "list", "--limit", "1", "--format", "json", *place)
        assert [one["version"] for one in json.loads(listed.stdout)] == [2]


def test_text_of_a_version_is_shown_as_it_was_written(server: Server) -> None:
    for place in places(server):
        assert policy(server.folder, "show", "1", *place).stdout == POLICY
        assert policy(server.folder, "show", *place).stdout == TEXT
        shown = json.loads(policy(server.folder, "show", "--format", "json", *place).stdout)
        assert (shown["version"], shown["note"], shown["source"]) == (2, "why\x1bnot", TEXT)


def test_versions_are_compared_line_by_line(server: Server) -> None:
    for place in places(server):
        lines = policy(server.folder, "diff", "1", *place).stdout.splitlines()
        assert lines[:2] == ["--- version 1", "+++ version 2"]
        assert '+  - {name: put, match: {type: "*"}, approval: auto}' in lines
        assert policy(server.folder, "diff", "1", "1", *place).stdout == ""


def test_what_is_not_there_is_one_line_and_exit_code_2(server: Server) -> None:
    nobody = f"http://127.0.0.1:{free_port()}"
    for arguments, said in (
        (("show", "9", "--url", server.url), "no policy version 9"),
        (("show", "9"), "no policy version 9"),
        (("rollback", "9", "--url", server.url), "no policy version 9"),
        (("list", "--url", nobody), "no Aegis answers"),
        (("list", "--url", "ftp://x"), "is no server"),
        (("list", "--audit-db", "missing.db"), "no database"),
    ):
        ended = policy(server.folder, *arguments)
        assert (ended.code, ended.stdout) == (2, "")
        assert said in ended.stderr
        assert len(ended.stderr.splitlines()) == 1
    assert not (server.folder / "missing.db").exists()


@pytest.mark.parametrize("by_url", [True, False])
def test_rollback_is_in_force_in_every_worker_when_it_has_said_so(
    tmp_path: Path, by_url: bool
) -> None:
    with Server(tmp_path, "--workers", "2") as server:
        server.put_rule("put")
        place = ("--url", server.url) if by_url else ()
        done = policy(tmp_path, "rollback", "1", "--note", "back", *place)
        assert done.stdout == "version 3 is in force, with the text of version 1\n"
        assert [server.rule_for("read") for _ in range(20)] == ["reads"] * 20
        newest = server.ask("GET", "/api/v1/policy").json()
        assert (newest["version"], newest["origin"], newest["note"]) == (3, "rollback", "back")
        assert server.stderr == ""


def test_key_of_the_environment_is_used(tmp_path: Path) -> None:
    keys = {"AEGIS_API_KEY": "user-key", "AEGIS_ADMIN_KEY": "admin-key"}
    with Server(tmp_path, env=keys) as server:
        listed = policy(tmp_path, "list", "--url", server.url, AEGIS_API_KEY="user-key")
        refused = policy(tmp_path, "rollback", "1", "--url", server.url, AEGIS_API_KEY="user-key")
        done = policy(tmp_path, "rollback", "1", AEGIS_URL=server.url, AEGIS_ADMIN_KEY="admin-key")
        unknown = policy(tmp_path, "list", "--url", server.url)
    assert (listed.code, refused.code, done.code, unknown.code) == (0, 2, 0, 2)
    assert "forbidden" in refused.stderr or "may not" in refused.stderr


def test_file_is_loaded_again_when_the_server_is_told_to(tmp_path: Path) -> None:
    with Server(tmp_path, "--workers", "2") as server:
        (tmp_path / "policy.yaml").write_text(TEXT)
        assert {server.rule_for("read") for _ in range(10)} == {"reads"}
        done = policy(tmp_path, "reload", "--url", server.url)
        assert done.stdout == "version 2 is in force, 1 rules\n"
        assert {server.rule_for("read") for _ in range(10)} == {"put"}
        (tmp_path / "policy.yaml").write_text("rules: [{nam: a}]")
        refused = policy(tmp_path, "reload", "--url", server.url)
        assert (refused.code, refused.stdout) == (2, "")
        assert "unknown key `nam`" in refused.stderr
        assert {server.rule_for("read") for _ in range(10)} == {"put"}


def test_file_that_is_watched_is_loaded_when_it_changes(tmp_path: Path) -> None:
    with Server(tmp_path, "--workers", "2", "--watch") as server:
        (tmp_path / "new.yaml").write_text(TEXT)
        (tmp_path / "new.yaml").replace(tmp_path / "policy.yaml")
        until(lambda: server.rule_for("read") == "put", "the new file is in force")
        # Whichever worker it was that looks at the file, another one does when it is gone.
        victim = min(server.children)
        os.kill(victim, signal.SIGKILL)
        until(lambda: len(server.children - {victim}) == 2, "another one is there")
        (tmp_path / "policy.yaml").write_text("rules: [{nam: a}]")
        until(lambda: "policy.yaml:1: " in server.stderr, "it is refused")
        ready = json.loads(server.ask("GET", "/health/ready").body)
        assert ready["policy_file"]["failures"] >= 1
        (tmp_path / "policy.yaml").write_text(TEXT.replace("put", "third"))
        until(lambda: server.rule_for("read") == "third", "the third file is in force")
        assert server.ask("GET", "/api/v1/policy").json()["version"] == 3
