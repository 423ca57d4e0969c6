"""The commands besides `serve`: what they print and the exit codes that they end with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import aegis
from aegis.cli import main
from tests.process.server import POLICY, end_of

WRONG = """\
rules:
  - name: a
    match: {typ: read}
  - name: b
    approval: perhaps
"""
ODD = """\
rules:
  - name: everything
    match: {type: "*"}
    approval: approve
  - name: never
    match: {type: read}
    approval: auto
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a good, a wrong and an odd policy."""
    (tmp_path / "good.yaml").write_text(POLICY)
    (tmp_path / "wrong.yaml").write_text(WRONG)
    (tmp_path / "odd.yaml").write_text(ODD)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def invoke(*arguments: str) -> Result:
    """What a command does."""
    return CliRunner().invoke(main, list(arguments), prog_name="aegis")


def test_installed_command_says_its_version(folder: Path) -> None:
    ended = end_of(folder, "--version")
    assert (ended.code, ended.stdout, ended.stderr) == (
        0,
        f"aegis, version {aegis.__version__}\n",
        "",
    )


def test_version_needs_no_policy() -> None:
    done = invoke("--version")
    assert (done.exit_code, done.output) == (0, f"aegis, version {aegis.__version__}\n")


@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help_names_every_command(option: str) -> None:
    done = invoke(option)
    assert done.exit_code == 0
    assert set(main.commands) >= {"serve", "validate"}
    assert [name for name in main.commands if f"  {name} " not in done.stdout] == []


@pytest.mark.parametrize("command", sorted(main.commands))
def test_help_of_each_command_has_a_line_for_each_option(command: str) -> None:
    done = invoke(command, "--help")
    options = [
        option for parameter in main.commands[command].params for option in parameter.opts
        if option.startswith("--")
    ]  # fmt: skip
    assert done.exit_code == 0
    assert [option for option in options if f"{option} " not in done.stdout + " "] == []


def test_no_command_is_exit_code_2_and_shows_the_help() -> None:
    done = invoke()
    assert done.exit_code == 2
    assert "serve" in done.output


@pytest.mark.parametrize("arguments", [("sevre",), ("--nonsense",), ("validate",), ("serve",)])
def test_wrong_usage_is_exit_code_2_on_stderr(arguments: tuple[str, ...]) -> None:
    done = invoke(*arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert "Error: " in done.stderr


def test_validate_of_a_good_policy_is_exit_code_0() -> None:
    done = invoke("validate", "good.yaml")
    assert (done.exit_code, done.stdout) == (0, "good.yaml: valid, 4 rules\n")
    assert done.stderr == ""


def test_validate_of_a_refused_policy_is_exit_code_1_and_one_line_a_problem() -> None:
    done = invoke("validate", "wrong.yaml")
    first, second = done.stdout.splitlines()
    assert done.exit_code == 1
    assert first.startswith("wrong.yaml:3: ")
    assert "did you mean `type`?" in first
    assert second.startswith("wrong.yaml:5: ")
    assert "`perhaps`" in second


def test_validate_warns_with_lines_and_is_exit_code_0() -> None:
    done = invoke("validate", "odd.yaml")
    warning, valid = done.stdout.splitlines()
    assert done.exit_code == 0
    assert warning.startswith("odd.yaml:5: warning: ")
    assert "never" in warning
    assert valid == "odd.yaml: valid, 2 rules"


def test_validate_strict_takes_warnings_for_errors() -> None:
    done = invoke("validate", "odd.yaml", "--strict")
    (problem,) = done.stdout.splitlines()
    assert done.exit_code == 1
    assert problem.startswith("odd.yaml:5: rule `never`: rules[1]: can never match")
    assert invoke("validate", "good.yaml", "--strict").exit_code == 0


def test_validate_strict_in_json_has_warnings_as_problems() -> None:
    done = invoke("validate", "odd.yaml", "--strict", "--format", "json")
    found = json.loads(done.stdout)
    assert (done.exit_code, found["valid"], found["warnings"]) == (1, False, [])
    assert [problem["line"] for problem in found["problems"]] == [5]


@pytest.mark.parametrize(
    ("name", "code", "rules", "problem_lines", "warning_lines"),
    [
        ("good.yaml", 0, 4, [], []),
        ("wrong.yaml", 1, 0, [3, 5], []),
        ("odd.yaml", 0, 2, [], [5]),
    ],
)
def test_validate_in_json_has_every_problem_and_warning(
    name: str, code: int, rules: int, problem_lines: list[int], warning_lines: list[int]
) -> None:
    done = invoke("validate", name, "--format", "json")
    found = json.loads(done.stdout)
    assert done.exit_code == code
    assert (found["file"], found["valid"], found["rule_count"]) == (name, code == 0, rules)
    assert [problem["line"] for problem in found["problems"]] == problem_lines
    assert [warning["line"] for warning in found["warnings"]] == warning_lines


def test_validate_in_json_names_rule_key_and_message() -> None:
    found = json.loads(invoke("validate", "wrong.yaml", "--format", "json").stdout)
    assert set(found["problems"][0]) == {"line", "rule", "key", "message"}
    assert found["problems"][0]["rule"] == "a"


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize("name", ["missing.yaml", "."])
def test_validate_of_what_cannot_be_read_is_exit_code_2_and_one_line(name: str, form: str) -> None:
    done = invoke("validate", name, "--format", form)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith("aegis: error: ")
    assert f"`{name}`" in done.stderr
    assert done.stderr.count("\n") == 1


def test_validate_of_what_is_no_utf8_is_a_problem_with_its_line(folder: Path) -> None:
    (folder / "latin.yaml").write_bytes(b"rules:\n  - name: caf\xe9\n")
    done = invoke("validate", "latin.yaml")
    assert done.exit_code == 1
    assert done.stdout.startswith("latin.yaml:2: ")


def test_validate_of_an_empty_file_says_that_it_has_no_rules(folder: Path) -> None:
    (folder / "empty.yaml").write_text("")
    warning, valid = invoke("validate", "empty.yaml").stdout.splitlines()
    assert warning.startswith("empty.yaml: warning: has no rules")
    assert valid == "empty.yaml: valid, 0 rules"


def test_validate_reads_json_policies_too(folder: Path) -> None:
    (folder / "policy.json").write_text('{"rules": [{"name": "a", "approval": "auto"}]}')
    assert invoke("validate", "policy.json").exit_code == 0


def test_validate_makes_no_files(folder: Path) -> None:
    before = set(folder.iterdir())
    invoke("validate", "good.yaml")
    assert set(folder.iterdir()) == before


@pytest.mark.parametrize("option", ["--body-timeout", "--execute-timeout", "--audit-timeout"])
@pytest.mark.parametrize("value", ["nan", "inf", "0", "-1", "soon"])
def test_timeout_that_is_no_time_is_refused(tmp_path: Path, option: str, value: str) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text("rules: []")
    ended = CliRunner().invoke(main, ["serve", str(policy), option, value])
    assert ended.exit_code == 2
    assert option in ended.output
