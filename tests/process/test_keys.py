"""`aegis keys` and `aegis serve --keys`: keys that come and go while servers run."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from time import monotonic

import pytest

from tests.process.server import Ended, Server, end_of, until

READ = {"action_type": "read"}
EVALUATE = ("POST", "/api/v1/evaluate", READ)


def keys(folder: Path, *arguments: str) -> Ended:
    """`aegis keys …` in a folder."""
    return end_of(folder, "keys", *arguments)


def new(folder: Path, name: str, *options: str) -> dict[str, str]:
    """Headers with a new key."""
    done = keys(folder, "new", name, *options)
    assert done.code == 0, done
    return {"X-API-Key": done.stdout.strip()}


def test_new_key_is_printed_alone_and_not_in_the_file(tmp_path: Path) -> None:
    done = keys(tmp_path, "new", "bot", "--role", "agent")
    assert done.stdout.startswith("aegis_")
    assert done.stdout.count("\n") == 1
    assert "added `bot` to keys.yaml" in done.stderr
    assert done.stdout.strip() not in (tmp_path / "keys.yaml").read_text()


def test_listed_keys_are_those_that_were_made(tmp_path: Path) -> None:
    new(
        tmp_path,
        "bot",
        "--role",
        "agent",
        "--agents",
        "crm-*",
        "--agents",
        "mail",
        "--expires",
        "30d",
    )
    new(tmp_path, "ops", "--role", "operator")
    lines = keys(tmp_path, "list").stdout.splitlines()
    assert [line.split()[:2] for line in lines] == [
        ["NAME", "ROLE"],
        ["bot", "agent"],
        ["ops", "operator"],
    ]
    assert "crm-* mail" in lines[1]
    assert lines[2].endswith("never")
    first, second = json.loads(keys(tmp_path, "list", "--format", "json").stdout)
    assert (first["agents"], first["expired"]) == (["crm-*", "mail"], False)
    assert (second["role"], second["expires"]) == ("operator", None)


def test_revoked_key_is_not_listed(tmp_path: Path) -> None:
    new(tmp_path, "bot", "--role", "agent")
    assert keys(tmp_path, "revoke", "bot").code == 0
    assert json.loads(keys(tmp_path, "list", "--format", "json").stdout) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("new", "bot"), "--role"),
        (("new", "bot", "--role", "root"), "root"),
        (("new", "b t", "--role", "agent"), "name `b t` must be"),
        (("new", "bot", "--role", "agent", "--expires", "soon"), "must be a time as in"),
        (("new", "bot", "--role", "agent", "--expires", "2020-01-01T00:00:00Z"), "is over already"),
        (("new", "bot", "--role", "agent", "--expires", "2020-01-01"), "is over already"),
        (("new", "bot", "--role", "auditor", "--agents", "x"), "speaks for nobody"),
        (("revoke", "bot"), "there is no key `bot` in `keys.yaml`"),
        (("list",), "cannot read the keys file"),
    ],
)
def test_what_cannot_be_done_is_exit_code_2_and_leaves_no_file(
    tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    done = keys(tmp_path, *arguments)
    assert (done.code, done.stdout) == (2, "")
    assert said in done.stderr
    assert not (tmp_path / "keys.yaml").exists()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_keys_come_and_go_on_every_worker_while_it_serves(tmp_path: Path, workers: str) -> None:
    first = new(tmp_path, "first", "--role", "admin")
    with Server(tmp_path, "--keys", "keys.yaml", "--workers", workers) as server:
        assert server.ask(*EVALUATE).status == 401
        assert server.ask(*EVALUATE, headers=first).status == 200
        second = new(tmp_path, "second", "--role", "agent")
        keys(tmp_path, "revoke", "first")
        changed = monotonic()

        def have_changed() -> bool:
            # Each on a connection of its own, so that all workers are asked.
            answers = [server.ask(*EVALUATE, headers=key).status for key in [first, second] * 8]
            return answers == [401, 200] * 8

        until(have_changed, "all workers have read the file")
        assert monotonic() - changed < 1.0
    assert "keys.yaml` was read again: 1 keys" in server.stderr


def test_broken_file_leaves_the_keys_in_force_and_is_told(tmp_path: Path) -> None:
    key = new(tmp_path, "bot", "--role", "agent")
    with Server(tmp_path, "--keys", "keys.yaml") as server:
        (tmp_path / "keys.yaml").write_text("keys: [")

        def is_told() -> bool:
            assert server.ask(*EVALUATE, headers=key).status == 200
            return "the keys that were read before stay in force" in server.stderr

        assert until(is_told, "the log says so")


def test_worker_that_is_replaced_while_the_file_is_broken_knows_the_last_good_keys(
    tmp_path: Path,
) -> None:
    key = new(tmp_path, "bot", "--role", "agent")
    with Server(tmp_path, "--keys", "keys.yaml", "--workers", "2") as server:
        server.wait_for_workers(2)
        good = (tmp_path / "keys.yaml").read_text()
        (tmp_path / "keys.yaml").write_text("keys: [")
        for pid in server.children:
            os.kill(pid, signal.SIGKILL)
        until(lambda: _status(server, key) == 200, "one is back")
        server.wait_for_workers(2)
        assert {_status(server, key) for _ in range(20)} == {200}
        ready = server.ask("GET", "/health/ready")
        assert (ready.status, ready.json()["keys_file"]) == (
            200,
            {"failures": 1, "error": "the keys file is refused; the log says why"},
        )
        for arguments in (("list",), ("new", "x", "--role", "agent"), ("revoke", "bot")):
            assert keys(tmp_path, *arguments).code == 2
        assert (tmp_path / "keys.yaml").read_text() == "keys: ["
        (tmp_path / "keys.yaml").write_text(good)
        until(
            lambda: server.ask("GET", "/health/ready").json()["keys_file"]["error"] is None,
            "it is told that the file is good again",
        )
        assert server.stop() == 0


def _status(server: Server, key: dict[str, str]) -> int | None:
    try:
        return server.ask(*EVALUATE, headers=key).status
    except OSError:
        return None


def test_server_says_how_many_keys_there_are(tmp_path: Path) -> None:
    new(tmp_path, "bot", "--role", "agent")
    with Server(tmp_path, env={"AEGIS_KEYS": "keys.yaml"}) as server:
        assert "callers    keyed, 1 keys in keys.yaml" in server.stdout


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "cannot read the keys file"), ("keys: [{name: x}]", "keys.yaml:1: role is missing")],
)
def test_server_does_not_start_with_a_file_that_is_refused(
    tmp_path: Path, content: str | None, said: str
) -> None:
    (tmp_path / "policy.yaml").write_text("rules: []")
    if content is not None:
        (tmp_path / "keys.yaml").write_text(content)
    done = end_of(tmp_path, "serve", "policy.yaml", "--port", "0", "--keys", "keys.yaml")
    assert (done.code, done.stdout) == (2, "")
    assert said in done.stderr


def test_empty_variable_is_not_taken_for_no_keys(tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text("rules: []")
    done = end_of(tmp_path, "serve", "policy.yaml", "--port", "0", env={"AEGIS_KEYS": ""})
    assert done.code == 2
    assert "AEGIS_KEYS is set but empty" in done.stderr


def test_keys_file_is_enough_to_serve_other_machines(tmp_path: Path) -> None:
    new(tmp_path, "bot", "--role", "agent")
    with Server(tmp_path, "--keys", "keys.yaml", "--host", "0.0.0.0") as server:
        assert server.ask(*EVALUATE).status == 401
