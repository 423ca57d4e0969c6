"""The policy file of a running server: what becomes of its changes, good and bad."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from aegis.audit.journal import Journal
from aegis.errors import NotReady, PolicyError
from aegis.host import watched as watched_file
from aegis.policy import file_source
from aegis.policy.compiled_cache import CompiledFiles
from aegis.policy.file_source import PolicyFile
from aegis.policy.rollout import PolicyVersions
from aegis.store.database import Store


def text(name: str) -> str:
    """A policy whose one rule has this name."""
    return f"rules: [{{name: {name}}}]"


def until(condition: Callable[[], Any]) -> None:
    """Wait until it is true; fails after a time that nothing takes."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.005)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "policy.yaml"
    path.write_text(text("first"))
    return path


@pytest.fixture
def versions(tmp_path: Path, file: Path) -> Iterator[PolicyVersions]:
    store = Store(tmp_path / "audit.db")
    made = PolicyVersions(store, Journal(store))
    made.start(CompiledFiles(store.path).load(file.read_text()))
    yield made
    made.close()
    store.close()


def rule(versions: PolicyVersions) -> str:
    """The rule that decides."""
    return versions.load_newest().engine.evaluate("x").matched_rule


# --- asked to ------------------------------------------------------------------------------------


def test_file_that_changed_is_logged_with_what_is_odd_about_it(
    file: Path, versions: PolicyVersions, caplog: pytest.LogCaptureFixture
) -> None:
    file.write_text(text("second"))
    PolicyFile(str(file), versions).reload_and_log()
    said = f"{file}:1: rule `second`: rules[0]: matches every action and has no `approval`"
    assert said in caplog.text


def test_changed_file_becomes_a_version(file: Path, versions: PolicyVersions) -> None:
    file.write_text(text("second"))
    in_force = PolicyFile(str(file), versions).reload()
    assert (in_force.snapshot.version, in_force.snapshot.stored.origin) == (2, "file")
    assert rule(versions) == "second"


def test_unchanged_file_makes_no_version(file: Path, versions: PolicyVersions) -> None:
    policy_file = PolicyFile(str(file), versions)
    assert policy_file.reload().snapshot.version == 1
    file.write_text(text("second"))
    assert [policy_file.reload().snapshot.version for _ in range(2)] == [2, 2]


def test_unchanged_file_leaves_a_put_policy_in_force(file: Path, versions: PolicyVersions) -> None:
    versions.put(CompiledFiles(":memory:").load(text("put")))
    assert PolicyFile(str(file), versions).reload().snapshot.version == 2
    assert rule(versions) == "put"


def test_changed_file_replaces_a_put_policy_and_that_is_said(
    file: Path, versions: PolicyVersions, caplog: pytest.LogCaptureFixture
) -> None:
    versions.put(CompiledFiles(":memory:").load(text("put")))
    file.write_text(text("second"))
    assert PolicyFile(str(file), versions).reload().snapshot.version == 3
    assert "replaces version 2" in caplog.text


def test_refused_file_changes_nothing_and_is_said_and_counted(
    file: Path, versions: PolicyVersions, caplog: pytest.LogCaptureFixture
) -> None:
    policy_file = PolicyFile(str(file), versions)
    file.write_text("rules:\n  - {nam: secret}\n  - {approval: maybe}\n")
    for count in (1, 2):
        with pytest.raises(PolicyError, match="unknown key `nam`"):
            policy_file.reload()
        failures, why = versions.file_failures()
        assert (failures, why) == (
            count,
            "the policy file is refused: 2 problems, the first in line 2; the log has more",
        )
    assert f"{file}:2: " in caplog.text
    assert f"{file}:3: " in caplog.text
    assert rule(versions) == "first"
    file.write_text(text("second"))
    policy_file.reload()
    assert versions.file_failures() == (2, None)


def test_file_that_is_no_text_is_refused(file: Path, versions: PolicyVersions) -> None:
    file.write_bytes(b"rules: \xff")
    with pytest.raises(PolicyError, match="not UTF-8"):
        PolicyFile(str(file), versions).reload()
    assert versions.file_failures()[0] == 1


def test_file_that_is_gone_is_said(file: Path, versions: PolicyVersions) -> None:
    file.unlink()
    with pytest.raises(NotReady, match="No such file"):
        PolicyFile(str(file), versions).reload()
    assert versions.file_failures() == (1, "the policy file cannot be read")


def test_pipe_in_the_place_of_the_file_keeps_nobody_waiting(
    file: Path, versions: PolicyVersions
) -> None:
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(NotReady, match="it is no regular file"):
        PolicyFile(str(file), versions).reload()
    file.unlink()
    file.write_text(text("second"))
    PolicyFile(str(file), versions).reload()
    assert rule(versions) == "second"


def test_file_is_the_one_that_it_was_at_the_start_wherever_the_process_goes(
    file: Path, versions: PolicyVersions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(file.parent)
    policy_file = PolicyFile("policy.yaml", versions)
    monkeypatch.chdir("/")
    file.write_text(text("second"))
    assert policy_file.reload().snapshot.version == 2


def test_next_start_forgets_failures(file: Path, versions: PolicyVersions) -> None:
    file.write_text("rules: 1")
    with pytest.raises(PolicyError):
        PolicyFile(str(file), versions).reload()
    versions.start(CompiledFiles(":memory:").load(text("first")))
    assert versions.file_failures() == (0, None)


# --- watching ------------------------------------------------------------------------------------


@pytest.fixture
def watched(
    file: Path, versions: PolicyVersions, monkeypatch: pytest.MonkeyPatch
) -> Iterator[PolicyFile]:
    monkeypatch.setattr(file_source, "LOOK_S", 0.01)
    policy_file = PolicyFile(str(file), versions).watch()
    yield policy_file
    policy_file.stop()


def written(file: Path) -> None:
    file.write_text(text("second"))


def replaced(file: Path) -> None:
    new = file.with_name("new")
    new.write_text(text("second"))
    new.replace(file)


def gone_and_there_again(file: Path) -> None:
    file.unlink()
    time.sleep(0.03)
    file.write_text(text("second"))


@pytest.mark.usefixtures("watched")
@pytest.mark.parametrize("change", [written, replaced, gone_and_there_again])
def test_every_kind_of_change_is_seen(
    change: Callable[[Path], None], file: Path, versions: PolicyVersions
) -> None:
    change(file)
    until(lambda: versions.newest[0] == 2)
    assert rule(versions) == "second"


def test_link_that_is_changed_is_a_change(
    tmp_path: Path, versions: PolicyVersions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_source, "LOOK_S", 0.01)
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "policy.yaml").write_text(text(name))
    # As a ConfigMap is mounted: the file is a link through `..data`, which is replaced.
    (tmp_path / "..data").symlink_to("first")
    link = tmp_path / "linked.yaml"
    link.symlink_to("..data/policy.yaml")
    policy_file = PolicyFile(str(link), versions).watch()
    (tmp_path / "..new").symlink_to("second")
    os.replace(tmp_path / "..new", tmp_path / "..data")
    until(lambda: versions.newest[0] == 2)
    policy_file.stop()
    assert rule(versions) == "second"


@pytest.mark.usefixtures("watched")
def test_change_of_the_same_size_and_moment_is_seen(file: Path, versions: PolicyVersions) -> None:
    found = file.stat()
    time.sleep(0.05)  # it has been looked at
    file.write_text(text("other"))
    os.utime(file, ns=(found.st_atime_ns, found.st_mtime_ns))
    assert file.stat().st_size == found.st_size
    until(lambda: versions.newest[0] == 2)
    assert rule(versions) == "other"


@pytest.mark.slow
@pytest.mark.usefixtures("watched")
@pytest.mark.parametrize("pause_s", [0.1, 0.3])
def test_half_written_file_is_not_put_into_force(
    file: Path, versions: PolicyVersions, monkeypatch: pytest.MonkeyPatch, pause_s: float
) -> None:
    monkeypatch.setattr(watched_file, "SHRUNK_S", 0.6)
    whole = "rules:\n- name: deny\n  match: {type: pay}\n  approval: block\n"
    file.write_text(whole)
    until(lambda: versions.newest[0] == 2)
    file.write_text("rules:\n- name: deny\n  match: {type: pay}\n")  # and closed
    time.sleep(pause_s)
    assert versions.newest[0] == 2
    with file.open("a") as writer:
        writer.write("  approval: block\n- name: second\n")
    until(lambda: versions.newest[0] == 3)
    assert versions.load_newest().engine.evaluate("pay").approval == "block"
    file.write_text("rules:\n- name: short\n")
    until(lambda: versions.newest[0] == 4)


@pytest.mark.usefixtures("watched")
def test_file_that_is_open_to_be_written_is_waited_for(
    file: Path, versions: PolicyVersions
) -> None:
    with file.open("a") as writer:
        writer.write("\n# more")
        writer.flush()
        if not watched_file.is_being_written(str(file)):
            pytest.skip("the file system does not tell who writes")
        time.sleep(0.1)
        assert versions.newest[0] == 1
    until(lambda: versions.newest[0] == 2)


@pytest.mark.usefixtures("watched")
@pytest.mark.parametrize("emptied", ["", "\n", "# nothing\n"])
def test_emptied_file_is_refused_and_told(
    file: Path, versions: PolicyVersions, emptied: str, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr(watched_file, "SHRUNK_S", 0.05)
    file.write_text(emptied)
    until(lambda: versions.file_failures()[0] == 1)
    assert "the file is empty and had a policy before; write `rules: []`" in caplog.text
    assert rule(versions) == "first"
    file.write_text("rules: []")
    until(lambda: versions.file_failures() == (1, None))
    assert rule(versions) == "<default>"


@pytest.mark.slow
@pytest.mark.usefixtures("watched")
def test_bad_change_is_said_once_and_a_good_one_follows(
    file: Path, versions: PolicyVersions, caplog: pytest.LogCaptureFixture
) -> None:
    file.write_text("rules: [{nam: a}]")
    until(lambda: versions.file_failures()[0] == 1)
    time.sleep(0.1)
    assert versions.file_failures()[0] == 1
    assert caplog.text.count("the policy in force stays") == 1
    file.write_text(text("second"))
    until(lambda: versions.file_failures() == (1, None))
    assert rule(versions) == "second"


@pytest.mark.usefixtures("watched")
def test_file_that_stays_away_is_said_once_and_taken_when_it_is_back(
    file: Path, versions: PolicyVersions, caplog: pytest.LogCaptureFixture
) -> None:
    file.rename(file.with_name("away"))
    until(lambda: versions.file_failures() == (1, "the policy file cannot be read"))
    file.with_name("away").rename(file)
    until(lambda: versions.file_failures() == (1, None))
    assert caplog.text.count("cannot read the policy") == 1
    assert versions.newest[0] == 1


@pytest.mark.usefixtures("versions")
def test_of_several_processes_that_watch_the_first_that_lives_reloads(tmp_path: Path) -> None:
    store = Store(tmp_path / "audit.db")
    one, other = PolicyVersions(store, Journal(store)), PolicyVersions(store, Journal(store))
    for each in (one, other):
        each.follow(each.start(None), lambda _: None, watches=True)
    assert [each.is_first_to_watch() for each in (one, other)] == [True, False]
    one.close()
    assert other.is_first_to_watch()
    other.close()
    store.close()


def test_watching_goes_on_after_a_failure(
    file: Path, versions: PolicyVersions, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr(file_source, "LOOK_S", 0.01)
    policy_file = PolicyFile(str(file), versions)
    with monkeypatch.context() as patched, caplog.at_level(logging.ERROR):
        patched.setattr(policy_file, "reload", lambda: 1 / 0)
        policy_file.watch()
        until(lambda: "by a defect" in caplog.text)
    file.write_text(text("second"))
    until(lambda: versions.newest[0] == 2)
    policy_file.stop()
