"""What every command prints, whatever it prints to: help, locales, pipes that close, Ctrl-C."""

from __future__ import annotations

import csv
import fcntl
import json
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import termios
from contextlib import suppress
from pathlib import Path

import pytest
from click.testing import CliRunner

from aegis.audit import MEMBERS
from aegis.cli import main
from tests.process.server import COMMAND, Program, Server, end_of, environment, until
from tests.process.test_cli_evaluate import ALL

POLICY = """\
rules:
  - {name: café, match: {type: "*"}, approval: auto}
"""
LOCALES = [
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    {"PYTHONIOENCODING": "latin-1"},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a policy, keys, and a database of one record, none of them ASCII."""
    folder = tmp_path_factory.mktemp("output")
    (folder / "policy.yaml").write_text(POLICY, encoding="utf-8")
    with Server(folder) as server:
        action = {"action_type": "café", "target": "中文", "agent_id": "zoë"}
        assert server.ask("POST", "/api/v1/execute", action).status == 200
        assert server.stop() == 0
    made = end_of(folder, "keys", "new", "bot", "--role", "agent", "--agents", "zoë-*")
    assert made.code == 0
    return folder


@pytest.mark.parametrize("names", ALL, ids=" ".join)
def test_help_has_no_control_characters_and_fits_into_80_columns(names: tuple[str, ...]) -> None:
    done = CliRunner().invoke(main, [*names, "--help"], prog_name="aegis", terminal_width=80)
    lines = done.stdout.split("\n")
    assert done.exit_code == 0
    assert [line for line in lines if not line.isprintable() or len(line) > 80] == []


@pytest.mark.parametrize(
    ("names", "example"),
    [
        ((), "  aegis serve policy.yaml        decides over HTTP, at http://127.0.0.1:8000"),
        (("completion",), '  zsh:   eval "$(aegis completion zsh)"     in ~/.zshrc'),
    ],
)
def test_help_keeps_the_lines_of_examples(names: tuple[str, ...], example: str) -> None:
    assert example in CliRunner().invoke(main, [*names, "--help"]).stdout.split("\n")


@pytest.mark.parametrize("changes", LOCALES, ids=["C", "POSIX", "latin-1"])
@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ("audit export", "café"),
        ("audit export --format csv", "café"),
        ("audit export --format chain", "café"),
        ("audit list", "café"),
        ("audit list --format jsonl", "中文"),
        ("audit list --action-type café", "中文"),
        ("audit tail", "café"),
        ("audit stats", "café"),
        ("audit stats --format json", "café"),
        ("policy show", "café"),
        ("policy show --format json", "café"),
        ("keys list", "zoë-*"),
        ("keys list --format json", "zoë-*"),
        ("evaluate policy.yaml --type café", "café"),
        ("evaluate policy.yaml --type café --target 中文 --format json", "中文"),
        ("--help", "…"),
    ],
)
def test_output_is_utf8_whatever_the_locale(
    folder: Path, arguments: str, text: str, changes: dict[str, str]
) -> None:
    done = subprocess.run(
        (*COMMAND, *arguments.encode().split()),
        cwd=folder,
        env=environment(**changes),
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert text in done.stdout.decode("utf-8")


def test_file_name_of_no_utf8_is_still_json(folder: Path) -> None:
    os.link(folder / "policy.yaml", os.fsencode(folder) + b"/caf\xe9.yaml")
    done = subprocess.run(
        (*COMMAND, "validate", b"caf\xe9.yaml", "--format", "json"),
        cwd=folder,
        env=environment(),
        capture_output=True,
        check=False,
    )
    assert (done.returncode, json.loads(done.stdout)["file"]) == (0, "caf\udce9.yaml")


@pytest.mark.parametrize(
    "arguments",
    [
        "audit export",
        "audit export --format csv",
        "audit export --format chain",
        "audit list",
        "audit list --format csv",
        "audit stats",
        "policy show",
        "policy list",
        "keys list",
        "validate policy.yaml",
        "completion bash",
    ],
)
def test_pipe_that_nobody_reads_ends_a_command_quietly(folder: Path, arguments: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        (*COMMAND, *arguments.split()),
        cwd=folder,
        env=environment(),
        stdout=writing,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b"")


def test_tail_ends_when_nobody_reads_on_though_nothing_comes(folder: Path) -> None:
    with subprocess.Popen(
        (*COMMAND, "audit", "tail", "-f"),
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as tail:
        assert tail.stdout is not None
        assert tail.stderr is not None
        tail.stdout.readline()
        tail.stdout.close()
        assert (tail.wait(20), tail.stderr.read()) == (128 + signal.SIGPIPE, b"")


# Jobs in the background, as of a shell that runs these tests, ignore it from their start.
INTERRUPTIBLE = (
    *COMMAND[:-1],
    f"import signal; signal.signal(signal.SIGINT, signal.default_int_handler); {COMMAND[-1]}",
)


def test_ctrl_c_ends_a_command_with_130_and_no_word(folder: Path) -> None:
    with Program((*INTERRUPTIBLE, "audit", "tail", "-f"), folder) as tail:
        until(lambda: re.search("café", tail.stdout), "it shows a record")
        assert tail.stop(signal.SIGINT) == 130
        assert tail.stderr == ""


def test_ctrl_c_while_a_command_starts_ends_it_with_130_and_no_word(folder: Path) -> None:
    interrupted = (
        "import sys\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'aegis.cli.terminal':\n"
        "            raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupt())\n"
    )
    with Program((*COMMAND[:-1], interrupted + COMMAND[-1], "audit", "list"), folder) as program:
        assert program.process.wait(30) == 130
        assert program.stderr == ""


# --- on a terminal -------------------------------------------------------------------------------

LONG = "crm.customers.of.all.countries/" * 5


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a database of short, long, wide and hostile texts."""
    folder = tmp_path_factory.mktemp("wide")
    (folder / "policy.yaml").write_text(POLICY, encoding="utf-8")
    texts = ["read", LONG, "中文" * 40, "e\u0301" * 60, "\x1b[2J", "=1+1"]
    with Server(folder) as server:
        batch: list[dict[str, object]] = [
            {"action_type": text, "target": text, "agent_id": text} for text in texts
        ]
        batch.append({"action_type": "-1", "target": "@SUM(1)", "chain_depth": -7})
        batch.append({"action_type": "\t=x", "target": "\r=x", "agent_id": "+1"})
        assert server.ask("POST", "/api/v1/execute", batch).status == 200
        assert server.stop() == 0
    return folder


def shown(folder: Path, columns: int, *arguments: str, stdout: int | None = None) -> str:
    """What a command shows on a terminal of so many columns."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    with subprocess.Popen(
        (*COMMAND, *arguments),
        cwd=folder,
        env=environment(TERM="xterm", NO_COLOR="1"),
        stdout=theirs if stdout is None else stdout,
        stderr=theirs,
    ):
        os.close(theirs)
        text = b""
        with suppress(OSError):  # the terminal's way to end
            while part := os.read(ours, 65536):
                text += part
    os.close(ours)
    return text.decode()


def columns_of(line: str) -> int:
    """How many columns a line takes whose letters are ASCII, Chinese, or accents."""
    return sum(2 if "一" <= char <= "鿿" else char != "\u0301" for char in line)


@pytest.mark.parametrize("columns", [40, 80, 100, 200])
@pytest.mark.parametrize("command", ["list", "tail"])
def test_table_fits_the_terminal_by_one_line_a_record(
    wide: Path, command: str, columns: int
) -> None:
    lines = shown(wide, columns, "audit", command).split("\r\n")[:-1]
    assert [line.split()[0] for line in lines] == ["ID", *"12345678"]
    if columns >= 80:
        assert [line for line in lines if columns_of(line) > columns] == []
        starts = {line.index("read") for line in lines[1:2]}
        assert starts == {lines[0].index("AGENT")}


def test_short_texts_are_whole_on_80_columns(folder: Path) -> None:
    lines = shown(folder, 80, "audit", "list").split("\r\n")
    assert "…" not in "".join(lines)
    assert lines[1].split()[-4:] == ["zoë", "café", "中文", "café"]


def test_piped_table_is_not_cut(wide: Path) -> None:
    listed = end_of(wide, "audit", "list").stdout
    assert LONG in listed
    assert "…" not in listed
    assert "\x1b" not in listed


def test_empty_table_says_so_and_empty_data_is_empty(folder: Path) -> None:
    nothing = ("audit", "list", "--agent-id", "nobody")
    table, lines = end_of(folder, *nothing), end_of(folder, *nothing, "--format", "jsonl")
    assert (table.code, table.stdout, table.stderr) == (0, "", "no records\n")
    assert (lines.code, lines.stdout, lines.stderr) == (0, "", "")


def test_cells_of_csv_are_no_formulas_and_numbers_stay_numbers(wide: Path) -> None:
    assert end_of(wide, "audit", "export", "--format", "csv", "--to", "cells").code == 0
    with (wide / "cells").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [len(row) for row in rows] == [len(MEMBERS)] * 8
    assert [row["action_type"] for row in rows[5:]] == ["'=1+1", "'-1", "'\t=x"]
    assert [row["action_target"] for row in rows[5:]] == ["'=1+1", "'@SUM(1)", "'\r=x"]
    assert (rows[7]["agent_id"], rows[6]["chain_depth"]) == ("'+1", "-7")
    assert rows[0]["action_type"] == "read"


@pytest.mark.parametrize(
    "arguments",
    [
        ("audit", "export", "--to", "records"),
        ("audit", "export", "--format", "chain", "--to", "links"),
        ("audit", "export", "--agent-id", "nobody", "--to", "none"),
        ("audit", "backup", "copy.db"),
        ("audit", "verify", "aegis_audit.db"),
        ("audit", "verify", "aegis_audit.db", "--from", "3"),
        ("audit", "archive", "--before", "0s", "--to", "old.db"),
    ],
    ids=" ".join,
)
def test_long_work_has_a_bar_that_ends_full_on_a_terminal_only(
    wide: Path, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    for name in ("quiet", "seen"):
        shutil.copytree(wide, tmp_path / name)
    quiet = end_of(tmp_path / "quiet", *arguments)
    assert (quiet.code, quiet.stderr) == (0, "")
    bars = shown(tmp_path / "seen", 100, *arguments, stdout=subprocess.DEVNULL)
    assert re.findall(r"\d+%", bars)[-1:] == ["100%"]
