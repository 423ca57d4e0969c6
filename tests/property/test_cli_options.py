"""Every option and argument of every command, fed with what nobody means."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from aegis.audit import AuditRecord, ResultStatus
from aegis.audit.chain import ChainHead
from aegis.cli import main
from aegis.store.database import Store
from aegis_core import Approval, RiskLevel
from tests.process.test_cli_evaluate import ALL

ODD = [
    *("", " ", "garbage", "a\nb", "é", "[", "{", "'", '"', "%", "\\", "\x1b[2J", "None"),
    *("-", "--", "-1", "0", "1.5", "1e999", "nan", "inf", "-inf", "1_0", "٣", "true"),
    *("9" * 18, "9" * 25, "-" + "9" * 25, "9" * 5_000, "x" * 5_000, "*" * 300, "[" * 5_000),
    *("\0", "a\0b", "\ud800", "caf\udce9", "/", ".", "/dev/null", "/dev/full", "none/none"),
    *("1h", "99999999999w", "2027-01-31", "9999-12-31T23:59:59-12:00", "0001-01-01T00:00:00+14:00"),
    *("9999-12-31T23:59:59Z", "0001-01-01T00:00:00Z", "2027-01-31T18:00:00", "2027-02-30"),
    *(
        "http://[",
        "http://127.0.0.1:x",
        "http://127.0.0.1:99999",
        "http://127.0.0.1:1",
        "//",
        "a:b",
    ),
    *("http://user:secret@127.0.0.1:1", "http://127.0.0.1:1/\n", "http://é.ü:1", "127.0.0.1:1"),
]
ARGUMENTS = {
    "policy": "policy.yaml",
    "path": "made.yaml",
    "shell": "bash",
    "name": "bot",
    "file": "copy.db",
    "backup": "aegis_audit.db",
    "version": "1",
    "old": "1",
}
OPTIONS = {
    "evaluate": ["--type", "read"],
    "serve": ["--audit-db", "none/none.db", "--port", "0"],  # it must not start
    "bench": ["--url", "http://127.0.0.1:1"],  # nor measure
    "audit archive": ["--before", "2020-01-01", "--to", "old.db"],
    "keys new": ["--role", "agent"],
}
PARAMETERS = [
    pytest.param(" ".join(names), parameter, id=f"{' '.join(names)} {parameter.name}")
    for names, command in ALL.items()
    if names and not isinstance(command, click.Group)
    for parameter in command.params
    if not (isinstance(parameter, click.Option) and parameter.is_flag)
]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: a policy, a database of one record, no keys; names are not looked up."""
    (tmp_path / "policy.yaml").write_text(
        "rules: [{name: all, match: {type: '*'}, conditions: {time_after: '09:00',"
        " timezone: Pacific/Kiritimati}, approval: auto}]\n"
    )
    store = Store(tmp_path / "aegis_audit.db")
    with store.transaction() as connection:
        end = ChainHead(store)
        end.committed(end.append(connection, [RECORD]))
    store.close()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(socket, "getaddrinfo", _numeric)
    return tmp_path


RECORD = AuditRecord(
    timestamp_us=1_700_000_000_000_000,
    session_id="s",
    action_type="read",
    action_target="crm",
    action_params="{}",
    action_desc=None,
    risk_level=RiskLevel.LOW,
    approval=Approval.AUTO,
    matched_rule="reads",
    human_decision=None,
    result_status=ResultStatus.SUCCESS,
    result_data=None,
    result_error=None,
    agent_id=None,
    parent_agent_id=None,
    chain_id=None,
    chain_depth=0,
    policy_version=0,
)
_getaddrinfo = socket.getaddrinfo


def _numeric(host: Any, *arguments: Any, **more: Any) -> Any:
    more["flags"] = more.get("flags", 0) | socket.AI_NUMERICHOST
    return _getaddrinfo(host, *arguments, **more)


def run(name: str, parameter: click.Parameter, value: str, *, by_variable: bool = False) -> Result:
    """What a command does whose one parameter has this value."""
    words = name.split()
    variables = {}
    arguments = [
        value if one is parameter else ARGUMENTS.get(str(one.name), "missing")
        for one in ALL[tuple(words)].params
        if isinstance(one, click.Argument) and (one.required or one is parameter)
    ]
    options = list(OPTIONS.get(name, []))
    if isinstance(parameter, click.Option):
        option = parameter.opts[0]
        if option in options:  # given once
            at = options.index(option)
            del options[at : at + 2]
            if name == "serve":  # it must not start by this either
                arguments = ["missing.yaml"]
        if by_variable:
            variables[str(parameter.envvar)] = value
        else:
            options += [option, value]
    return CliRunner(env=variables).invoke(main, [*words, *options, "--", *arguments])


def check(name: str, done: Result, value: str) -> None:
    """See that a command has ended well, or said no, or said in one line what is wrong."""
    shown = f"aegis {name}, value {value[:40]!r}: {done.output[-500:]}"
    assert done.exception is None or isinstance(done.exception, SystemExit), shown
    assert done.exit_code in (0, 1, 2), shown
    if done.exit_code == 2:
        usage, _, error = done.stderr.rpartition("\nError: ")
        assert error.count("\n") == 1, shown
        starts = ("aegis: error: ", f"{value}:")  # or the problems of a file
        assert usage.startswith("Usage: ") if usage else error.startswith(starts), shown
        assert error[:-1].isprintable(), shown


@pytest.mark.parametrize(("name", "parameter"), PARAMETERS)
def test_what_nobody_means_ends_in_one_line(name: str, parameter: click.Parameter) -> None:
    for value in ODD:
        done = run(name, parameter, value)
        check(name, done, value)
        assert parameter.name != "url" or "secret" not in done.stderr


@pytest.mark.parametrize(
    ("name", "parameter"), [one for one in PARAMETERS if getattr(one.values[1], "envvar", None)]
)
def test_variable_that_nobody_means_ends_in_one_line(name: str, parameter: click.Parameter) -> None:
    for value in ODD:
        if "\0" not in value and "\ud800" not in value:
            check(name, run(name, parameter, value, by_variable=True), value)
