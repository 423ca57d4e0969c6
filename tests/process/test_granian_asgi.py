"""`create_app` under granian's ASGI: what of a body in chunks is taken for whole."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from tests.process.server import AsgiServer, free_port

POLICY = "/api/v1/policy"
UNDER_GRANIAN = """\
from granian import Granian
from granian.constants import HTTPModes, Interfaces

from aegis.server import create_app

if __name__ == "__main__":
    print("running on http://127.0.0.1:{port}", flush=True)
    Granian(
        "app", port={port}, interface=Interfaces.ASGI, http=HTTPModes.{http}, log_enabled=False
    ).serve(target_loader=lambda: create_app("policy.yaml", "audit.db"), wrap_loader=False)
"""
CHUNKED_PUT = (
    b"PUT /api/v1/policy HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/yaml\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)
START_OF_A_POLICY = b"b\r\nrules: []\n\n\r\n"


@pytest.fixture(scope="module", params=["http1", "auto"])
def running(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[AsgiServer]:
    source = UNDER_GRANIAN.format(port=free_port(), http=request.param)
    with AsgiServer(tmp_path_factory.mktemp("granian"), source) as server:
        yield server


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("rest", [b"", b"5\r\nru", b"zz\r\n", b"0\r\n"])
def test_policy_whose_chunks_break_off_is_not_put(
    running: AsgiServer, rest: bytes, at_once: bool
) -> None:
    before = running.ask("GET", POLICY).json()["version"]
    with running.connect() as connection:
        if not at_once:
            connection.send(CHUNKED_PUT)
            assert running.ask("GET", "/health").status == 200  # so the head has been read
        connection.send((CHUNKED_PUT if at_once else b"") + START_OF_A_POLICY + rest)
        connection.socket.shutdown(socket.SHUT_WR)
        received = connection.socket.recv(65536)
    assert received == b"" or int(received.split()[1]) == 400
    assert running.ask("GET", POLICY).json()["version"] == before


@pytest.mark.parametrize("end", [b"0\r\n\r\n", b"0\r\nx-trailer: 1\r\n\r\n"])
def test_policy_in_whole_chunks_is_put(running: AsgiServer, end: bytes) -> None:
    with running.connect() as connection:
        connection.send(CHUNKED_PUT + START_OF_A_POLICY + end)
        assert connection.answer("PUT").json()["rule_count"] == 0
