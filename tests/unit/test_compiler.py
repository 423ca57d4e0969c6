"""Compiling in a process of its own: what comes back is what would have been made here."""

from __future__ import annotations

import json
import resource
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from aegis.bench import workload
from aegis.errors import AegisError, InvalidBody, NotReady, PolicyError
from aegis.policy import compile_process
from aegis.policy.compile_process import compile_body, compile_source
from aegis.policy.compiled_cache import PolicyText, compile_policy, pack
from aegis.policy.loader import Policy, load_text
from aegis.policy.regexes import Searches

TEXT = (
    "# ä\ndefaults: {approval: auto}\nrules:\n  - {name: é, match: {type: 'a*'}}\n  - {name: é}\n"
)
DOCUMENT = json.dumps({"rules": [{"name": "a", "conditions": {"param_gt": {"n": 1}}}]}).encode()
BODIES = [
    ("application/yaml", TEXT.encode()),
    ("application/yaml", b"\xef\xbb\xbf" + TEXT.encode()),
    ("application/json", json.dumps({"yaml": TEXT}).encode()),
    ("application/json", DOCUMENT),
    ("", DOCUMENT),
]
WRONG = [
    ("application/yaml", b""),
    ("application/yaml", b"rules: [{nam: a}, {name: b, approval: maybe}]"),
    ("application/yaml", b"rules: \xff"),
    ("application/json", b"{"),
    ("application/json", b"[]"),
    ("application/json", b'{"yaml": 1}'),
    ("application/json", b'{"yaml": "rules: []", "rules": []}'),
    ("application/json", b'{"version": "1"}'),
    ("application/json", b'{"rules": [' + b"[" * 70 + b"]" * 70 + b"]}"),
]


@pytest.fixture
def always_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """No policy is small."""
    monkeypatch.setattr(compile_process, "SMALL_BYTES", -1)


def made(media_type: str, body: bytes) -> PolicyText | tuple[Any, ...]:
    """What comes of a body: a policy, or its refusal."""
    try:
        return compile_body(media_type, body, 64)
    except AegisError as error:
        return type(error), error.code, str(error), getattr(error, "problems", None)


@pytest.mark.parametrize(("media_type", "body"), BODIES)
def test_policy_that_was_compiled_apart_is_the_one_that_is_compiled_here(
    media_type: str, body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = made(media_type, body)
    monkeypatch.setattr(compile_process, "SMALL_BYTES", -1)
    apart = made(media_type, body)
    assert isinstance(here, PolicyText)
    assert isinstance(apart, PolicyText)
    assert apart.source == here.source
    assert pack(apart.compiled) == pack(here.compiled)
    assert apart.compiled.warnings == here.compiled.warnings


@pytest.mark.parametrize(("media_type", "body"), WRONG)
def test_refusal_is_the_same_apart_and_here(
    media_type: str, body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = made(media_type, body)
    monkeypatch.setattr(compile_process, "SMALL_BYTES", -1)
    assert made(media_type, body) == here
    assert isinstance(here, tuple)
    assert here[0] in (InvalidBody, PolicyError)


def test_large_policy_is_compiled_apart() -> None:
    policy = Policy(workload.policy(1_000).rules)
    made = compile_source(policy.source)
    assert made.packed is not None
    assert made.packed == pack(compile_policy(load_text(policy.source)))


def test_small_policy_is_compiled_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere")
    assert compile_source("rules: []").rule_count == 0


def program(folder: Path, *lines: str) -> str:
    """A program to be started in Python's place."""
    path = folder / "python"
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@pytest.mark.usefixtures("always_apart")
@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["exit 3"], "exit code 3"),
        (["kill -9 $$"], "exit code -9"),
        (["exec sleep 60"], "not compiled within"),
    ],
)
def test_process_that_fails_is_said_and_tried_again_later(
    lines: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", program(tmp_path, *lines))
    monkeypatch.setattr(compile_process, "TIMEOUT_S", 0.2)
    with pytest.raises(NotReady, match=said):
        compile_source("rules: []")


@pytest.mark.usefixtures("always_apart")
def test_program_that_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(NotReady, match="could not be compiled"):
        compile_source("rules: []")


@pytest.mark.usefixtures("always_apart")
def test_where_no_python_can_be_started_it_is_compiled_here(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "executable", "")
    assert compile_source("rules: []").packed is None


@pytest.mark.usefixtures("always_apart")
def test_keys_of_the_environment_are_not_passed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AEGIS_API_KEY", "secret")
    monkeypatch.setattr(
        sys, "executable", program(tmp_path, f"env > {tmp_path}/env", "cat > /dev/null", "exit 1")
    )
    with pytest.raises(NotReady):
        compile_source("rules: []")
    assert "AEGIS_" not in (tmp_path / "env").read_text()


@pytest.mark.parametrize("room", [100, 60_000])
def test_policy_that_a_limit_on_files_keeps_from_being_compiled_is_not_said_to_be_wrong(
    room: int,
) -> None:
    source = "rules:\n" + "  - {name: a}\n" * 3_000
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, unlimited[1]))
    try:
        with pytest.raises(NotReady, match="could not be compiled"):
            compile_source(source)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert compile_source(source).packed is not None


def test_process_that_nobody_waits_for_does_nothing() -> None:
    code = (
        "from aegis.policy.compile_process import main; main(['application/yaml', '64', '1', '1'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=b"rules: []", capture_output=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def heavy(pattern: str, count: int) -> bytes:
    """A small policy of so many different expressions."""
    rules = [
        {"conditions": {"param_matches": {"p": pattern.replace("N", str(number))}}}
        for number in range(count)
    ]
    return json.dumps({"rules": rules}).encode()


@pytest.mark.parametrize("pattern", [r"\pL{200}N", "a[bc]{900}N"])
def test_policy_of_heavy_expressions_is_compiled_apart_though_it_is_small(
    pattern: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    apart: list[bytes] = []

    def compile_apart(_: str, body: bytes, _deepest: int) -> Any:
        apart.append(body)
        raise NotReady("elsewhere")

    monkeypatch.setattr(compile_process, "_compiled_apart", compile_apart)
    body = heavy(pattern, 80)
    assert len(body) < compile_process.SMALL_BYTES
    began = time.process_time()
    with pytest.raises(NotReady, match="elsewhere"):
        compile_body("application/json", body, 64)
    with pytest.raises(NotReady, match="elsewhere"):
        compile_source(body.decode())
    assert time.process_time() - began < 2.0
    assert apart == [body, body]


def test_refused_expressions_are_named_though_they_are_found_apart() -> None:
    with pytest.raises(PolicyError) as refused:
        compile_body("application/json", heavy(r"\pL{200}N", 20), 64)
    assert [problem.key for problem in refused.value.problems][:2] == [
        "rules[0].conditions.param_matches.p", "rules[1].conditions.param_matches.p",
    ]  # fmt: skip


def test_policy_whose_expressions_are_too_large_together_is_refused() -> None:
    searches = Searches(2_000)
    with pytest.raises(PolicyError, match="over 2000 instructions together"):
        load_text(heavy("a[bc]{900}N", 3), searches)
    assert searches.is_over
