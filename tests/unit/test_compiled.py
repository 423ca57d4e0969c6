"""Compiled policies in files: they decide as the policy does, and what is wrong with one is refused."""

from __future__ import annotations

import gc
import os
import random
import stat
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import re2

from aegis.bench import workload
from aegis.errors import PolicyError, Problem
from aegis.policy import compiled_cache as module
from aegis.policy.compiled_cache import CompiledFiles, CompiledPolicy, compile_policy, pack, unpack
from aegis.policy.conditions import compile_conditions
from aegis.policy.loader import LoadedPolicy, Policy, load_text

TEXT = """\
defaults: {risk_level: high, approval: auto}
rules:
  - {name: small, match: {type: "pay*"}, conditions: {param_lt: {amount: 100}}, approval: auto}
  - {name: "groß 😀", match: {type: "pay*"}, conditions: {param_matches: {note: "^a+$"}}, approval: approve}
  - {name: "groß 😀", match: {target: "*prod*", agent: "b?t"}, risk_level: critical, approval: block}
"""
ACTIONS: tuple[tuple[str, str, str, dict[str, Any]], ...] = (
    ("pay", "x", "", {"amount": 5}),
    ("pay", "x", "", {"amount": 500, "note": "aaa"}),
    ("pay", "x", "", {"amount": "five"}),
    ("read", "my prod", "bot", {}),
    ("read", "my prod", "", {}),
)


def of(text: str) -> CompiledPolicy:
    """A text, compiled here."""
    return compile_policy(load_text(text))


def answers(policy: CompiledPolicy) -> list[bytes]:
    """What it decides, as it answers."""
    return [policy.engine.evaluate_json(*action) for action in ACTIONS]


@pytest.fixture
def files(tmp_path: Path) -> CompiledFiles:
    return CompiledFiles(str(tmp_path / "audit.db"))


def kept(folder: Path) -> list[Path]:
    """The files that are there."""
    return sorted(folder.glob("audit.db.policy-*"))


# --- bytes ---------------------------------------------------------------------------------------


def test_policy_from_bytes_is_the_one_that_they_were_made_of() -> None:
    policy = of(TEXT)
    made = unpack(pack(policy), policy.sha256)
    assert answers(made) == answers(policy)
    assert (made.sha256, made.rule_count) == (policy.sha256, 3)
    assert bytes(made.members) == bytes(policy.members)
    assert made.warnings == policy.warnings
    assert [type(odd) for odd in made.warnings] == [Problem]


def test_policy_from_bytes_gives_the_same_bytes() -> None:
    packed = pack(of(TEXT))
    assert pack(unpack(packed)) == packed


def test_policy_made_in_python_is_one_too() -> None:
    policy = Policy(workload.policy(100).rules)
    packed = pack(compile_policy(LoadedPolicy(policy, policy.source)))
    assert unpack(packed).rule_count == 100


def test_each_byte_that_is_another_is_noticed() -> None:
    whole = pack(of(TEXT))
    pick = random.Random(3)
    for place in [*range(120), *pick.sample(range(len(whole)), 300)]:
        packed = bytearray(whole)
        packed[place] ^= 1 << pick.randrange(8)
        with pytest.raises(ValueError, match=r"damaged|release|cut off|this machine"):
            unpack(bytes(packed))


@pytest.mark.parametrize("size", [0, 1, 63, 64, 200, -1])
def test_what_is_cut_off_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=r"cut off|no compiled policy"):
        unpack(pack(of(TEXT))[:size])


def test_what_another_release_made_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = pack(of(TEXT))
    monkeypatch.setattr(module, "__version__", "0.0.1")
    with pytest.raises(ValueError, match="another release"):
        unpack(packed)


def test_policy_of_another_text_is_refused() -> None:
    with pytest.raises(ValueError, match="another text"):
        unpack(pack(of(TEXT)), of("rules: []").sha256)


def test_block_of_another_policy_is_refused() -> None:
    one, other = (pack(of(f"rules: [{{name: {name}}}]")) for name in "ab")
    spliced = one[:-100] + other[-100:]
    with pytest.raises(ValueError, match="damaged"):
        unpack(spliced)


# --- files ---------------------------------------------------------------------------------------


def test_kept_policy_is_found_by_all_others(files: CompiledFiles, tmp_path: Path) -> None:
    policy = of(TEXT)
    assert files.find(policy.sha256) is None
    assert answers(files.keep(policy)) == answers(policy)
    found = CompiledFiles(str(tmp_path / "audit.db")).find(policy.sha256)
    assert found is not None
    assert answers(found) == answers(policy)


def test_file_is_for_this_user_only_and_nothing_else_is_left(
    files: CompiledFiles, tmp_path: Path
) -> None:
    files.keep(of(TEXT))
    (path,) = tmp_path.iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_text_that_is_kept_is_not_parsed_again(
    files: CompiledFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.keep(of(TEXT))
    monkeypatch.delattr(module, "load_text")
    assert files.load(TEXT.encode()).compiled.rule_count == 3
    assert files.load(b"\xef\xbb\xbf" + TEXT.encode()).source == TEXT


def test_text_that_is_not_kept_is_parsed(files: CompiledFiles) -> None:
    assert files.load(TEXT).compiled.rule_count == 3
    with pytest.raises(PolicyError, match="unknown key"):
        files.load("rules: [{nam: a}]")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"AEGISCP1"),
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(path.read_bytes()[:-1] + b"!"),
        lambda path: path.write_bytes(os.urandom(10_000)),
        lambda path: path.chmod(0o666),
        lambda path: path.unlink(),
        lambda path: (path.unlink(), path.mkdir()),
        lambda path: (path.rename(path.with_name("x")), path.symlink_to("x")),
    ],
    ids=["empty", "head", "cut", "end", "random", "writable", "gone", "folder", "link"],
)
def test_file_that_cannot_be_trusted_is_not_used(
    spoil: object, files: CompiledFiles, tmp_path: Path
) -> None:
    policy = files.keep(of(TEXT))
    spoil(kept(tmp_path)[0])  # type: ignore[operator]
    assert files.find(policy.sha256) is None
    assert answers(files.load(TEXT).compiled) == answers(of(TEXT))


def test_file_that_was_damaged_is_written_anew(files: CompiledFiles, tmp_path: Path) -> None:
    policy = of(TEXT)
    files.keep(policy)
    kept(tmp_path)[0].write_bytes(b"damaged")
    files.keep(policy)
    assert files.find(policy.sha256) is not None


def test_policy_that_is_in_use_outlives_its_file(files: CompiledFiles, tmp_path: Path) -> None:
    policy = files.keep(of(TEXT))
    files.keep(policy)  # in the place of the file that is mapped
    kept(tmp_path)[0].unlink()
    assert answers(policy) == answers(of(TEXT))


def test_policy_that_is_garbage_is_cleared(files: CompiledFiles) -> None:
    class Holder:
        itself: object
        policy: CompiledPolicy

    for _ in range(3):
        holder = Holder()
        holder.itself, holder.policy = holder, files.keep(of(TEXT))
        del holder
        gc.collect()  # what cannot be cleared is a warning, which fails this test


def test_files_that_nobody_needs_are_removed(files: CompiledFiles, tmp_path: Path) -> None:
    policies = [files.keep(of(f"rules: [{{name: r{number}}}]")) for number in range(3)]
    (tmp_path / "audit.db.policy-notes").touch()
    (tmp_path / "audit.db").touch()
    unfinished = [tmp_path / f"audit.db.policy-{'a' * 32}.x{age}.part" for age in (0, 1)]
    for path in unfinished:
        path.touch()
    os.utime(unfinished[1], (time.time() - 3600,) * 2)
    files.remove_others({policies[1].sha256})
    assert [files.find(policy.sha256) is not None for policy in policies] == [False, True, False]
    assert (tmp_path / "audit.db").exists()
    assert (tmp_path / "audit.db.policy-notes").exists()
    assert [path.exists() for path in unfinished] == [True, False]


def test_folder_that_cannot_be_written_only_costs_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = CompiledFiles(str(tmp_path / "missing" / "audit.db"))
    policy = of(TEXT)
    assert files.keep(policy) is policy
    assert "cannot be kept" in caplog.text
    files.remove_others(set())


def test_database_in_memory_has_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    files = CompiledFiles(":memory:")
    policy = of(TEXT)
    assert files.keep(policy) is policy
    assert files.find(policy.sha256) is None
    files.remove_others(set())
    assert list(tmp_path.iterdir()) == []


def test_conditions_are_compiled_when_they_are_first_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    made = unpack(pack(of(TEXT)))
    asked: list[object] = []

    def compile_and_note(written: Mapping[str, Any]) -> Any:
        asked.append(written)
        return compile_conditions(written)

    monkeypatch.setattr(module, "compile_conditions", compile_and_note)
    made.engine.evaluate("read")
    assert asked == []
    for _ in range(2):
        assert made.engine.evaluate("pay", "", "", {"amount": 1}).matched_rule == "small"
    assert asked == [{"param_lt": {"amount": 100}}]


EXPRESSIONS = """\
rules:
  - {name: a, approval: auto, conditions: {param_matches: {p: "^a[xy]{20}$"}}}
  - {name: b, approval: auto, conditions: {param_matches: {p: "^b"}}}
  - {name: c, approval: auto, conditions: {param_matches: {q: "c$"}}}
"""


def test_policy_of_a_file_has_nothing_left_to_compile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = CompiledFiles(str(tmp_path / "a.db"))
    kept = files.keep(of(EXPRESSIONS))
    found = files.find(kept.sha256)
    assert found is not None

    def refuse(*_: object) -> Any:
        raise AssertionError("an expression is compiled where requests wait")

    monkeypatch.setattr(re2, "compile", refuse)
    monkeypatch.setattr(re2, "Set", refuse)
    for policy in (kept, found):
        decided = [
            policy.engine.evaluate("x", "", "", params).matched_rule
            for params in ({"p": "a" + "xy" * 10}, {"p": "bc"}, {"q": "bc"}, {"p": "c" * 300})
        ]
        assert decided == ["a", "b", "c", "<default>"]


def test_policy_that_was_compiled_apart_is_ready_when_nothing_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    policy = CompiledFiles(":memory:").keep(unpack(pack(of(EXPRESSIONS))))
    monkeypatch.setattr(re2, "compile", None)
    assert policy.engine.evaluate("x", "", "", {"p": "b"}).matched_rule == "b"


@pytest.mark.parametrize(
    ("text", "is_quick"),
    [("rules: [{conditions: {param_gt: {n: 1}}}]", True), (EXPRESSIONS, False)],
)
def test_policy_with_expressions_is_not_made_ready_where_a_request_waits(
    text: str, is_quick: bool, tmp_path: Path
) -> None:
    files = CompiledFiles(str(tmp_path / "a.db"))
    policy = files.keep(of(text))
    assert (files.find(policy.sha256, at_once=True) is not None) is is_quick
    assert files.find(policy.sha256) is not None
