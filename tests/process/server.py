"""Starts real servers and talks to them; what came over the wire is shown as it came."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar
from urllib.parse import urlencode

import aegis

__all__ = [
    "COMMAND",
    "POLICY",
    "Answer",
    "AsgiServer",
    "Connection",
    "Ended",
    "Program",
    "Server",
    "end_of",
    "environment",
    "free_port",
    "is_listening",
    "is_running",
    "until",
]

COMMAND = (sys.executable, "-P", "-c", "from aegis.cli import main; main()")
"""The installed command; `-P` because its working folder is not on the path of modules either."""

POLICY = """\
version: "1"
defaults: {risk_level: medium, approval: block}
rules:
  - name: no_deletes
    match: {type: "delete*"}
    risk_level: critical
    approval: block
  - name: production_writes
    match: {type: "write*", target: "prod*"}
    risk_level: critical
    approval: approve
  - name: writes
    match: {type: "write*"}
    risk_level: high
    approval: approve
  - name: reads
    match: {type: "read*"}
    risk_level: low
    approval: auto
"""

_CHECKOUT = Path(aegis.__file__).parents[1]
_PATIENCE_S = 20.0
_T = TypeVar("_T")


def until(condition: Callable[[], _T | None], what: str, timeout_s: float = _PATIENCE_S) -> _T:
    """What the condition gives, as soon as that is true; it is asked again and again."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"within {timeout_s:g} s this did not happen: {what}"
        time.sleep(0.01)
    return value


def environment(**changes: str) -> dict[str, str]:
    """The environment without settings of a server, with the package under test."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AEGIS_")}
    return kept | {"PYTHONPATH": str(_CHECKOUT)} | changes


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_listening(port: int) -> bool:
    """Whether anybody takes connections on a port."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=_PATIENCE_S).close()
    except ConnectionError:
        return False
    return True


def is_running(pid: int) -> bool:
    """Whether a process lives; one that only waits to be reaped does not."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


@dataclass(frozen=True, slots=True)
class Ended:
    """What became of a command that has ended."""

    code: int
    stdout: str
    stderr: str
    seconds: float


def end_of(folder: Path, *arguments: str, env: Mapping[str, str] | None = None) -> Ended:
    """Run `aegis` with arguments in a folder until it ends by itself."""
    begun = time.monotonic()
    with Program((*COMMAND, *arguments), folder, env) as program:
        code = program.process.wait(60.0)
        return Ended(code, program.stdout, program.stderr, time.monotonic() - begun)


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer; names of headers in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """The body's value."""
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The stable code of an error."""
        return str(self.json()["code"])

    @property
    def worker(self) -> str:
        """Which process answered: each makes request ids of its own."""
        return self.headers["x-request-id"].partition("-")[0]


class Connection:
    """One keep-alive connection, which sends what it is told to, right or wrong."""

    def __init__(self, port: int, timeout_s: float = _PATIENCE_S) -> None:
        self._port = port
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        self.socket.sendall(data)

    def answer(self, method: str = "GET") -> Answer:
        """The next answer."""
        response = http.client.HTTPResponse(self.socket, method=method)
        try:
            response.begin()
            headers = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, headers, response.read())
        finally:
            response.close()

    def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> bytes:
        """The bytes of a request; a body is JSON where the headers say nothing else."""
        sent = {"host": f"127.0.0.1:{self._port}"}
        if body is not None:
            sent |= {"content-type": "application/json", "content-length": str(len(body))}
        sent |= headers or {}
        head = [f"{method} {path} HTTP/1.1", *(f"{name}: {sent[name]}" for name in sent)]
        return "\r\n".join([*head, "", ""]).encode() + (body or b"")

    def ask(
        self, method: str, path: str, value: object = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Send a request, its body a value as JSON, or bytes, or none, and take the answer."""
        body = value if isinstance(value, bytes | None) else json.dumps(value).encode()
        self.send(self.request(method, path, body, headers))
        return self.answer(method)

    def is_closed(self) -> bool:
        """Whether the server has closed it: waits for that."""
        try:
            return self.socket.recv(1) == b""
        except ConnectionError:
            return True


class Program:
    """A running command. What it prints goes to files, so it never waits for a reader.

    Invariant: on leaving it is gone, and so is everything that it started.
    """

    def __init__(
        self, command: Sequence[str], folder: Path, env: Mapping[str, str] | None = None
    ) -> None:
        self.folder = folder
        number = len(list(folder.glob("*.stdout")))
        self._stdout, self._stderr = (folder / f"{number}.{name}" for name in ("stdout", "stderr"))
        with self._stdout.open("wb") as stdout, self._stderr.open("wb") as stderr:
            self.process = subprocess.Popen(
                command,
                cwd=folder,
                env=environment(**(env or {})),
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill_all()

    @property
    def pid(self) -> int:
        """Of the process that was started, which is also the number of its group."""
        return self.process.pid

    @property
    def stdout(self) -> str:
        """What it has printed so far."""
        return self._stdout.read_text()

    @property
    def stderr(self) -> str:
        """What it has complained about so far."""
        return self._stderr.read_text()

    @property
    def children(self) -> set[int]:
        """The processes that it has started."""
        try:
            text = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return set()
        return {int(pid) for pid in text.split() if is_running(int(pid))}

    def stop(self, number: int = signal.SIGTERM, timeout_s: float = 30.0) -> int:
        """Send it a signal and wait for its exit code."""
        self.process.send_signal(number)
        return self.process.wait(timeout_s)

    def kill_all(self) -> None:
        """Kill it and all its workers at the same moment, as a power cut would."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait(30.0)

    def printed(self, pattern: str) -> str:
        """The first group of a pattern, as soon as its output has it."""

        def found() -> re.Match[str] | None:
            text = self.stdout + self.stderr
            match = re.search(pattern, text)
            assert match or self.process.poll() is None, f"it ended too early: {text}"
            return match

        return until(found, f"it prints {pattern}")[1]


class _Served(Program):
    """A program that serves.

    Attributes:
        port: Where it listens, on 127.0.0.1.
    """

    port: int

    def _wait(self, pattern: str) -> None:
        try:
            self.port = int(self.printed(pattern))
            until(self._answers, "it answers")
        except BaseException:
            self.kill_all()
            raise

    def _answers(self) -> bool:
        try:
            return self.ask("GET", "/health").status == 200
        except (OSError, http.client.HTTPException):
            return False

    @property
    def url(self) -> str:
        """Its address, as the documentation writes it."""
        return f"http://localhost:{self.port}"

    def connect(self, timeout_s: float = _PATIENCE_S) -> Connection:
        """A connection to it."""
        return Connection(self.port, timeout_s)

    def ask(
        self, method: str, path: str, value: object = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """One request on a connection of its own."""
        with self.connect() as connection:
            return connection.ask(method, path, value, headers)

    def wait_for_workers(self, count: int) -> None:
        """Wait until so many workers serve; the first one that does makes it answer."""

        def all_answer() -> bool:
            return len({self.ask("GET", "/health").worker for _ in range(8 * count)}) == count

        until(all_answer, f"{count} workers serve")

    def rule_for(self, action_type: str) -> str:
        """The name of the rule that decides about an action."""
        answer = self.ask("POST", "/api/v1/evaluate", {"action_type": action_type})
        assert answer.status == 200, answer
        return str(answer.json()["matched_rule"])

    def put_rule(self, name: str) -> int:
        """Put a policy of one rule, which allows everything; its version."""
        rules = [{"name": name, "match": {"type": "*"}, "approval": "auto"}]
        answer = self.ask("PUT", "/api/v1/policy", {"rules": rules})
        assert answer.status == 200, answer
        return int(answer.json()["version"])

    def audit(self, **filters: str | int) -> list[dict[str, Any]]:
        """Records, oldest first."""
        answer = self.ask("GET", f"/api/v1/audit?{urlencode(filters)}")
        assert answer.status == 200, answer
        records: list[dict[str, Any]] = answer.json()
        return records


class Server(_Served):
    """`aegis serve` in a folder, on a port of its own, once it answers.

    Args:
        folder: Where it runs; `policy.yaml` is made there unless there is one.
        options: Of the command.
        arguments: All arguments, in the place of the policy, the port and the options.
        env: Settings.
    """

    def __init__(
        self,
        folder: Path,
        *options: str,
        arguments: Sequence[str] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        policy = folder / "policy.yaml"
        if not policy.exists():
            policy.write_text(POLICY)
        if arguments is None:
            arguments = ("policy.yaml", "--port", "0", *options)
        super().__init__((*COMMAND, "serve", *arguments), folder, env)
        self._wait(r"Aegis \S+ at http://[^\s]+:(\d+)\n")


class AsgiServer(_Served):
    """A script that runs an application under uvicorn, once it answers.

    Args:
        folder: Where it runs; `policy.yaml` is made there unless there is one.
        source: The script; it runs `app` on port 0.
    """

    def __init__(self, folder: Path, source: str) -> None:
        policy = folder / "policy.yaml"
        if not policy.exists():
            policy.write_text(POLICY)
        script = folder / f"app_{len(list(folder.glob('app_*.py')))}.py"
        script.write_text(source)
        super().__init__((sys.executable, str(script)), folder)
        self._wait(r"running on http://[^\s]+:(\d+)")
