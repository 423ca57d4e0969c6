"""What the front makes good of what RSGI does not tell or hold back, over real connections."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from time import monotonic, sleep

import pytest

from tests.process.server import Server, until

EVALUATE, EXECUTE, AUDIT, PUT = (
    "/api/v1/evaluate",
    "/api/v1/execute",
    "/api/v1/audit",
    "/api/v1/policy",
)
MIB = 1024 * 1024
RECORDS = 20_000
NOTE = "n" * 1_500


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server for tests that leave its policy as it was."""
    with Server(tmp_path_factory.mktemp("front")) as running:
        yield running
        assert running.stderr == ""
        assert running.stop() == 0


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with about 40 MB of records."""
    with Server(tmp_path_factory.mktemp("full")) as running:
        action = {"action_type": "read", "params": {"note": NOTE}}
        for _ in range(RECORDS // 500):
            assert running.ask("POST", EXECUTE, [action] * 500).status == 200
        yield running
        assert running.stderr == ""
        assert running.stop() == 0


def worker_of(server: Server) -> int:
    (worker,) = server.children
    return worker


def status_of(server: Server, lines: list[bytes], body: bytes = b'{"action_type":"read"}') -> int:
    """The status of an evaluation with exactly these header lines, besides its length."""
    head = [b"POST /api/v1/evaluate HTTP/1.1", *lines, b"content-length: %d" % len(body), b"", b""]
    with server.connect() as connection:
        connection.send(b"\r\n".join(head) + body)
        return connection.answer("POST").status


HOST = b"host: 127.0.0.1"


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        ([HOST], 200),
        ([HOST, b"content-type: application/json"], 200),
        ([HOST, b"content-type: text/plain; x=\xe9"], 415),
        ([HOST, b"content-type: application/json", b"content-type: text/plain"], 415),
        ([b"host: \xe9vil.example"], 400),
        ([HOST, b"host: evil.example"], 400),
        ([], 400),
        ([b"host:"], 400),
        ([b"host: localhost:abc"], 400),
        ([HOST, b"x-forwarded-for: \xe9"], 403),
        ([HOST, b"x-a: " + b"a" * 60_000], 200),
        ([HOST, b"x-a: " + b"a" * 70_000], 431),
        ([HOST, b"origin: http://\xe9vil.example"], 403),
        ([HOST, b"origin: http://127.0.0.1", b"origin: http://evil.example"], 403),
    ],
)
def test_header_that_is_repeated_or_unreadable_is_not_taken_for_left_out(
    shared: Server, lines: list[bytes], status: int
) -> None:
    assert status_of(shared, lines) == status


@pytest.mark.parametrize(
    ("start", "status"),
    [
        (b"POST http://evil.test/api/v1/evaluate HTTP/1.1\r\nhost: localhost", 403),
        (b"POST http://localhost/api/v1/evaluate HTTP/1.1\r\nhost: evil.test", 200),
        (b"POST http://a@localhost/api/v1/evaluate HTTP/1.1\r\nhost: localhost", 400),
        (b"POST /api/v1/evaluate HTTP/1.0\r\nx: y", 200),
    ],
)
def test_target_says_the_host_where_it_is_absolute(
    shared: Server, start: bytes, status: int
) -> None:
    with shared.connect() as connection:
        connection.send(start + b"\r\ncontent-length: 22\r\n\r\n" + b'{"action_type":"read"}')
        assert connection.answer("POST").status == status


def leave_in_the_middle_of_a_body(server: Server) -> None:
    with server.connect() as connection:
        connection.send(connection.request("POST", EXECUTE, headers={"content-length": "9"}))
        connection.send(b"{")


def leave_in_the_middle_of_a_chunk(server: Server) -> None:
    with server.connect() as connection:
        connection.send(CHUNKED_PUT + b"b\r\nrules")


def send_too_much(server: Server) -> None:
    with server.connect() as connection:
        length = {"content-length": "99999999"}
        connection.ask("POST", EXECUTE, b"", headers=length)


def leave_without_an_answer(server: Server) -> None:
    with server.connect() as connection:
        connection.send(connection.request("GET", AUDIT))


@pytest.mark.parametrize(
    "leave",
    [
        leave_in_the_middle_of_a_body,
        leave_in_the_middle_of_a_chunk,
        send_too_much,
        leave_without_an_answer,
    ],
)
def test_clients_that_leave_leave_nothing_behind(
    shared: Server, leave: Callable[[Server], None]
) -> None:
    worker = Path(f"/proc/{worker_of(shared)}")

    def connections() -> int:
        return sum(1 for _ in (worker / "fd").iterdir())

    def come_and_leave(times: int) -> None:
        for _ in range(times // 50):
            for _ in range(50):
                leave(shared)
            until(lambda: connections() < idle + 10 or None, "it has noticed that they left")

    idle = connections()
    come_and_leave(500)  # what every process needs once
    before = resident_bytes(worker)
    come_and_leave(1_500)
    assert resident_bytes(worker) - before < 6 * MIB  # 12 KB each would be 18 MB


def test_two_keys_are_none(tmp_path: Path) -> None:
    with Server(tmp_path, env={"AEGIS_API_KEY": "k"}) as running:
        assert status_of(running, [HOST, b"x-api-key: k"]) == 200
        assert status_of(running, [HOST, b"x-api-key: k", b"x-api-key: other"]) == 401
        assert status_of(running, [HOST, b"x-api-key: k", b"x-api-key: k"]) == 401
        assert status_of(running, [HOST, b"x-api-key: k\xe9"]) == 401


CHUNKED_PUT = (
    b"PUT /api/v1/policy HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/yaml\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)
TRAILER = b"0\r\nx-trailer: 1\r\n\r\n"
"""granian tells it as it tells a failure, so it must count as one."""
START_OF_A_POLICY = b"b\r\nrules: []\n\n\r\n"


def test_policy_in_chunks_is_put(tmp_path: Path) -> None:
    with Server(tmp_path) as running, running.connect() as connection:
        connection.send(CHUNKED_PUT + START_OF_A_POLICY + b"0\r\n\r\n")
        assert connection.answer("PUT").json()["rule_count"] == 0


@pytest.mark.parametrize("rest", [b"", b"5\r\nru", b"zz\r\n", b"0\r\n", TRAILER])
def test_policy_whose_chunks_break_off_or_have_a_trailer_is_not_put(
    shared: Server, rest: bytes
) -> None:
    with shared.connect() as connection:
        connection.send(CHUNKED_PUT + START_OF_A_POLICY + rest)
        connection.socket.shutdown(socket.SHUT_WR)
        received = connection.socket.recv(65536)
    assert received == b"" or int(received.split()[1]) == 400
    assert shared.ask("GET", PUT).json()["version"] == 1


def resident_bytes(process: Path) -> int:
    """The memory of a process, by its folder in /proc."""
    return int((process / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_streamed_audit_waits_for_a_slow_reader(full: Server) -> None:
    worker = Path(f"/proc/{worker_of(full)}")

    def cpu_ticks() -> int:
        return sum(map(int, (worker / "stat").read_text().rpartition(")")[2].split()[11:13]))

    def is_idle() -> bool | None:
        before = cpu_ticks()
        sleep(0.3)
        return cpu_ticks() == before or None

    assert len(full.audit(limit=3_000)) == 3_000  # what a page needs is there
    before = resident_bytes(worker)
    with full.connect() as connection:
        connection.send(connection.request("GET", AUDIT))
        assert connection.socket.recv(1_000).startswith(b"HTTP/1.1 200 OK\r\n")
        until(is_idle, "the worker waits for its reader")
        assert resident_bytes(worker) - before < 12 * MIB
        received = 0
        end = b""
        while not end.endswith(b"0\r\n\r\n"):
            part = connection.socket.recv(MIB)
            assert part
            received += len(part)
            end = (end + part)[-5:]
        assert received > 30 * MIB


def test_streamed_audit_is_the_records_in_their_order(full: Server) -> None:
    answer = full.ask("GET", AUDIT)
    assert answer.headers["transfer-encoding"] == "chunked"
    assert answer.headers["content-type"] == "application/json"
    assert [record["id"] for record in json.loads(answer.body)] == list(range(1, RECORDS + 1))


def test_head_of_a_streamed_audit_leaves_the_connection_usable(full: Server) -> None:
    with full.connect() as connection:
        head = connection.ask("HEAD", AUDIT)
        assert (head.status, head.body) == (200, b"")
        assert "content-length" not in head.headers
        assert connection.ask("GET", "/health").status == 200


def test_readers_that_leave_a_stream_leave_nothing_behind(full: Server) -> None:
    files = Path(f"/proc/{worker_of(full)}/fd")

    def pipes() -> int:
        return sum(1 for file in files.iterdir() if is_pipe(file))

    before = pipes()
    for _ in range(5):
        with full.connect() as connection:
            connection.send(connection.request("GET", AUDIT))
            assert connection.socket.recv(100)
    until(lambda: pipes() == before or None, "the pipes are closed")
    assert full.ask("GET", "/health").status == 200


def test_readers_that_never_take_what_they_asked_for_hold_up_nobody(full: Server) -> None:
    worker = Path(f"/proc/{worker_of(full)}")
    assert len(full.audit(limit=1_000)) == 1_000  # what a page needs is there
    before = most = resident_bytes(worker)
    for _ in range(600):
        with full.connect() as connection:
            connection.send(connection.request("GET", f"{AUDIT}?limit=501"))
        most = max(most, resident_bytes(worker))
    # One that comes while they are found to have gone may be told to come again.
    start = monotonic()
    until(lambda: full.ask("GET", f"{AUDIT}?limit=1").status == 200, "a reading is served", 2.0)
    assert monotonic() - start < 2.0
    assert max(most, resident_bytes(worker)) - before < 64 * MIB


@pytest.fixture
def large(tmp_path: Path) -> Iterator[Server]:
    """A server whose policy is of 4 MB, with a character of three bytes wherever a piece may end."""
    rules = "".join(f"- {{name: r{number}, description: {'€' * 300}}}\n" for number in range(4_000))
    (tmp_path / "policy.yaml").write_text(f"rules:\n{rules}", encoding="utf-8")
    with Server(tmp_path) as running:
        yield running


def test_large_policies_are_sent_no_faster_than_they_are_read_and_their_readers_hold_up_no_end(
    large: Server,
) -> None:
    worker = Path(f"/proc/{worker_of(large)}")
    source = (large.folder / "policy.yaml").read_text(encoding="utf-8")
    assert large.ask("GET", PUT).json()["source"] == source
    assert large.ask("GET", f"{PUT}/versions/1").json()["source"] == source
    before = resident_bytes(worker)
    with ExitStack() as stuck:
        for number in range(40):
            connection = stuck.enter_context(large.connect())
            path = PUT if number % 2 else f"{PUT}/versions/1"
            connection.send(connection.request("GET", path))
            assert connection.socket.recv(100)
        half = stuck.enter_context(large.connect())
        half.send(b"GET /health HTTP/1.1\r\n")
        assert resident_bytes(worker) - before < 48 * MIB  # whole answers would be 300 MB
        begun = monotonic()
        assert large.stop() == 0
        assert monotonic() - begun < 6.0
        assert large.stderr == ""


def test_large_answers_are_whole_and_leave_the_connection_usable(full: Server) -> None:
    batch = {"actions": [{"action_type": "read", "target": "t" * 60}] * 10_000}
    with full.connect() as connection:
        for _ in range(3):
            answer = connection.ask("POST", EVALUATE, batch)
            assert len(answer.json()) == 10_000
            assert int(answer.headers["content-length"]) == len(answer.body) > MIB
            assert answer.headers["content-type"] == "application/json"


def is_pipe(file: Path) -> bool:
    try:
        return str(file.readlink()).startswith("pipe:")
    except OSError:  # closed meanwhile
        return False
