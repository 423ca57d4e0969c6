"""One table of options: the command line, the environment and `create_app` take the same values."""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_type_hints

import click
import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner

import aegis.server
from aegis.cli import main
from aegis.cli.serve import serve
from aegis.config import (
    OPTIONS,
    AuditDecisions,
    Durability,
    Option,
    Options,
    Settings,
    settings_from,
)
from aegis.errors import ConfigError
from aegis.policy.loader import Policy
from aegis.server import create_app
from aegis.server.runner import serve as runner

EXAMPLES: dict[str, tuple[str, object, object]] = {
    "policy": ("policy.yaml", Path("policy.yaml"), "policy.yaml"),
    "host": ("::1", "::1", "::1"),
    "port": ("0", 0, 0),
    "workers": ("auto", "auto", len(os.sched_getaffinity(0))),
    "audit_db": ("other.db", Path("other.db"), "other.db"),
    "executor": ("echo:Echo", "echo:Echo", "echo:Echo"),
    "reset_policy": ("true", True, True),
    "watch": ("yes", True, True),
    "api_key": ("user-key", " user-key ", "user-key"),
    "admin_key": ("admin-key", "admin-key", "admin-key"),
    "keys": ("keys.yaml", Path("keys.yaml"), "keys.yaml"),
    "allow_unauthenticated": ("1", True, True),
    "allowed_hosts": (
        "A.example,.b.example",
        ["a.example", ".b.example"],
        frozenset(("a.example", ".b.example")),
    ),
    "max_body_bytes": ("300", 300, 300),
    "max_batch": ("7", 7, 7),
    "max_nesting": ("3", 3, 3),
    "condition_budget": ("1200", 1200, 1200),
    "max_result_bytes": ("256", 256, 256),
    "body_timeout": ("0.5", 0.5, 0.5),
    "keep_alive": ("1.5", 1.5, 1.5),
    "execute_timeout": ("2", 2, 2.0),
    "audit_timeout": ("1e1", 10, 10.0),
    "drain_delay": ("0", 0, 0.0),
    "audit_durability": ("process", Durability.PROCESS, Durability.PROCESS),
    "audit_decisions": ("blocked", "blocked", AuditDecisions.BLOCKED),
    "audit_signing_key": ("key.pem", Path("key.pem"), "key.pem"),
    "redact": ("ssn, iban", ("ssn", "iban"), frozenset(("ssn", "iban"))),
    "redact_except": ("pwd_hint", ["pwd_hint"], frozenset(("pwd_hint",))),
}
INTEGERS = ("-1", "1.5", "many", "1_0", "٣", "9" * 25, "9" * 5_000, "nan")
NUMBERS = ("-1", "many", "nan", "inf", "1_0", "٣", "86401")
FILES = ("-", "x" * 5_000)
WRONG: dict[str, tuple[str, ...]] = {
    "policy": FILES,
    "port": (*INTEGERS, "65536"),
    "workers": (*INTEGERS, "0", "257", "AUTO"),
    "audit_db": FILES,
    "reset_policy": ("maybe", "2"),
    "watch": ("maybe", "2"),
    "api_key": ("a b", " ", "ké"),
    "admin_key": ("a b", " ", "ké"),
    "keys": (*FILES, " "),
    "allow_unauthenticated": ("maybe", "2"),
    "allowed_hosts": ("*", "a:8000", "10.0.0.0/8", "https://a"),
    "max_body_bytes": (*INTEGERS, "0", str(2**40)),
    "max_batch": (*INTEGERS, "0"),
    "max_nesting": (*INTEGERS, "1", "201"),
    "condition_budget": (*INTEGERS, "0"),
    "max_result_bytes": (*INTEGERS, "255", str(2**40)),
    "body_timeout": (*NUMBERS, "0"),
    "keep_alive": (*NUMBERS, "0.9"),
    "execute_timeout": (*NUMBERS, "0"),
    "audit_timeout": (*NUMBERS, "0"),
    "drain_delay": NUMBERS,
    "audit_durability": ("Commit", "often"),
    "audit_decisions": ("ALL", "often"),
    "audit_signing_key": FILES,
}
OF_TEXT = {"host", "executor", "redact", "redact_except"}
"""What takes any text."""
CASES = [(OPTIONS[name], text) for name, texts in WRONG.items() for text in texts]

Make = Callable[..., Settings]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The working folder: a policy, and an executor."""
    (tmp_path / "policy.yaml").write_text("rules: []\n")
    (tmp_path / "echo.py").write_text("class Echo:\n    async def execute(self, action): ...\n")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def by_application(monkeypatch: pytest.MonkeyPatch) -> Make:
    """The settings of `create_app`, which reads no other file than the policy."""
    monkeypatch.setattr(aegis.server, "build_app", lambda settings, **_: settings)
    monkeypatch.setattr(aegis.server, "read_keys", lambda _: [])
    monkeypatch.setattr(aegis.server, "HeadSigner", lambda _: None)

    def make(**options: Any) -> Settings:
        made: Any = create_app(**{"policy": "policy.yaml"} | options)
        assert isinstance(made, Settings)
        return made

    return make


@pytest.fixture
def by_command(monkeypatch: pytest.MonkeyPatch) -> Make:
    """The settings of `aegis serve`."""
    made: list[Settings] = []
    monkeypatch.setattr(runner, "serve", lambda settings, *_, **__: made.append(settings))

    def make(*words: str) -> Settings:
        done = CliRunner().invoke(main, ["serve", *words])
        if done.exit_code:
            raise ConfigError(done.output)
        return made.pop()

    return make


def by_variable(option: Option, text: str) -> Settings:
    """The settings of an environment."""
    others = {"AEGIS_POLICY": "policy.yaml"}
    return settings_from({}, environment=others | {option.variable: text})


def words_for(option: Option, text: str) -> list[str]:
    """What the command line says."""
    if option.name == "policy":
        return [text]
    return [option.flag, "policy.yaml"] if option.default is False else [
        option.flag, text, "policy.yaml"
    ]  # fmt: skip


@pytest.mark.parametrize("option", OPTIONS.values(), ids=OPTIONS)
def test_command_line_variable_and_argument_give_the_same_settings(
    option: Option, by_application: Make, by_command: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, argument, expected = EXAMPLES[option.name]
    values: dict[str, Any] = {"policy": "policy.yaml"} | {option.name: expected}
    settings = Settings(**values)
    assert by_variable(option, text) == settings
    if option.has_flag or option.name == "policy":
        assert by_command(*words_for(option, text)) == settings
    if option.is_argument:
        assert by_application(**{option.name: argument}) == settings
        assert by_application(**{option.name: text}) == settings
    monkeypatch.setenv(option.variable, text)
    assert by_command("policy.yaml") == settings
    if option.is_argument:
        assert by_application(**{option.name: None}) == settings


@pytest.mark.parametrize(
    ("option", "text"), CASES, ids=[f"{option.name} {text[:30]}" for option, text in CASES]
)
def test_wrong_value_is_refused_by_all_three_with_the_same_reason(
    option: Option,
    text: str,
    by_application: Make,
    by_command: Make,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(ConfigError, match=f"^{option.variable} ") as refused:
        by_variable(option, text)
    reason = str(refused.value).removeprefix(option.variable)
    if option.name == "policy":
        with pytest.raises(ConfigError, match="POLICY ") as refused:
            by_command(text)
        assert f"POLICY{reason}\n" in str(refused.value)
    elif option.has_flag and option.default is not False:
        with pytest.raises(ConfigError, match=option.flag) as refused:
            by_command(*words_for(option, text))
        assert f"{option.flag}{reason}\n" in str(refused.value)
    if option.is_argument:
        with pytest.raises(ConfigError) as refused:
            by_application(**{option.name: text})
        assert str(refused.value) == f"{option.name}{reason}"
        monkeypatch.setenv(option.variable, text)
        with pytest.raises(ConfigError) as refused:
            by_application(**{option.name: None})
        assert str(refused.value) == f"{option.variable}{reason}"


def test_every_option_has_an_example_and_wrong_values() -> None:
    assert list(EXAMPLES) == list(OPTIONS)
    assert WRONG.keys() | OF_TEXT == OPTIONS.keys()


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"max_batch": True}, "max_batch"),
        ({"max_batch": 1.5}, "max_batch"),
        ({"max_batch": [1]}, "max_batch"),
        ({"body_timeout": False}, "body_timeout"),
        ({"watch": "maybe"}, "watch"),
        ({"watch": 2}, "watch"),
        ({"redact": [1]}, "redact"),
        ({"redact": 1}, "redact"),
        ({"allowed_hosts": [""]}, "allowed_hosts"),
        ({"audit_db": ""}, "audit_db"),
        ({"keys": ""}, "keys"),
        ({"audit_durability": 1}, "audit_durability"),
        ({"executor": "nowhere"}, "executor"),
    ],
)
def test_argument_of_another_type_is_refused(
    options: dict[str, Any], name: str, by_application: Make
) -> None:
    with pytest.raises(ConfigError, match=f"^{name} "):
        by_application(**options)


@pytest.mark.parametrize("option", OPTIONS.values(), ids=OPTIONS)
def test_empty_variable_is_not_set_but_refused_where_keys_are_expected(option: Option) -> None:
    if option.type.guards_access:
        with pytest.raises(ConfigError, match=f"^{option.variable} is set but empty"):
            settings_from({}, environment={option.variable: ""})
    else:
        assert settings_from({}, environment={option.variable: ""}) == Settings()


@pytest.mark.parametrize("name", ["max_batch", "audit_db", "body_timeout", "allowed_hosts"])
def test_variable_of_kubernetes_is_passed_over_with_a_warning(
    name: str,
    by_application: Make,
    by_command: Make,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv(OPTIONS[name].variable, "tcp://10.96.0.12:8000")
    expected = Settings(policy="policy.yaml")
    assert by_application() == by_command("policy.yaml") == expected
    (warned, again) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert warned.getMessage() == again.getMessage()
    assert "AEGIS_" + name.upper() + "=tcp://10.96.0.12:8000 is passed over" in warned.getMessage()


@pytest.mark.parametrize("name", ["api_key", "admin_key", "keys"])
def test_what_guards_the_server_is_never_passed_over(name: str) -> None:
    text = "tcp://10.96.0.12:8000"
    settings = settings_from({}, environment={OPTIONS[name].variable: text})
    assert getattr(settings, name) == text
    assert not settings.is_keyless


@pytest.mark.parametrize(
    ("alias", "name"),
    [("policy_path", "policy"), ("audit_db_path", "audit_db"), ("keys_path", "keys")],
)
def test_argument_has_another_name_too_but_is_given_once(
    alias: str, name: str, by_application: Make
) -> None:
    expected = by_application(**{name: "policy.yaml"})
    given = {"policy": "policy.yaml", name: None} | {alias: "policy.yaml"}
    assert by_application(**given) == expected
    with pytest.raises(ConfigError, match=f"^{name} is given by two names"):
        by_application(**given | {name: "policy.yaml"})


def test_first_arguments_go_by_position(by_application: Make) -> None:
    made: Any = create_app("policy.yaml", "other.db", SimpleNamespace(), None)  # type: ignore[arg-type]
    assert (made.policy, made.audit_db, made.executor) == ("policy.yaml", "other.db", None)


def test_policy_and_executor_of_python_leave_their_variables_alone(
    by_application: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AEGIS_POLICY", "missing.yaml")
    monkeypatch.setenv("AEGIS_EXECUTOR", "missing:Executor")
    settings = by_application(policy=Policy(), executor=SimpleNamespace())
    assert (settings.policy, settings.executor) == (None, None)


def test_argument_that_does_not_exist_is_an_error_of_python() -> None:
    for name in ("max_bach", "host", "keep_alive"):
        options: dict[str, Any] = {name: 1}
        with pytest.raises(TypeError, match=f"unexpected keyword argument '{name}'"):
            create_app(**options)


def test_help_of_create_app_has_every_option_with_its_meaning() -> None:
    parameters = inspect.signature(create_app).parameters
    arguments = [option for option in OPTIONS.values() if option.is_argument]
    assert {option.name for option in arguments} <= parameters.keys()
    described = [option for option in arguments if option.name not in ("policy", "executor")]
    lines = (create_app.__doc__ or "").splitlines()
    assert [
        option for option in described if f"        {option.name}: {option.help}" not in lines
    ] == []


def test_arguments_for_type_checkers_are_those_of_the_table() -> None:
    named = [option.name for option in OPTIONS.values() if option.is_argument]
    assert [*get_type_hints(Options)] == [
        name for name in named if name not in ("policy", "executor")
    ]


def test_command_takes_every_option_that_has_a_flag() -> None:
    flags = [param.opts[0] for param in serve.params if isinstance(param, click.Option)]
    assert flags == [option.flag for option in OPTIONS.values() if option.has_flag]
    assert [param.envvar for param in serve.params] == [
        option.variable for option in OPTIONS.values() if option.has_flag or option.name == "policy"
    ]


def test_list_is_given_several_times_and_an_empty_one_beats_the_variable(
    by_command: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AEGIS_REDACT", "ssn")
    settings = by_command("policy.yaml", "--redact", "a", "--redact", "b,c")
    assert settings.redact == {"a", "b", "c"}
    assert by_command("policy.yaml", "--redact", "").redact == frozenset()
    assert by_command("policy.yaml").redact == {"ssn"}


@pytest.mark.parametrize(
    ("words", "incomplete", "found"),
    [
        (["serve"], "--audit-d", ["--audit-db", "--audit-durability", "--audit-decisions"]),
        (["serve", "--audit-decisions"], "", ["none", "blocked", "all"]),
        (["serve", "--audit-durability"], "p", ["process"]),
    ],
)
def test_shell_completes_options_and_their_choices(
    words: list[str], incomplete: str, found: list[str]
) -> None:
    completion = ShellComplete(main, {}, "aegis", "_AEGIS_COMPLETE")
    assert [item.value for item in completion.get_completions(words, incomplete)] == found
