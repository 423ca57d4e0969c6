"""`aegis serve` as an operator meets it: start, stop, restart, what it prints, what it withstands."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from time import monotonic

import apsw
import click
import pytest

import aegis
from aegis.cli.serve import serve
from tests.process.server import (
    COMMAND,
    POLICY,
    Answer,
    Connection,
    Ended,
    Program,
    Server,
    end_of,
    free_port,
    is_listening,
    is_running,
    until,
)

EVALUATE, EXECUTE, PUT = "/api/v1/evaluate", "/api/v1/execute", "/api/v1/policy"
READ = {"action_type": "read", "target": "crm"}
SOON_S = 8.0
"""Well below the time after which a worker that does not stop is killed."""

ECHO = """
from aegis import Executor, Result, ResultStatus

class Echo(Executor):
    async def execute(self, action):
        return Result(action, ResultStatus.SUCCESS, data={"echo": action.target})
"""
BREAKS = """
from aegis import Executor

class SetupFails(Executor):
    async def execute(self, action): ...
    async def setup(self):
        raise RuntimeError("the mail server\\nis away")

class SetupHangs(Executor):
    async def execute(self, action): ...
    async def setup(self):
        import asyncio, pathlib
        pathlib.Path("setting-up").touch()
        await asyncio.sleep(3600)

class NotAnExecutor:
    pass
"""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server for tests that leave it as it was; it must have met no defect in the end."""
    with Server(tmp_path_factory.mktemp("shared"), "--body-timeout", "1") as running:
        yield running
        assert running.ask("POST", EVALUATE, READ).status == 200
        assert running.stderr == ""
        assert running.stop() == 0


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with two workers."""
    with Server(tmp_path_factory.mktemp("pair"), "--workers", "2") as running:
        yield running
        assert running.stderr == ""
        assert running.stop() == 0


def connections_to_both(server: Server) -> list[Connection]:
    """A connection to each of the two workers."""
    found: dict[str, Connection] = {}

    def both() -> bool:
        connection = server.connect()
        worker = connection.ask("GET", "/health").worker
        if worker in found:
            connection.socket.close()
        else:
            found[worker] = connection
        return len(found) == 2

    until(both, "both workers answer")
    return list(found.values())


# --- start block ---------------------------------------------------------------------------------


def test_start_block_says_what_runs_and_for_whom(tmp_path: Path) -> None:
    with Server(tmp_path) as server:
        said = server.stdout.splitlines()
    assert said[0] == f"Aegis {aegis.__version__} at http://127.0.0.1:{server.port}"
    block = dict(line.strip().split(maxsplit=1) for line in said[1:])
    assert block["policy"] == "version 1, 4 rules, from policy.yaml"
    assert block["database"] == "aegis_audit.db"
    assert block["callers"] == "keyless: this machine only"
    assert "auto-approval" in block["approval"]
    assert block["executor"].startswith("none")


def test_start_block_says_that_keys_are_needed_and_never_the_keys(tmp_path: Path) -> None:
    keys = {"AEGIS_API_KEY": "user-key-1234", "AEGIS_ADMIN_KEY": "admin-key-5678"}
    with Server(tmp_path, env=keys) as server:
        said = server.stdout + server.stderr
    assert "keyed" in said
    assert "admin key" in said
    assert "1234" not in said
    assert "5678" not in said


def test_start_block_warns_of_what_is_odd_about_the_policy(tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text(
        "rules:\n  - {name: all, match: {type: '*'}}\n  - {name: never, match: {type: read}}\n"
    )
    with Server(tmp_path) as server:
        said = server.stdout
    assert re.search(r"warning +policy\.yaml:2: rule `all`: rules\[0\]: has no `approval`", said)
    assert re.search(r"warning +policy\.yaml:3: rule `never`: rules\[1\]: can never match", said)


def test_start_block_warns_of_the_first_oddities_only(tmp_path: Path) -> None:
    rules = "".join(f"  - {{name: r{n}, match: {{type: t{n}}}}}\n" for n in range(13))
    (tmp_path / "policy.yaml").write_text(f"rules:\n{rules}")
    with Server(tmp_path) as server:
        said = server.stdout
    assert len(re.findall(r"warning +policy\.yaml:", said)) == 10
    assert re.search(r"warning +and 3 more\n", said)


def test_start_block_warns_of_a_policy_that_was_put(tmp_path: Path) -> None:
    with Server(tmp_path) as server:
        assert server.ask("PUT", "/api/v1/policy", {"yaml": "rules: [{name: a}]"}).status == 200
    with Server(tmp_path) as server:
        said = server.stdout
    assert re.search(r"warning +version 2:1: rule `a`: rules\[0\]: matches every action", said)


def test_start_block_names_workers_and_executor(tmp_path: Path) -> None:
    (tmp_path / "echo.py").write_text(ECHO)
    with Server(tmp_path, "--workers", "2", "--executor", "echo:Echo") as server:
        said = server.stdout
    assert re.search(r"workers +2\n", said)
    assert re.search(r"executor +echo:Echo\n", said)


FAILING = """
import logging

from aegis import Executor

_log = logging.getLogger("crm.client")


class Failing(Executor):
    async def execute(self, action):
        _log.warning("the CRM is slow")
        raise RuntimeError(f"no access by {action.params['token']}")
"""


def test_log_tells_what_an_executor_logs_and_raises(tmp_path: Path) -> None:
    (tmp_path / "failing.py").write_text(FAILING)
    with Server(tmp_path, "--executor", "failing:Failing") as server:
        answer = server.ask("POST", "/api/v1/execute", READ | {"params": {"token": "s3cret"}})
        assert answer.json()["error"] == "RuntimeError: no access by [REDACTED]"
        said = server.stderr
    assert said.startswith(
        "crm.client: warning: the CRM is slow\n"
        "aegis: error: the executor failed on `read`:\nTraceback (most recent call last):\n"
    )
    assert said.endswith("\nRuntimeError: no access by [REDACTED]\n")
    assert "failing.py" in said


def test_names_of_secrets_and_the_limit_of_results_are_chosen(tmp_path: Path) -> None:
    (tmp_path / "echo.py").write_text(ECHO)
    options = ("--redact", "ssn,iban", "--redact", "pin", "--redact-except", "shipping token_count")
    with Server(
        tmp_path, "--executor", "echo:Echo", "--max-result-bytes", "256", *options
    ) as server:
        params = {"SSN": 1, "user_iban": 2, "shipping": 3, "token_count": 4, "pin": 5, "token": 6}
        server.ask("POST", "/api/v1/execute", READ | {"params": params, "target": "x" * 300})
        (record,) = server.ask("GET", "/api/v1/audit").json()
    stored = json.loads(record["action_params"])
    assert {name for name, value in stored.items() if value == "[REDACTED]"} == {
        "SSN", "user_iban", "pin", "token",
    }  # fmt: skip
    assert json.loads(record["result_data"])["omitted"] == "too large"


def test_start_block_is_printed_once_whatever_the_number_of_workers(pair: Server) -> None:
    assert pair.stdout.count("Aegis ") == 1


# --- options -------------------------------------------------------------------------------------


@pytest.mark.parametrize("parameter", serve.params, ids=lambda parameter: str(parameter.name))
def test_every_option_can_be_given_by_the_environment(parameter: click.Parameter) -> None:
    assert parameter.envvar == f"AEGIS_{str(parameter.name).upper()}"


def test_server_starts_by_the_environment_alone(tmp_path: Path) -> None:
    (tmp_path / "echo.py").write_text(ECHO)
    settings = {
        "AEGIS_POLICY": "policy.yaml",
        "AEGIS_HOST": "localhost",
        "AEGIS_PORT": "0",
        "AEGIS_WORKERS": "2",
        "AEGIS_AUDIT_DB": "other.db",
        "AEGIS_EXECUTOR": "echo:Echo",
        "AEGIS_ALLOWED_HOSTS": "aegis.test,other.test",
        "AEGIS_MAX_BATCH": "1",
        "AEGIS_MAX_BODY_BYTES": "300",
        "AEGIS_MAX_NESTING": "3",
        "AEGIS_RESET_POLICY": "1",
        "AEGIS_KEEP_ALIVE": "1.5",
    }
    with Server(tmp_path, arguments=(), env=settings) as server:
        answers = [
            server.ask("POST", EVALUATE, READ, {"host": "aegis.test"}),
            server.ask("POST", EVALUATE, READ, {"host": "elsewhere.test"}),
            server.ask("POST", EVALUATE, [READ, READ]),
            server.ask("POST", EVALUATE, READ | {"description": "x" * 300}),
            server.ask("POST", EVALUATE, READ | {"params": {"a": [[1]]}}),
        ]
        executed = server.ask("POST", EXECUTE, READ).json()
        workers = server.children
        with server.connect() as idle:
            assert idle.ask("GET", "/health", headers={"host": "aegis.test"}).status == 200
            begun = monotonic()
            assert idle.is_closed()
            assert monotonic() - begun > 1.0
    assert [answer.status for answer in answers] == [200, 403, 400, 413, 400]
    assert executed["data"] == {"echo": "crm"}
    assert len(workers) == 2
    assert (tmp_path / "other.db").exists()


def test_what_kubernetes_sets_for_a_service_is_passed_over_with_a_warning(tmp_path: Path) -> None:
    links = {"AEGIS_WORKERS": "tcp://10.96.0.12:8000", "AEGIS_SERVICE_PORT": "8000"}
    with Server(tmp_path, env=links) as server:
        assert server.ask("GET", "/health").status == 200
        assert "warning: AEGIS_WORKERS=tcp://10.96.0.12:8000 is passed over" in server.stderr
        assert len(server.stderr.splitlines()) == 1


def test_port_of_a_service_leaves_the_default(tmp_path: Path) -> None:
    links = {"AEGIS_PORT": "tcp://10.96.0.12:8000"}
    ended = end_of(tmp_path, "serve", "missing.yaml", env=links)
    assert ended.code == 2
    assert "`missing.yaml`" in ended.stderr
    assert "AEGIS_PORT=tcp" in ended.stderr


def test_option_beats_its_variable(tmp_path: Path) -> None:
    with Server(tmp_path, "--max-batch", "2", env={"AEGIS_MAX_BATCH": "1"}) as server:
        assert server.ask("POST", EVALUATE, [READ, READ]).status == 200


def test_keys_of_the_environment_are_needed_to_call(tmp_path: Path) -> None:
    keys = {"AEGIS_API_KEY": "user-key", "AEGIS_ADMIN_KEY": "admin-key"}
    with Server(tmp_path, env=keys) as server:
        statuses = [
            server.ask("GET", "/health").status,
            server.ask("POST", EVALUATE, READ).status,
            server.ask("POST", EVALUATE, READ, {"x-api-key": "user-key"}).status,
            server.ask("POST", EVALUATE, READ, {"authorization": "Bearer admin-key"}).status,
            server.ask("PUT", PUT, {"rules": []}, {"x-api-key": "user-key"}).status,
            server.ask("PUT", PUT, {"rules": []}, {"x-api-key": "admin-key"}).status,
        ]
    assert statuses == [200, 401, 200, 200, 403, 200]


def test_database_in_memory_serves_one_worker_and_leaves_no_file(tmp_path: Path) -> None:
    with Server(tmp_path, "--audit-db", ":memory:") as server:
        assert server.ask("POST", EXECUTE, READ).status == 200
        assert len(server.audit()) == 1
        assert server.rule_for("read") == "reads"
        assert server.put_rule("kept_in_memory") > 0
        assert server.rule_for("read") == "kept_in_memory"
    assert not [path for path in tmp_path.iterdir() if ".db" in path.name or "memory" in path.name]


# --- what it cannot start with -------------------------------------------------------------------


def assert_cannot_start(ended: Ended, said: str, *, lines: int = 1) -> None:
    """It ended with exit code 2 and said why, line by line, and nothing else."""
    assert ended.code == 2, ended
    assert re.search(said, ended.stderr), ended.stderr
    assert len(ended.stderr.splitlines()) == lines, ended.stderr
    assert "Traceback" not in ended.stderr
    assert ended.stdout == ""
    assert ended.seconds < SOON_S


def write_foreign_database(path: Path, statement: str) -> None:
    """A database that is not ours."""
    with apsw.Connection(str(path)) as connection:
        connection.execute(statement)
    connection.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with all that a server may wrongly be started with."""
    (tmp_path / "policy.yaml").write_text(POLICY)
    (tmp_path / "bad.yaml").write_text("rules:\n  - {nam: a}\n  - {name: b, aproval: auto}\n")
    (tmp_path / "breaks.py").write_text(BREAKS)
    (tmp_path / "raises.py").write_text("raise RuntimeError('no\\nluck')\n")
    (tmp_path / "exits.py").write_text("import sys\nsys.exit('not today')\n")
    (tmp_path / "text.db").write_text("this is a text " * 1000)
    write_foreign_database(tmp_path / "foreign.db", "CREATE TABLE customers (name TEXT)")
    write_foreign_database(tmp_path / "old.db", "CREATE TABLE audit_log (id INTEGER)")
    return tmp_path


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--host", "0.0.0.0"), r"`0\.0\.0\.0`.*AEGIS_API_KEY"),
        (("--host", "::"), r"`::`.*--allow-unauthenticated"),
        (("--host", "no.such.host.invalid"), "no.such.host.invalid"),
        (("--host", "192.0.2.1", "--allow-unauthenticated"), "192.0.2.1"),
        (("--audit-db", "missing/audit.db"), r"missing/audit\.db"),
        (("--audit-db", "policy.yaml/audit.db"), r"policy\.yaml/audit\.db"),
        (("--audit-db", "."), "`.`"),
        (("--audit-db", "foreign.db"), r"foreign\.db.*another program"),
        (("--audit-db", "old.db"), r"old\.db.*agent-aegis"),
        (("--audit-db", "text.db"), r"text\.db.*not a SQLite database"),
        (("--executor", "nowhere:Executor"), "nowhere:Executor"),
        (("--executor", "breaks:Missing"), "breaks:Missing.*Missing"),
        (("--executor", "breaks"), "module:Class"),
        (("--executor", "breaks:NotAnExecutor"), "breaks:NotAnExecutor.*execute"),
        (("--executor", "raises:Executor"), "raises:Executor.*no luck"),
        (("--executor", "exits:Executor"), "exits:Executor"),
        (("--executor", "breaks:SetupFails"), "setup failed: the mail server is away"),
        (("--executor", "breaks:SetupFails", "--workers", "2"), "setup failed: the mail server"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_startup_problem_is_one_line_and_exit_code_2(
    folder: Path, options: tuple[str, ...], said: str
) -> None:
    port = free_port()
    ended = end_of(folder, "serve", "policy.yaml", "--port", str(port), *options)
    assert_cannot_start(ended, said)
    assert not is_listening(port)


def test_bad_policy_is_one_line_a_problem_and_exit_code_2(folder: Path) -> None:
    port = free_port()
    ended = end_of(folder, "serve", "bad.yaml", "--port", str(port))
    assert_cannot_start(ended, r"^bad\.yaml:2: .*nam", lines=2)
    assert re.search(r"^bad\.yaml:3: .*aproval.*approval", ended.stderr, re.MULTILINE)
    assert not is_listening(port)


def test_missing_policy_file_is_named(folder: Path) -> None:
    assert_cannot_start(end_of(folder, "serve", "nowhere.yaml", "--port", "0"), r"nowhere\.yaml")


def test_policy_that_is_a_folder_is_named(folder: Path) -> None:
    assert_cannot_start(end_of(folder, "serve", ".", "--port", "0"), "`.`")


def test_port_in_use_is_named_and_its_server_goes_on(folder: Path, shared: Server) -> None:
    ended = end_of(folder, "serve", "policy.yaml", "--port", str(shared.port))
    assert_cannot_start(ended, f"port {shared.port} .*in use")
    assert shared.ask("POST", EVALUATE, READ).status == 200


def test_start_on_a_port_in_use_leaves_the_policy_of_its_server_alone(
    folder: Path, tmp_path: Path
) -> None:
    with Server(folder) as server:
        (folder / "policy.yaml").write_text("rules: [{name: other}]\n")
        ended = end_of(folder, "serve", "policy.yaml", "--port", str(server.port))
        assert ended.code == 2
        assert server.rule_for("read") == "reads"


@pytest.mark.parametrize("name", ["AEGIS_API_KEY", "AEGIS_ADMIN_KEY"])
@pytest.mark.parametrize("value", ["", "  "])
def test_blank_key_is_refused_and_not_taken_for_no_key(folder: Path, name: str, value: str) -> None:
    ended = end_of(folder, "serve", "policy.yaml", "--port", "0", env={name: value})
    assert_cannot_start(ended, name)


@pytest.mark.parametrize("name", ["AEGIS_API_KEY", "AEGIS_ADMIN_KEY"])
@pytest.mark.parametrize("value", ["schlüssel", "a\nb", "a b", "a\tb", "a\x7fb"])
def test_key_that_no_header_can_carry_is_refused(folder: Path, name: str, value: str) -> None:
    ended = end_of(folder, "serve", "policy.yaml", "--port", "0", env={name: value})
    assert_cannot_start(ended, f"{name}.*ASCII")


def test_database_of_a_newer_release_is_refused_and_left_as_it_is(folder: Path) -> None:
    with Server(folder) as server:
        assert server.stop() == 0
    write_foreign_database(folder / "aegis_audit.db", "PRAGMA user_version = 99")
    before = (folder / "aegis_audit.db").read_bytes()
    assert_cannot_start(end_of(folder, "serve", "policy.yaml", "--port", "0"), "newer.*99")
    assert (folder / "aegis_audit.db").read_bytes() == before


@pytest.mark.parametrize("name", ["foreign.db", "old.db", "text.db"])
def test_foreign_file_is_left_as_it_is(folder: Path, name: str) -> None:
    before = (folder / name).read_bytes()
    end_of(folder, "serve", "policy.yaml", "--port", "0", "--audit-db", name)
    assert (folder / name).read_bytes() == before


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is unwritable for root")
@pytest.mark.parametrize("mode", [0o500, 0o000])
def test_unwritable_folder_of_the_database_is_named(folder: Path, mode: int) -> None:
    closed = folder / "closed"
    closed.mkdir(mode)
    ended = end_of(folder, "serve", "policy.yaml", "--port", "0", "--audit-db", "closed/a.db")
    assert_cannot_start(ended, r"closed/a\.db")


@pytest.mark.parametrize(
    "options",
    [("--port", "65536"), ("--workers", "0"), ("--max-batch", "none"), ("--no-such-option",)],
)
def test_option_that_makes_no_sense_is_exit_code_2(folder: Path, options: tuple[str, ...]) -> None:
    ended = end_of(folder, "serve", "policy.yaml", *options)
    assert ended.code == 2
    assert options[0] in ended.stderr


@pytest.mark.parametrize("name", ["aegis_audit.db", "link.db"])
def test_second_server_of_a_database_is_refused_and_the_first_goes_on(
    folder: Path, name: str
) -> None:
    (folder / "link.db").symlink_to("aegis_audit.db")
    with Server(folder) as server:
        (folder / "policy.yaml").write_text("rules: [{name: other}]\n")
        ended = end_of(folder, "serve", "policy.yaml", "--port", "0", "--audit-db", name)
        assert_cannot_start(ended, rf"process {server.pid} serves the database .*--audit-db")
        assert server.rule_for("read") == "reads"


def test_server_starts_after_another_one_of_its_database_was_killed(folder: Path) -> None:
    for _ in range(2):
        with Server(folder, "--workers", "2") as server:
            server.process.kill()
            server.process.wait()
            with Server(folder) as other:
                assert other.rule_for("read") == "reads"


def test_auto_is_a_worker_for_each_core(tmp_path: Path) -> None:
    with Server(tmp_path, "--workers", "auto") as server:
        cores = len(os.sched_getaffinity(0))
        until(lambda: len(server.children) == cores, "there is a worker for each core")
        until(
            lambda: all(os.sched_getscheduler(one) == os.SCHED_BATCH for one in server.children),
            "their threads take turns",
        )


def test_service_manager_is_told_when_it_serves_and_when_it_stops(tmp_path: Path) -> None:
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(path)
        manager.settimeout(10)
        with Server(tmp_path, "--workers", "2", env={"NOTIFY_SOCKET": path}) as server:
            assert manager.recv(100) == b"READY=1"
            assert server.stop() == 0
            assert manager.recv(100) == b"STOPPING=1"


def test_service_manager_that_is_not_there_is_no_reason_to_fail(tmp_path: Path) -> None:
    with Server(tmp_path, env={"NOTIFY_SOCKET": str(tmp_path / "nobody")}) as server:
        assert server.stop() == 0
        assert server.stderr == ""


# --- workers that die ----------------------------------------------------------------------------


def test_worker_that_dies_again_and_again_does_not_end_the_server(tmp_path: Path) -> None:
    with Server(tmp_path, "--workers", "2") as server:
        for _ in range(6):
            until(lambda: len(server.children) == 2, "both run")
            os.kill(max(server.children), signal.SIGKILL)
            answer = until(lambda: _asked(server), "the other one answers")
            assert answer.json()["matched_rule"] == "reads"
        assert server.stop() == 0


def _asked(server: Server) -> Answer | None:
    """An answer; None where the connection came to a worker that died."""
    try:
        return server.ask("POST", EVALUATE, READ)
    except OSError:
        return None


# --- stopping ------------------------------------------------------------------------------------


SLOW = """
import asyncio, pathlib
from aegis import Executor, Result, ResultStatus

class Slow(Executor):
    async def execute(self, action):
        pathlib.Path("begun").touch()
        await asyncio.sleep(action.params["seconds"])
        return Result(action, ResultStatus.SUCCESS)
"""


def test_request_that_runs_when_it_stops_is_answered_and_its_connection_closed(
    tmp_path: Path,
) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    with Server(tmp_path, "--executor", "slow:Slow") as server:
        with server.connect() as running:
            action = {"action_type": "read", "params": {"seconds": 2}}
            running.send(running.request("POST", EXECUTE, json.dumps(action).encode()))
            until((tmp_path / "begun").exists, "it runs")
            server.process.send_signal(signal.SIGTERM)
            answer = running.answer("POST")
            assert (answer.status, answer.json()["status"]) == (200, "success")
            assert answer.headers.get("connection") == "close"
            assert running.is_closed()
        assert server.process.wait(SOON_S) == 0
        assert server.stderr == ""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_second_signal_ends_it_at_once(tmp_path: Path, number: int) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    with Server(tmp_path, "--executor", "slow:Slow", "--workers", "2") as server:
        workers = server.children
        with server.connect() as running:
            action = {"action_type": "read", "params": {"seconds": 60}}
            running.send(running.request("POST", EXECUTE, json.dumps(action).encode()))
            until((tmp_path / "begun").exists, "it runs")
            server.process.send_signal(number)
            until(lambda: _is_draining(server), "it stops")
            assert server.stop(number, timeout_s=2) == 128 + number
        until(lambda: not any(map(is_running, workers)), "its workers have ended", 2)


def _is_draining(server: Server) -> bool:
    """Whether it takes no more connections."""
    return not is_listening(server.port)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_it_with_exit_code_0_and_without_a_word(tmp_path: Path, number: int) -> None:
    with Server(tmp_path, "--workers", "2") as server:
        workers = server.children
        assert server.stop(number, timeout_s=SOON_S) == 0
        assert server.stderr == ""
    assert not any(map(is_running, workers))
    assert not is_listening(server.port)


def test_interrupt_key_which_reaches_workers_too_ends_it_with_exit_code_0(tmp_path: Path) -> None:
    with Server(tmp_path, "--workers", "2") as server:
        os.killpg(server.pid, signal.SIGINT)
        assert server.process.wait(SOON_S) == 0
        assert server.stderr == ""


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n",
        b"POST /api/v1/evaluate HTTP/1.1\r\nho",
    ],
    ids=["unused", "used", "half a head"],
)
def test_idle_connection_does_not_block_its_end(tmp_path: Path, sent: bytes) -> None:
    with Server(tmp_path) as server, server.connect() as idle:
        idle.send(sent)
        until(lambda: server.ask("GET", "/health").status == 200, "it has read that far")
        assert server.stop(timeout_s=SOON_S) == 0
        assert server.stderr == ""


def test_half_sent_body_does_not_block_its_end(tmp_path: Path) -> None:
    with Server(tmp_path, "--body-timeout", "1") as server, server.connect() as half:
        request = half.request("POST", EVALUATE, b'{"action_type": "read"}')
        half.send(request[:-5])
        until(lambda: server.ask("GET", "/health").status == 200, "it has read that far")
        assert server.stop(timeout_s=SOON_S) == 0
        assert server.stderr == ""


def test_signal_ends_it_while_an_executor_is_still_setting_up(folder: Path) -> None:
    command = (*COMMAND, "serve", "policy.yaml", "--port", "0", "--executor", "breaks:SetupHangs")
    with Program(command, folder) as server:
        until((folder / "setting-up").exists, "its executor sets up")
        assert server.stop(timeout_s=SOON_S) == 0
        assert server.stderr == ""


def test_killed_server_leaves_no_worker_behind(tmp_path: Path) -> None:
    with Server(tmp_path, "--workers", "2") as server:
        workers = server.children
        assert len(workers) == 2
        server.process.kill()
        until(lambda: not any(map(is_running, workers)), "its workers have ended", SOON_S)
        assert not is_listening(server.port)


# --- restarting ----------------------------------------------------------------------------------


def test_restarts_keep_all_records_and_all_policy_versions(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        with Server(tmp_path) as server:
            assert server.ask("POST", EXECUTE, READ).status == 200
            assert server.put_rule(f"put_{number}") == number + 1
            assert server.stop() == 0
    with Server(tmp_path) as server:
        records = server.audit()
    # The policies that were put have entries of the hash chain too.
    assert [record["id"] for record in records] == [1, 3, 5]
    assert [record["policy_version"] for record in records] == [1, 2, 3]
    assert len({record["session_id"] for record in records}) == 3
    connection = apsw.Connection(str(tmp_path / "aegis_audit.db"))
    rows = connection.execute("SELECT version, origin FROM policy_version ORDER BY 1").fetchall()
    connection.close()
    assert rows == [(1, "file"), (2, "put"), (3, "put"), (4, "put")]


def test_restart_with_an_unchanged_file_makes_no_new_version(tmp_path: Path) -> None:
    for _ in range(2):
        with Server(tmp_path) as server:
            assert server.ask("GET", PUT).json()["version"] == 1
            assert server.stderr == ""
            assert server.stop() == 0


def test_unchanged_file_leaves_a_put_policy_in_force_and_says_so(tmp_path: Path) -> None:
    with Server(tmp_path) as server:
        server.put_rule("was_put")
        assert server.stop() == 0
    with Server(tmp_path, "--workers", "2") as server:
        assert server.rule_for("read") == "was_put"
        assert re.fullmatch(
            r"aegis: warning: .*unchanged.*version 2.*stays in force.*--reset-policy.*\n",
            server.stderr,
        )
        assert re.search(r"policy +version 2, 1 rules, .*put over HTTP\n", server.stdout)


def test_reset_policy_goes_back_to_the_file_as_a_new_version(tmp_path: Path) -> None:
    with Server(tmp_path) as server:
        server.put_rule("was_put")
        assert server.stop() == 0
    with Server(tmp_path, "--reset-policy") as server:
        assert server.rule_for("read") == "reads"
        assert server.ask("GET", PUT).json()["version"] == 3
        assert server.stop() == 0
    with Server(tmp_path) as server:
        assert server.rule_for("read") == "reads"
        assert server.stderr == ""


def test_changed_file_replaces_a_put_policy_and_says_so(tmp_path: Path) -> None:
    with Server(tmp_path) as server:
        server.put_rule("was_put")
        assert server.stop() == 0
    (tmp_path / "policy.yaml").write_text("rules: [{name: changed}]\n")
    with Server(tmp_path, "--workers", "2") as server:
        assert server.rule_for("read") == "changed"
        assert server.ask("GET", PUT).json()["version"] == 3
        assert re.fullmatch(
            r"aegis: warning: .*changed.*replaces version 2.*history.*\n", server.stderr
        )


def test_file_that_goes_back_to_what_it_was_is_a_change_too(tmp_path: Path) -> None:
    for text, rule in ((POLICY, "reads"), ("rules: [{name: b}]\n", "b"), (POLICY, "reads")):
        (tmp_path / "policy.yaml").write_text(text)
        with Server(tmp_path) as server:
            assert server.rule_for("read") == rule
            assert server.stop() == 0


# --- what clients may send -----------------------------------------------------------------------

JSON = {"content-type": "application/json"}
DEEP = b'{"action_type": "a", "params": {"p": ' + b"[" * 100 + b"]" * 100 + b"}}"
MANY = b"[" + b",".join([b'{"action_type":"a"}'] * 10_001) + b"]"


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status"),
    [
        ("POST", EVALUATE, b"", JSON, 400),
        ("POST", EVALUATE, b"{", JSON, 400),
        ("POST", EVALUATE, b"not json", JSON, 400),
        ("POST", EVALUATE, b'{"action_type": "\xff"}', JSON, 400),
        ("POST", EVALUATE, b'{"action_type": "a", "params": {"n": NaN}}', JSON, 400),
        ("POST", EVALUATE, b"17", JSON, 400),
        ("POST", EVALUATE, b"{}", JSON, 400),
        ("POST", EVALUATE, b'{"action_type": ""}', JSON, 400),
        ("POST", EVALUATE, b'{"action_type": 1}', JSON, 400),
        ("POST", EVALUATE, b'{"action_type": "a", "target": null}', JSON, 400),
        ("POST", EVALUATE, b'{"actions": {}}', JSON, 400),
        ("POST", EVALUATE, b'[{"action_type": "a"}, 1]', JSON, 400),
        ("POST", EVALUATE, DEEP, JSON, 400),
        ("POST", EVALUATE, MANY, JSON, 400),
        ("POST", EXECUTE, b'{"action_type": "a", "params": []}', JSON, 400),
        ("POST", EXECUTE, b'{"action_type": "a", "chain_depth": "1"}', JSON, 400),
        ("POST", EVALUATE, b"{}", {"content-type": "text/plain"}, 415),
        ("POST", EVALUATE, b"{}", {"content-type": "application/x-www-form-urlencoded"}, 415),
        ("POST", EVALUATE, b"{}", JSON | {"host": "evil.example"}, 403),
        ("POST", EVALUATE, b"{}", JSON | {"origin": "http://evil.example"}, 403),
        ("PUT", PUT, b'{"yaml": "rules: [{nam: a}]"}', JSON, 400),
        ("PUT", PUT, b'{"yaml": "a: b: c"}', JSON, 400),
        ("PUT", PUT, b"{}", JSON, 400),
        ("GET", "/api/v1/audit?limit=-1", None, {}, 400),
        ("GET", "/api/v1/audit?risk_level=HUGE", None, {}, 400),
        ("GET", "/api/v1/audit?unknown=1", None, {}, 400),
        ("GET", "/api/v1/audit?action_type=%ff", None, {}, 400),
        ("GET", "/nowhere", None, {}, 404),
        ("POST", "/nowhere", b"{}", JSON, 404),
        ("GET", "/api/v1/%00", None, {}, 404),
        ("GET", EVALUATE, None, {}, 405),
        ("DELETE", PUT, None, {}, 405),
        ("BREW", "/health", None, {}, 405),
    ],
)
def test_bad_request_gets_its_status_and_the_connection_stays_usable(
    shared: Server, method: str, path: str, body: bytes | None, headers: dict[str, str], status: int
) -> None:
    with shared.connect() as connection:
        refused = connection.ask(method, path, body, headers)
        following = connection.ask("POST", EVALUATE, READ)
    assert refused.status == status
    assert refused.json()["error"]
    assert refused.code
    assert following.json()["matched_rule"] == "reads"


@pytest.mark.parametrize(
    ("request_bytes", "statuses"),
    [
        (b"nonsense\r\n\r\n", {400}),
        (b"GET / HTTP/9.9\r\n\r\n", {400, 505}),
        (b"GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\nbad header\r\n\r\n", {400}),
        (b"GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\nx: a\0b\r\n\r\n", {400}),
        (b"GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\nx: " + b"a" * 200_000, {431}),
        (b"GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\n" + b"x: a\r\n" * 100 + b"\r\n", {431}),
        (b"GET /" + b"a" * 66_000 + b" HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n", {414}),
        (
            b"POST /api/v1/evaluate HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: -1\r\n\r\n",
            {400},
        ),
        (
            b"POST /api/v1/evaluate HTTP/1.1\r\nhost: 127.0.0.1\r\n"
            b"content-length: 2\r\ncontent-length: 3\r\n\r\n{}",
            {400},
        ),
        (
            b"POST /api/v1/evaluate HTTP/1.1\r\nhost: 127.0.0.1\r\n"
            b"transfer-encoding: chunked\r\n\r\nzz\r\n",
            {400},
        ),
    ],
    ids=[
        "words",
        "version",
        "no colon",
        "nul",
        "431",
        "fields",
        "target",
        "negative",
        "two lengths",
        "bad chunk",
    ],
)
def test_what_is_no_http_gets_a_4xx_or_is_cut_off_and_others_are_served(
    shared: Server, request_bytes: bytes, statuses: set[int]
) -> None:
    with shared.connect() as connection:
        connection.send(request_bytes)
        start = connection.socket.recv(65536)
    assert start == b"" or int(start.split()[1]) in statuses
    assert shared.ask("POST", EVALUATE, READ).status == 200


def test_answer_to_a_wrong_method_names_the_right_ones(shared: Server) -> None:
    assert shared.ask("DELETE", PUT).headers["allow"] == "GET, HEAD, PUT"


def test_refused_policy_names_its_problems_and_changes_nothing(shared: Server) -> None:
    before = shared.ask("GET", PUT).body
    refused = shared.ask("PUT", PUT, {"yaml": "rules:\n  - {nam: a}\n"})
    assert [problem["line"] for problem in refused.json()["problems"]] == [2]
    assert shared.ask("GET", PUT).body == before


@pytest.mark.parametrize(
    ("method", "path", "size"), [("POST", EVALUATE, 2**20 + 1), ("PUT", PUT, 2**24 + 1)]
)
@pytest.mark.parametrize("expectation", [{}, {"expect": "100-continue"}])
def test_declared_size_over_the_limit_is_413_before_the_body_is_sent(
    shared: Server, method: str, path: str, size: int, expectation: dict[str, str]
) -> None:
    with shared.connect() as connection:
        headers = {"content-length": str(size), **expectation}
        connection.send(connection.request(method, path, b"", headers))
        answer = connection.answer(method)
    assert (answer.status, answer.code) == (413, "body_too_large")


def test_chunks_over_the_limit_are_413(shared: Server) -> None:
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    with shared.connect() as connection:
        head = connection.request("POST", EVALUATE, None, JSON | {"transfer-encoding": "chunked"})
        connection.send(head + chunk * 17)
        answer = connection.answer("POST")
    assert (answer.status, answer.code) == (413, "body_too_large")


def test_chunks_below_the_limit_are_read(shared: Server) -> None:
    with shared.connect() as connection:
        head = connection.request("POST", EVALUATE, None, JSON | {"transfer-encoding": "chunked"})
        connection.send(head + b'10\r\n{"action_type": \r\n')
        connection.send(b'7\r\n"read"}\r\n0\r\n\r\n')
        assert connection.answer("POST").json()["matched_rule"] == "reads"


def test_body_that_stops_half_way_is_408_and_the_connection_ends(shared: Server) -> None:
    with shared.connect() as connection:
        connection.send(connection.request("POST", EVALUATE, b'{"action_type": "read"}')[:-5])
        answer = connection.answer("POST")
        assert (answer.status, answer.code) == (408, "body_timeout")
        assert connection.is_closed()


def test_body_that_comes_slowly_but_in_time_is_read(shared: Server) -> None:
    with shared.connect() as connection:
        request = connection.request("POST", EVALUATE, b'{"action_type": "read"}')
        for start in range(0, len(request), 16):
            connection.send(request[start : start + 16])
        assert connection.answer("POST").json()["matched_rule"] == "reads"


def test_client_that_leaves_in_the_middle_of_its_body_disturbs_nobody(shared: Server) -> None:
    for _ in range(20):
        with shared.connect() as connection:
            connection.send(connection.request("POST", EXECUTE, b'{"action_type": "gone"}')[:-5])
    assert shared.ask("POST", EVALUATE, READ).status == 200
    assert shared.audit(action_type="gone") == []


def test_pipelined_requests_are_answered_in_their_order(shared: Server) -> None:
    with shared.connect() as connection:
        bodies = [b'{"action_type": "read"}', b"{", b'{"action_type": "delete"}']
        connection.send(b"".join(connection.request("POST", EVALUATE, body) for body in bodies))
        received = b""
        while received.count(b"HTTP/1.1 ") < 3 or not received.endswith(b"}"):
            received += connection.socket.recv(65536)
    assert re.findall(rb"HTTP/1\.1 (\d+)", received) == [b"200", b"400", b"200"]


def test_batch_of_10000_actions_is_decided_executed_and_recorded(shared: Server) -> None:
    actions = [
        {
            "action_type": "delete" if number % 2 else "read",
            "target": f"t{number}",
            "session_id": "L",
        }
        for number in range(10_000)
    ]
    decided = shared.ask("POST", EVALUATE, actions).json()
    executed = shared.ask("POST", EXECUTE, actions).json()
    records = shared.audit(session_id="L")
    wanted = [(f"t{number}", "blocked" if number % 2 else "success") for number in range(10_000)]
    assert [decision["target"] for decision in decided] == [target for target, _ in wanted]
    assert [(result["target"], result["status"]) for result in executed] == wanted
    assert [(record["action_target"], record["result_status"]) for record in records] == wanted


# --- several workers -----------------------------------------------------------------------------


def test_put_policy_is_in_force_for_every_request_that_starts_after_its_answer(
    pair: Server,
) -> None:
    answered = [pair.put_rule("start")]
    stale: list[tuple[int, Answer]] = []
    counts: list[int] = []
    is_over = threading.Event()

    def ask_on(connection: Connection) -> None:
        count = 0
        while not is_over.is_set():
            floor = answered[0]
            answer = connection.ask("POST", EVALUATE, READ)
            count += 1
            if int(answer.headers["x-aegis-policy-version"]) < floor:
                stale.append((floor, answer))
        counts.append(count)

    connections = [*connections_to_both(pair), *connections_to_both(pair)]
    threads = [threading.Thread(target=ask_on, args=(connection,)) for connection in connections]
    for thread in threads:
        thread.start()
    for number in range(40):
        answered[0] = pair.put_rule(f"put_{number}")
    is_over.set()
    for thread, connection in zip(threads, connections, strict=True):
        thread.join()
        connection.socket.close()
    assert stale == []
    assert len(counts) == 4
    assert sum(counts) > 200


def test_policy_put_to_either_worker_decides_in_both(pair: Server) -> None:
    connections = connections_to_both(pair)
    for number, putting in enumerate(connections * 10):
        rules = [{"name": f"either_{number}", "match": {"type": "*"}, "approval": "auto"}]
        assert putting.ask("PUT", PUT, {"rules": rules}).status == 200
        names = [
            connection.ask("POST", EVALUATE, READ).json()["matched_rule"]
            for connection in connections
        ]
        assert names == [f"either_{number}"] * 2
    for connection in connections:
        connection.socket.close()


def test_session_is_the_same_in_both_workers(pair: Server) -> None:
    for connection in connections_to_both(pair):
        with connection:
            action = {"action_type": "read", "target": "session of both"}
            assert connection.ask("POST", EXECUTE, action).status == 200
    records = [record for record in pair.audit() if record["action_target"] == "session of both"]
    assert len(records) == 2
    assert len({record["session_id"] for record in records}) == 1


def test_killed_worker_comes_back_and_decides_by_the_newest_policy(tmp_path: Path) -> None:
    with Server(tmp_path, "--workers", "2") as server:
        before = server.children
        server.put_rule("newest")
        os.kill(min(before), signal.SIGKILL)
        until(lambda: len(server.children - before) == 1, "another worker has started")
        connections = connections_to_both(server)
        for connection in connections:
            with connection:
                decision = connection.ask("POST", EVALUATE, READ).json()
                assert decision["matched_rule"] == "newest"
        assert server.stop(timeout_s=SOON_S) == 0
