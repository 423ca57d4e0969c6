"""What the documents show is what happens: every block of them is run in a fresh environment."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from contextlib import closing
from pathlib import Path

import pytest

from aegis.auth.keys_file import parse_keys
from aegis.policy.loader import load_text
from tests.meta.conftest import run
from tests.meta.documents import DOCUMENTS, ROOT, Block, agrees, blocks

PATIENCE_S = 60.0

NOT_RUN = {
    "make serve    # builds, installs into .venv and serves policy.yaml on http://127.0.0.1:8000": (
        "builds; what it runs is run in its place"
    ),
    "make test     # builds, installs what the tests need and runs all of them": "is what runs this",
    **dict.fromkeys(
        [
            "sudo useradd --system --home-dir /var/lib/aegis --shell /usr/sbin/nologin aegis",
            "sudo python3 -m venv /opt/aegis",
            "sudo /opt/aegis/bin/pip install .",
            "sudo install -d -o aegis -g aegis -m 0750 /etc/aegis",
            "sudo install -o aegis -g aegis -m 0640 policy.yaml /etc/aegis/policy.yaml",
            "sudo -u aegis /opt/aegis/bin/aegis keys new me --role admin --keys /etc/aegis/keys.yaml",
            "sudo install -m 0644 deploy/aegis.service /etc/systemd/system/aegis.service",
            "sudo systemctl daemon-reload",
            "sudo systemctl enable --now aegis",
        ],
        "changes the machine; test_deploy.py compares it with the unit",
    ),
    "make quick": "is a part of what runs this",
    "make check": "is run beside the tests",
    "make coverage": "takes minutes",
    'make test ARGS="tests/unit -q"': "is what runs this",
    "openssl genpkey -algorithm ed25519 -out audit.key": "needs OpenSSL's own command",
    "openssl pkey -in audit.key -pubout -out audit.pub": "needs OpenSSL's own command",
    "aegis serve policy.yaml --audit-signing-key audit.key": "needs that key",
    "aegis audit verify aegis_audit.db --head head.json --public-key audit.pub": "needs that key",
    "make bench": "takes minutes",
    "make sanitize": "takes minutes",
    "make instructions": "renews what is stored; a test counts them",
    "make bench ARGS=--agent-aegis": "takes minutes, and another package",
}
"""Commands that are not run, and why; targets of make are seen to exist."""

SERVERS = ("aegis serve", ".venv/bin/aegis serve", "make serve", "uvicorn")


@pytest.fixture(scope="module")
def commands(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fresh environment, with another ASGI server in it."""
    folder = tmp_path_factory.mktemp("uvicorn")
    run(installed / "python", "-m", "pip", "install", "--quiet", "uvicorn", cwd=folder)
    return installed


class Shell:
    """Runs a document's commands one after the other, as a reader's terminals do.

    Args:
        folder: Where it begins.
        commands: The folder of `aegis`.
    """

    def __init__(self, folder: Path, commands: Path) -> None:
        with closing(socket.socket()) as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = str(probe.getsockname()[1])
        self.folder = folder
        self.here = folder
        self.environment = {
            "PATH": f"{commands}:{os.environ['PATH']}",
            "HOME": str(folder),
            "LANG": "C.UTF-8",
        }
        self.server: subprocess.Popen[bytes] | None = None

    def ported(self, text: str) -> str:
        return text.replace("8000", self.port)

    def run(self, command: str) -> str:
        """What a command prints, and where it leads."""
        script = f'{self.ported(command)}\nstatus=$?; pwd > "{self.folder}/.here"; exit $status'
        done = subprocess.run(
            ["bash", "-c", script],
            cwd=self.here,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        self.here = Path((self.folder / ".here").read_text().strip())
        return done.stdout

    def serve(self, command: str, shown: str) -> str:
        """What a server prints until it answers; the one before it is stopped."""
        self.stop()
        if command == "make serve":
            command = _served_by_make()
        line = f"exec {command}"
        if "aegis serve" in command and "--port" not in command:
            line += f" --port {self.port}"
        output = self.folder / ".output"
        with output.open("wb") as file:
            self.server = subprocess.Popen(
                ["bash", "-c", self.ported(line)],
                cwd=self.here,
                env=self.environment,
                stdout=file,
                stderr=file,
            )
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline and self.server.poll() is None:
            text = output.read_text()
            if self._answers() and agrees(text, self.ported(shown)):
                break
            time.sleep(0.02)
        return output.read_text()

    def _answers(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", int(self.port)), 1).close()
        except OSError:
            return False
        return True

    def stop(self) -> None:
        if self.server is not None:
            self.server.send_signal(signal.SIGINT)
            self.server.wait(PATIENCE_S)
            self.server = None


def _served_by_make() -> str:
    """The command that `make serve` comes to."""
    return (
        run("make", "--dry-run", "--no-print-directory", "serve", "ARGS=", cwd=ROOT)
        .splitlines()[-1]
        .strip()
    )


def _follow(shell: Shell, block: Block) -> None:
    """Do what a block says."""
    if block.file is not None:
        (shell.here / block.file).write_text(shell.ported(block.text))
    match block.language:
        case "console":
            for command, shown in block.commands():
                is_server = command.startswith(SERVERS)
                found = shell.serve(command, shown) if is_server else shell.run(command)
                said = f"line {block.line}: $ {command}\n{found}"
                assert agrees(found, shell.ported(shown)), said
        case "sh":
            for command in block.text.splitlines():
                assert command in NOT_RUN, (
                    f"line {block.line}: a command without an answer: {command}"
                )
        case "python" if block.file is None:
            done = subprocess.run(
                ["python", "-c", block.text],
                cwd=shell.here, env=shell.environment, capture_output=True, text=True, check=False,
            )  # fmt: skip
            assert done.returncode == 0, f"line {block.line}:\n{done.stderr}"
        case "python":
            compile(block.text, str(block.file), "exec")
        case "yaml":
            if block.text.startswith("# keys.yaml"):
                assert parse_keys(block.text, "keys.yaml")
                (shell.here / "keys.yaml").unlink()
            else:
                load_text(block.text)
        case "json":
            json.loads(block.text)
        case "ini" | "nginx" | "caddyfile" | "":
            pass  # what others read, and drawings
        case other:
            raise AssertionError(f"line {block.line}: nobody knows how to try {other}")


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_document_shows_what_happens(document: Path, commands: Path, tmp_path: Path) -> None:
    shell = Shell(tmp_path, commands)
    shutil.copy(ROOT / "policy.yaml", tmp_path)
    (tmp_path / ".venv").symlink_to(commands.parent)
    if "aegis init" in document.read_text(encoding="utf-8"):
        (tmp_path / "policy.yaml").unlink()
    try:
        for block in blocks(document):
            _follow(shell, block)
    finally:
        shell.stop()


def test_documents_show_commands_and_answers() -> None:
    shown = [
        command
        for document in DOCUMENTS
        for block in blocks(document)
        for command in block.commands()
    ]
    assert len(shown) > 40


def test_every_command_that_is_not_run_is_in_a_document() -> None:
    lines = {
        line
        for document in DOCUMENTS
        for block in blocks(document)
        if block.language == "sh"
        for line in block.text.splitlines()
    }
    assert set(NOT_RUN) == lines


@pytest.mark.parametrize(
    "target", sorted({found[1] for line in NOT_RUN if (found := re.match(r"make (\w+)", line))})
)
def test_target_of_make_exists(target: str) -> None:
    run("make", "--dry-run", target, cwd=ROOT)


def test_readme_calls_the_command_where_its_set_up_puts_it() -> None:
    called = [
        command
        for block in blocks(ROOT / "README.md")
        for command, _ in block.commands()
        if re.search(r"\baegis\b(?!_)", command.partition(" -H ")[0])
    ]
    assert called
    assert [command for command in called if not command.startswith(".venv/bin/aegis ")] == []


def test_readme_sets_up_with_two_commands() -> None:
    first = next(block for block in blocks(ROOT / "README.md") if block.language == "sh")
    assert [line.split()[:2] for line in first.text.splitlines()] == [
        ["make", "serve"],
        ["make", "test"],
    ]
