"""The audit as a chain, over HTTP: an action is one record of two entries; followers; the head."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from aegis import Action, Executor, Result, ResultStatus
from aegis.audit import AuditFilter, AuditReader
from aegis.audit.signing import is_signed_by
from aegis.errors import ConfigError, StoreError
from tests.contract.client import AUDIT, EXECUTE, Client, Reply, app_of, eventually, served

HEAD = "/api/v1/audit/head"


class Gated(Executor):
    """Is busy with an action until its gate is opened."""

    def __init__(self) -> None:
        self.gates: dict[str, asyncio.Event] = {}

    async def execute(self, action: Action) -> Result:
        gate = self.gates[action.target] = asyncio.Event()
        if action.params.get("waits"):
            await gate.wait()
        return Result(action, ResultStatus.SUCCESS, {"did": action.target})


@pytest.fixture
def executor() -> Gated:
    return Gated()


@pytest.fixture
def client(executor: Gated) -> Iterator[Client]:
    with served(app_of(executor=executor)) as client:
        yield client


async def begin(client: Client, executor: Gated, target: str) -> asyncio.Future[Reply]:
    """An execution that has begun and waits."""
    asked = {"type": "read", "target": target, "params": {"waits": True}}
    asking = asyncio.ensure_future(client.request("POST", EXECUTE, asked))

    async def has_begun() -> bool:
        return target in executor.gates

    await eventually(has_begun)
    return asking


def states(records: list[dict[str, Any]]) -> list[tuple[str, int, int, str]]:
    return [
        (record["action_target"], record["id"], record["seq"], record["result_status"])
        for record in records
    ]


# --- two entries -----------------------------------------------------------------------------------


def test_action_is_one_record_from_its_beginning_to_its_end(
    client: Client, executor: Gated
) -> None:
    async def scenario() -> tuple[Any, Any]:
        asking = await begin(client, executor, "a")
        running = (await client.request("GET", AUDIT)).json
        executor.gates["a"].set()
        await asking
        return running, (await client.request("GET", AUDIT)).json

    (running,), (ended,) = client.run(scenario())
    assert (running["id"], running["seq"], running["result_status"]) == (1, 1, "started")
    assert (running["result_data"], running["ended"]) == (None, None)
    assert isinstance(running["worker"], int)
    assert (ended["id"], ended["seq"], ended["result_status"]) == (1, 2, "success")
    assert ended["result_data"] == '{"did":"a"}'
    assert ended["ended"] >= ended["timestamp"] == running["timestamp"]
    assert ended["hash"] != running["hash"]


def test_filter_by_status_is_about_how_it_stands_now(client: Client, executor: Gated) -> None:
    async def scenario() -> list[list[str]]:
        found = []

        async def look() -> None:
            for status in ("started", "success"):
                reply = await client.request("GET", f"{AUDIT}?result_status={status}")
                found.append([record["action_target"] for record in reply.json])

        asking = await begin(client, executor, "a")
        await look()
        executor.gates["a"].set()
        await asking
        await look()
        return found

    assert client.run(scenario()) == [["a"], [], [], ["a"]]


def test_pages_go_by_the_first_link(client: Client, executor: Gated) -> None:
    async def scenario() -> None:
        first = await begin(client, executor, "a")
        await client.request("POST", EXECUTE, {"type": "read", "target": "b"})
        await client.request("POST", EXECUTE, {"type": "delete", "target": "c"})
        executor.gates["a"].set()
        await first

    client.run(scenario())
    assert states(client.records()) == [
        ("a", 1, 5, "success"),
        ("b", 2, 3, "success"),
        ("c", 4, 4, "blocked"),
    ]
    assert states(client.records("?after=1")) == states(client.records())[1:]
    assert states(client.records("?before=2")) == states(client.records())[:1]


# --- followers -----------------------------------------------------------------------------------


def test_follower_sees_each_action_begin_and_end(client: Client, executor: Gated) -> None:
    async def scenario() -> list[list[tuple[str, int, int, str]]]:
        seen: list[list[tuple[str, int, int, str]]] = []
        seq = 0

        async def follow() -> None:
            nonlocal seq
            page = (await client.request("GET", f"{AUDIT}?since_seq={seq}")).json
            seq = page[-1]["seq"] if page else seq
            seen.append(states(page))

        first = await begin(client, executor, "a")
        await follow()
        await client.request("POST", EXECUTE, {"type": "delete", "target": "b"})
        await follow()
        executor.gates["a"].set()
        await first
        await follow()
        await follow()
        return seen

    assert client.run(scenario()) == [
        [("a", 1, 1, "started")],
        [("b", 2, 2, "blocked")],
        [("a", 1, 3, "success")],
        [],
    ]


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("since_seq=0", "bca"),
        ("since_seq=2", "bca"),
        ("since_seq=3", "ca"),
        ("since_seq=4", "a"),
        ("since_seq=5", ""),
        ("since_seq=9223372036854775807", ""),
        ("since_seq=0&limit=2", "bc"),
        ("since_seq=3&limit=1", "c"),
        ("since_seq=0&limit=0", ""),
        ("since_seq=0&result_status=success", "ba"),
        ("since_seq=0&after=1", "bc"),
        ("since_seq=0&before=4", "ba"),
        ("since_seq=0&action_type=unknown", ""),
    ],
)
def test_follower_gets_records_by_their_newest_link(
    client: Client, executor: Gated, query: str, found: str
) -> None:
    async def scenario() -> None:
        first = await begin(client, executor, "a")
        await client.request("POST", EXECUTE, {"type": "read", "target": "b"})
        await client.request("POST", EXECUTE, {"type": "delete", "target": "c"})
        executor.gates["a"].set()
        await first

    client.run(scenario())
    records = client.records(f"?{query}")
    assert "".join(record["action_target"] for record in records) == found


@pytest.mark.parametrize("value", ["-1", "x", "1.5", "9223372036854775808"])
def test_impossible_since_seq_is_refused(client: Client, value: str) -> None:
    reply = client.get(f"{AUDIT}?since_seq={value}")
    assert (reply.status, reply.code) == (400, "invalid_query")


# --- lines ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 500, 1_234])
def test_lines_are_the_records_of_the_list(count: int) -> None:
    with served() as client:
        client.post(EXECUTE, [{"type": "read", "target": f"{n}\n"} for n in range(count)])
        reply = client.get(AUDIT, headers={"accept": "application/x-ndjson"})
        assert reply.status == 200
        assert reply.header("content-type") == "application/x-ndjson"
        lines = reply.body.decode().split("\n")
        assert lines.pop() == ""
        assert [json.loads(line) for line in lines] == client.records()
        assert len(lines) == count


def test_lines_that_are_not_all_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    read = AuditReader.read

    def broken_off(reader: AuditReader, wanted: AuditFilter) -> Iterator[list[dict[str, Any]]]:
        yield next(read(reader, wanted))
        raise StoreError("the disk is gone")

    monkeypatch.setattr(AuditReader, "read", broken_off)
    with served() as client:
        client.post(EXECUTE, {"type": "read"})
        reply = client.get(AUDIT, headers={"accept": "application/x-ndjson"})
    record, end = [json.loads(line) for line in reply.body.splitlines()]
    assert record["action_type"] == "read"
    assert end == {"error": "the disk is gone", "code": "store_unavailable"}


def test_lines_take_the_same_filters() -> None:
    with served() as client:
        client.post(EXECUTE, [{"type": kind} for kind in ("read", "delete", "read")])
        headers = {"accept": "text/html, application/x-ndjson;q=0.9"}
        reply = client.get(f"{AUDIT}?result_status=blocked", headers=headers)
        assert json.loads(reply.body)["action_type"] == "delete"
        assert client.get(f"{AUDIT}?nope=1", headers=headers).status == 400


# --- head ----------------------------------------------------------------------------------------


def test_head_before_the_first_record_is_the_entry_of_the_policy() -> None:
    with served() as client:
        head = client.get(HEAD).json
    assert (head["id"], head["count"]) == (0, 0)
    assert head["hash"] != "0" * 64


def test_head_is_the_newest_link(client: Client) -> None:
    client.post(EXECUTE, [{"type": "delete"}, {"type": "read", "target": "a"}])
    newest = client.records()[-1]
    assert client.get(HEAD).json == {"id": 3, "hash": newest["hash"], "count": 3}


def test_head_is_signed_with_the_key_of_the_server(tmp_path: Path) -> None:
    key = Ed25519PrivateKey.generate()
    path = tmp_path / "audit.key"
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with served(app_of(audit_signing_key=path)) as client:
        client.post(EXECUTE, {"type": "read"})
        head = client.get(HEAD).json
    assert set(head) == {"id", "hash", "count", "signed_at", "signature", "public_key"}
    assert is_signed_by(head, head["public_key"].encode())
    for member in ("id", "hash", "count", "signed_at"):
        assert not is_signed_by(head | {member: "0"}, head["public_key"].encode())
    other = Ed25519PrivateKey.generate().public_key().public_bytes_raw().hex()[:43]
    assert not is_signed_by(head, f"{other}=".encode())


@pytest.mark.one_interface
def test_application_without_its_signing_key_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the signing key"):
        app_of(audit_signing_key=tmp_path / "none")


def test_head_needs_a_key_that_may_read() -> None:
    with served(app_of(api_key="k")) as client:
        assert client.get(HEAD).status == 401
        assert client.get(HEAD, headers={"x-api-key": "k"}).status == 200


def test_head_has_the_headers_of_its_answer_alone(client: Client) -> None:
    reply = client.ask("HEAD", HEAD)
    assert (reply.status, reply.body) == (200, b"")
