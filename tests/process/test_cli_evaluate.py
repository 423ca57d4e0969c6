"""`aegis init`, `aegis evaluate` and `aegis completion`, and how commands look."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

import aegis.policy.explain
from aegis.cli import main
from aegis.policy.conditions import compile_conditions
from aegis.policy.loader import load_text
from aegis_core import Engine, Policy, compile_policy
from tests.process.server import COMMAND, environment

PAY = ("evaluate", "policy.yaml", "--type", "pay", "--target", "acme")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, empty."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def starter() -> Path:
    """The starter policy, in the working folder."""
    assert invoke("init").exit_code == 0
    return Path("policy.yaml")


def invoke(*arguments: str) -> Result:
    """What a command does."""
    return CliRunner().invoke(main, list(arguments), prog_name="aegis")


# --- init ----------------------------------------------------------------------------------------


def test_starter_policy_is_valid_without_warnings(starter: Path) -> None:
    done = invoke("validate", "policy.yaml")
    assert (done.exit_code, done.output) == (0, "policy.yaml: valid, 7 rules\n")


def test_starter_policy_blocks_what_it_does_not_name(starter: Path) -> None:
    assert load_text(starter.read_text()).policy.default_approval.value == "block"


def test_init_never_overwrites(starter: Path) -> None:
    starter.write_text("rules: []  # mine\n")
    done = invoke("init")
    assert (done.exit_code, done.stdout) == (2, "")
    assert "`policy.yaml` is there already" in done.stderr
    assert starter.read_text() == "rules: []  # mine\n"


def test_init_writes_where_it_is_told() -> None:
    done = invoke("init", "other.yaml")
    assert done.exit_code == 0
    assert "aegis serve other.yaml" in done.stdout
    assert Path("other.yaml").exists()


def test_init_into_a_missing_folder_is_refused() -> None:
    done = invoke("init", "none/policy.yaml")
    assert done.exit_code == 2
    assert "cannot write `none/policy.yaml`" in done.stderr


# --- evaluate ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (("--type", "read", "--target", "mail"), 0, "auto  LOW  by `reads`"),
        (("--type", "read_mail"), 1, "block  MEDIUM  by `<default>`"),
        (
            ("--type", "delete", "--target", "prod-db"),
            1,
            "block  CRITICAL  by `no_deletes_in_production`",
        ),
        (
            ("--type", "pay", "--params", '{"amount": 9, "currency": "EUR"}'),
            0,
            "approve  HIGH  by `small_payments`",
        ),
        (("--type", "unheard_of"), 1, "block  MEDIUM  by `<default>`"),
        (
            (
                "--type",
                "update",
                "--target",
                "crm/1",
                "--agent",
                "sales-1",
                "--at",
                "2026-11-23T10:00:00Z",
            ),
            0,
            "auto  MEDIUM  by `crm_updates`",
        ),
        (
            (
                "--type",
                "update",
                "--target",
                "crm/1",
                "--agent",
                "sales-1",
                "--at",
                "2026-11-22T10:00:00Z",
            ),
            1,
            "block  MEDIUM  by `<default>`",
        ),
    ],
)
def test_decision_is_printed_and_in_the_exit_code(
    starter: Path, arguments: tuple[str, ...], code: int, line: str
) -> None:
    done = invoke("evaluate", "policy.yaml", *arguments)
    assert (done.exit_code, done.output) == (code, f"{line}\n")


def test_decision_that_cannot_be_made_says_why(starter: Path) -> None:
    done = invoke(*PAY, "--params", '{"amount": "9", "currency": "EUR"}')
    assert done.exit_code == 1
    assert done.output.splitlines() == [
        "block  CRITICAL  by `small_payments`",
        "  cannot be judged: `param_lte.amount`: text cannot be compared with a number",
    ]


def test_json_has_the_members_of_the_api(starter: Path) -> None:
    done = invoke("evaluate", "policy.yaml", "--type", "read", "--target", "é", "--format", "json")
    assert json.loads(done.stdout) == {
        "action_type": "read",
        "target": "é",
        "risk_level": "LOW",
        "approval": "auto",
        "is_allowed": True,
        "matched_rule": "reads",
    }


def test_explanation_names_file_line_conditions_and_what_came_near(starter: Path) -> None:
    lines = starter.read_text().splitlines()
    rule = 1 + lines.index("  - name: small_payments")
    done = invoke(*PAY, "--params", '{"amount": 500}', "--explain")
    assert done.exit_code == 1
    shown = done.stdout.splitlines()
    assert shown[:7] == [
        "block  MEDIUM  by `<default>`",
        "  no rule matches, so the defaults of policy.yaml decide",
        "  nearest rules before it that do not match:",
        f"    policy.yaml:{rule}: `small_payments`: its patterns match, its conditions do not hold",
        "      param_lte.amount `100`: `500`, does not hold",
        "      param_eq.currency `EUR`: missing, does not hold",
        "      param_gt.amount `0`: `500`, holds",
    ]
    assert "type `update` does not match `pay`" in done.stdout


def test_explanation_of_a_match_names_its_patterns(starter: Path) -> None:
    done = invoke("evaluate", "policy.yaml", "--type", "read", "--explain")
    place, patterns = done.stdout.splitlines()[1:3]
    assert re.fullmatch(r"  policy\.yaml:\d+: the first rule that matches", place)
    assert patterns == "    type `read`, target `*`, agent `*`"


def test_explanation_is_in_the_json(starter: Path) -> None:
    done = invoke(*PAY, "--explain", "--format", "json")
    explanation = json.loads(done.stdout)["explanation"]
    assert (explanation["decider"], explanation["passed_over"]) == (None, 7)
    assert explanation["nearest"][0]["rule"] == "small_payments"
    assert explanation["nearest"][1]["mismatch"]["of"] == "target"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--params", "{"), "--params is not JSON"),
        (("--params", "[]"), "`params` must be an object, not a list"),
        (("--at", "noon"), "must be a time as in `2027-01-31T18:00:00Z`"),
        (("--at", "2026-11-23T10:00:00"), "must be a time"),
        (("--type", ""), "`action_type` is empty"),
        (("--format", "xml"), "xml"),
    ],
)
def test_wrong_option_is_exit_code_2(starter: Path, arguments: tuple[str, ...], said: str) -> None:
    done = invoke(*PAY, *arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert said in done.stderr


def test_refused_policy_is_exit_code_2_with_its_lines(starter: Path) -> None:
    starter.write_text("rules:\n  - match: {typ: x}\n")
    done = invoke(*PAY)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith("policy.yaml:2: ")


def test_missing_policy_is_exit_code_2() -> None:
    done = invoke(*PAY)
    assert done.exit_code == 2
    assert "cannot read the policy `policy.yaml`" in done.stderr


def test_engine_that_disagrees_is_exit_code_70(
    starter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(_: Policy, **details: object) -> Engine:
        other = load_text('rules: [{name: all, match: {type: "*"}, approval: auto}]').policy
        return compile_policy(other, condition=compile_conditions)

    monkeypatch.setattr(aegis.policy.explain, "compile_policy", wrong)
    done = invoke(*PAY)
    assert (done.exit_code, done.stdout) == (70, "")
    assert done.stderr.startswith("aegis: defect: the engine decides auto MEDIUM by `all`")


# --- how it looks --------------------------------------------------------------------------------


def on_a_terminal(*arguments: str, **changes: str) -> str:
    """What a command prints on a terminal."""
    ours, theirs = pty.openpty()
    try:
        subprocess.run(
            (*COMMAND, *arguments),
            stdout=theirs,
            stderr=theirs,
            env=environment(**changes),
            check=False,
        )
        return os.read(ours, 65536).decode()
    finally:
        os.close(ours)
        os.close(theirs)


def test_terminal_gets_colours(starter: Path) -> None:
    assert "\x1b[31m\x1b[1mblock" in on_a_terminal(*PAY, TERM="xterm", NO_COLOR="")
    assert "\x1b[31merror:" in on_a_terminal("validate", "none", TERM="xterm", NO_COLOR="")


@pytest.mark.parametrize("changes", [{"NO_COLOR": "1"}, {"NO_COLOR": "0"}, {"TERM": "dumb"}])
def test_terminal_gets_none_where_they_are_not_wanted(
    starter: Path, changes: dict[str, str]
) -> None:
    shown = on_a_terminal(*PAY, **{"TERM": "xterm", **changes})
    assert "block" in shown
    assert "\x1b" not in shown
    assert "\x1b" not in on_a_terminal("validate", "none", **{"TERM": "xterm", **changes})


def test_file_gets_no_colours(starter: Path) -> None:
    done = subprocess.run(
        (*COMMAND, *PAY), capture_output=True, text=True, env=environment(TERM="xterm"), check=False
    )
    assert "\x1b" not in done.stdout + done.stderr


def commands(
    command: click.Command = main, *names: str
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command, and the words that call it."""
    yield names, command
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            yield from commands(inner, *names, name)


ALL = dict(commands())


@pytest.mark.parametrize("names", ALL, ids=" ".join)
def test_every_option_says_what_it_is_for(names: tuple[str, ...]) -> None:
    options = [option for option in ALL[names].params if isinstance(option, click.Option)]
    assert [option.name for option in options if not option.help] == []


@pytest.mark.parametrize("names", [names for names in ALL if names], ids=" ".join)
def test_help_lists_each_command_with_a_whole_sentence(names: tuple[str, ...]) -> None:
    listed = invoke(*names[:-1], "--help").stdout
    (line,) = re.findall(rf"^  {names[-1]} +(.+)$", listed, re.MULTILINE)
    assert line.endswith(".")
    assert not line.endswith("...")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_a_script_for_the_shell(shell: str) -> None:
    done = invoke("completion", shell)
    assert done.exit_code == 0
    assert "_AEGIS_COMPLETE" in done.stdout


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_commands() -> None:
    done = subprocess.run(
        [Path(sys.executable).parent / "aegis"],
        env=environment(_AEGIS_COMPLETE="bash_complete", COMP_WORDS="aegis ev", COMP_CWORD="1"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == ["plain,evaluate"]
