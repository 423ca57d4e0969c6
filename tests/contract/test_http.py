"""What holds on every route: paths, methods, headers, limits, and refusals that leave nothing."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from aegis import __version__
from aegis.config import Settings
from aegis.policy.compiled_cache import CompiledFiles
from aegis.server.composition import build_app
from aegis.server.http.app import App
from aegis.server.http.messages import Request, Response
from aegis.server.http.routing import Route
from tests.contract.client import (
    AUDIT,
    EVALUATE,
    EXECUTE,
    POLICY,
    POLICY_PATH,
    Client,
    StartupFailed,
    app_around,
    app_of,
    living,
    routes_of,
    served,
)

MIB = 1024 * 1024
READ = {"action_type": "read", "target": "t"}
GETS = sorted(path for method, path in routes_of(app_of()) if method == "GET")
PATHS = sorted({path for _, path in routes_of(app_of())})
POSTS = (EVALUATE, EXECUTE)
BODIES = [("POST", EVALUATE), ("POST", EXECUTE), ("PUT", POLICY_PATH)]


def app_with(**settings: Any) -> App:
    """An application of `POLICY` with other limits."""
    return build_app(
        Settings(audit_db=":memory:", **settings), file=CompiledFiles(":memory:").load(POLICY)
    )


def padded(size: int) -> bytes:
    """A harmless action of so many bytes."""
    return json.dumps(READ).encode().ljust(size)


def nested(levels: int) -> bytes:
    """A harmless action that is nested this deep."""
    inner = levels - 2  # the action and its params are two of them
    return b'{"action_type":"read","params":{"a":%b}}' % (b"[" * inner + b"]" * inner)


def assert_untouched(client: Client) -> None:
    """Nothing was stored, and the first policy is in force."""
    assert client.records() == []
    assert client.get(POLICY_PATH).json["version"] == 1


# --- paths and methods ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/nope",
        "/health/",
        "/HEALTH",
        f"{EVALUATE}/",
        "/api/v1",
        "//health",
        "/health/../health",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE"])
def test_unknown_path_is_not_found(method: str, path: str) -> None:
    with served() as client:
        reply = client.ask(method, path)
        assert (reply.status, reply.code) == (404, "not_found")


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", ["PATCH", "DELETE", "OPTIONS", "get", "TRACE"])
def test_unknown_method_is_told_what_is_allowed(method: str, path: str) -> None:
    with served() as client:
        reply = client.ask(method, path)
        assert (reply.status, reply.code) == (405, "method_not_allowed")
        known = {method for method, of in routes_of(app_of()) if of == path}
        assert set((reply.header("allow") or "").split(", ")) == known


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", EVALUATE, "POST"),
        ("PUT", EXECUTE, "POST"),
        ("POST", AUDIT, "GET, HEAD"),
        ("POST", POLICY_PATH, "GET, HEAD, PUT"),
        ("HEAD", EVALUATE, "POST"),
    ],
)
def test_allow_names_each_method_of_the_path(method: str, path: str, allowed: str) -> None:
    with served() as client:
        assert client.ask(method, path).header("allow") == allowed


@pytest.mark.parametrize("path", GETS)
def test_head_answers_the_headers_of_get_without_its_body(path: str) -> None:
    with served() as client:
        client.post(EXECUTE, READ)
        headers = {"x-request-id": "the-same"}
        get = client.get(path, headers=headers)
        head = client.ask("HEAD", path, headers=headers)
        assert (head.status, head.body) == (get.status, b"")
        assert sorted(head.headers) == sorted(get.headers)


def test_head_of_a_streamed_audit_answers_the_headers_of_get_without_its_body() -> None:
    with served() as client:
        client.post(EXECUTE, [READ] * 1_500)
        headers = {"x-request-id": "the-same"}
        get = client.get(AUDIT, headers=headers)
        head = client.ask("HEAD", AUDIT, headers=headers)
        assert get.parts > 1
        assert (head.status, head.body) == (get.status, b"")
        assert sorted(head.headers) == sorted(get.headers)


def test_head_of_a_refusal_has_no_body() -> None:
    with served() as client:
        reply = client.ask("HEAD", f"{AUDIT}?nope=1")
        assert (reply.status, reply.body) == (400, b"")


def test_health_says_the_release() -> None:
    with served() as client:
        assert client.get("/health").json == {"status": "ok", "version": __version__}


@pytest.mark.parametrize("path", ["/health/live", "/health/ready"])
def test_health_of_an_open_server_is_ok(path: str) -> None:
    with served() as client:
        reply = client.get(path)
        assert (reply.status, reply.json["status"]) == (200, "ok")


# --- headers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("sent", ["abc-123", "x", "a" * 128, "!#$%&'*+,-./:;<=>?@[]^_`{|}~"])
def test_sane_request_id_is_echoed(sent: str) -> None:
    with served() as client:
        assert client.get("/health", headers={"x-request-id": sent}).header("x-request-id") == sent


@pytest.mark.parametrize(
    "sent", [b"", b"a b", b"a" * 129, b"a\tb", "ä".encode(), b"\xff", b"a\x00"]
)
def test_other_request_id_is_replaced(sent: bytes) -> None:
    with served() as client:
        made = client.get("/health", headers={"x-request-id": sent}).header("x-request-id")
        assert made is not None
        assert re.fullmatch(r"[0-9a-f-]{8,}", made)


def test_each_request_gets_an_id_of_its_own() -> None:
    with served() as client:
        ids = {client.get("/health").header("x-request-id") for _ in range(5_000)}
        assert len(ids) == 5_000


@pytest.mark.parametrize("path", ["/nope", f"{AUDIT}?nope=1", EVALUATE])
def test_refusal_carries_the_request_id(path: str) -> None:
    with served() as client:
        reply = client.get(path, headers={"x-request-id": "mine"})
        assert reply.status >= 400
        assert reply.header("x-request-id") == "mine"


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize("body", [READ, [READ], [], {"actions": [READ]}])
def test_decisions_carry_the_policy_version(path: str, body: Any) -> None:
    with served() as client:
        assert client.post(path, body).header("x-aegis-policy-version") == "1"
        client.put(POLICY_PATH, {"rules": []})
        assert client.post(path, body).header("x-aegis-policy-version") == "2"


@pytest.mark.parametrize("path", GETS)
def test_answers_are_json(path: str) -> None:
    with served() as client:
        assert client.get(path).header("content-type") == "application/json"


def test_no_answer_has_cors_headers() -> None:
    with served() as client:
        headers = {"origin": "http://127.0.0.1:8000", "access-control-request-method": "POST"}
        replies = [
            client.ask("OPTIONS", EVALUATE, headers=headers),
            client.post(EVALUATE, READ, headers=headers),
        ]
        names = [name for reply in replies for name, _ in reply.headers]
        assert not [name for name in names if name.startswith("access-control")]


# --- refusals ------------------------------------------------------------------------------------

REFUSED_BODIES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "invalid_json"),
    "blank": (b" \n", "invalid_json"),
    "no JSON": (b"{action_type: read}", "invalid_json"),
    "cut off": (b'{"action_type":"read"', "invalid_json"),
    "more behind": (b'{"action_type":"read"}{}', "invalid_json"),
    "NaN": (b'{"action_type":"read","params":{"n":NaN}}', "invalid_json"),
    "Infinity": (b'{"action_type":"read","params":{"n":-Infinity}}', "invalid_json"),
    "half of a surrogate pair": (rb'{"action_type":"read","target":"\ud800"}', "invalid_json"),
    "half of a pair in a key": (rb'{"action_type":"read","\udc00":1}', "invalid_json"),
    "half of a pair in UTF-8": (b'{"action_type":"read","target":"\xed\xa0\x80"}', "invalid_json"),
    "no UTF-8": (b'{"action_type":"read","target":"\xff"}', "invalid_json"),
    "overlong UTF-8": (b'{"action_type":"read","target":"\xc0\xaf"}', "invalid_json"),
    "UTF-16": ('{"action_type":"read"}'.encode("utf-16-le"), "invalid_json"),
    "control character": (b'{"action_type":"read\n"}', "invalid_json"),
    "a number": (b"1", "invalid_body"),
    "null": (b"null", "invalid_body"),
    "text": (b'"read"', "invalid_body"),
    "no action": (b"{}", "invalid_body"),
}


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize("kind", REFUSED_BODIES)
def test_impossible_body_is_refused_and_leaves_nothing(kind: str, path: str) -> None:
    body, code = REFUSED_BODIES[kind]
    with served() as client:
        reply = client.post(path, body=body)
        assert (reply.status, reply.code) == (400, code)
        assert set(reply.json) == {"error", "code"}
        assert_untouched(client)


@pytest.mark.parametrize("path", POSTS)
def test_nesting_of_64_is_taken(path: str) -> None:
    with served() as client:
        assert client.post(path, body=nested(64)).status == 200


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize("levels", [65, 66, 500, 100_000])
def test_deeper_nesting_is_refused_and_leaves_nothing(path: str, levels: int) -> None:
    with served() as client:
        reply = client.post(path, body=nested(levels))
        assert (reply.status, reply.json["code"][:8]) == (400, "invalid_")
        assert_untouched(client)


def test_brackets_side_by_side_are_not_nesting() -> None:
    body = b'{"action_type":"read","params":{"a":[%b]}}' % b",".join([b"{}"] * 1_000)
    with served() as client:
        assert client.post(EVALUATE, body=body).status == 200


def test_nesting_limit_is_an_option() -> None:
    with served(app_with(max_nesting=3)) as client:
        assert client.post(EVALUATE, body=nested(3)).status == 200
        assert client.post(EVALUATE, body=nested(4)).status == 400


@pytest.mark.parametrize("path", POSTS)
def test_batch_over_its_limit_is_refused_and_leaves_nothing(path: str) -> None:
    with served(app_with(max_batch=3)) as client:
        for body in ([READ] * 4, {"actions": [READ] * 4}):
            reply = client.post(path, body)
            assert (reply.status, reply.code) == (400, "invalid_body")
        assert_untouched(client)
        assert len(client.post(path, [READ] * 3).json) == 3


def test_batch_of_ten_thousand_is_the_largest() -> None:
    with served() as client:
        assert len(client.post(EVALUATE, [{"type": "read"}] * 10_000).json) == 10_000
        assert client.post(EVALUATE, [{"type": "read"}] * 10_001).status == 400


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize(
    ("wrong", "place"),
    [
        ({"action_type": "read", "target": 5}, "actions[3].target"),
        ({"action_type": "read", "params": []}, "actions[3].params"),
        ({"action_type": ""}, "actions[3].action_type"),
        ({}, "actions[3].action_type"),
        ({"action_type": "read", "agent_id": 1}, "actions[3].agent_id"),
        ({"action_type": "read", "chain_depth": "1"}, "actions[3].chain_depth"),
        (None, "actions[3]"),
        ([], "actions[3]"),
    ],
)
def test_batch_is_validated_whole_and_says_where(path: str, wrong: Any, place: str) -> None:
    batch = [READ, READ, READ, wrong, READ]
    with served() as client:
        for body in (batch, {"actions": batch}):
            reply = client.post(path, body)
            assert (reply.status, reply.code) == (400, "invalid_body")
            assert f"`{place}`" in reply.json["error"]
        assert_untouched(client)


def test_defect_is_an_error_without_a_trace_of_it() -> None:
    def fail(_: Request) -> Response:
        raise ZeroDivisionError("the inside of the server")

    with served(app_around(Route("probe", fail, None, needs_service=False))) as client:
        reply = client.get("/probe", headers={"x-request-id": "mine"})
        assert (reply.status, reply.code) == (500, "internal_error")
        assert reply.header("x-request-id") == "mine"
        assert b"inside" not in reply.body
        assert b"ZeroDivision" not in reply.body


# --- sizes and types -----------------------------------------------------------------------------


@pytest.mark.parametrize("path", POSTS)
def test_body_of_one_mebibyte_is_taken(path: str) -> None:
    with served() as client:
        assert client.post(path, body=padded(MIB)).status == 200


@pytest.mark.parametrize(
    ("method", "path", "limit"),
    [("POST", EVALUATE, MIB), ("POST", EXECUTE, MIB), ("PUT", POLICY_PATH, 16 * MIB)],
)
@pytest.mark.parametrize("over", [1, 10**8, 10**30])
def test_declared_size_over_the_limit_is_refused_unread(
    method: str, path: str, limit: int, over: int
) -> None:
    with served() as client:
        headers = {"content-length": str(limit + over)}
        reply = client.ask(method, path, chunks=[b"{}"], headers=headers)
        assert (reply.status, reply.code) == (413, "body_too_large")
        assert reply.received == 0
        assert_untouched(client)


@pytest.mark.parametrize("length", ["-1", "+5", "1e3", "0x10", "five", "5, 5", " 5"])
def test_impossible_declared_size_is_refused_unread(length: str) -> None:
    with served() as client:
        reply = client.post(EXECUTE, chunks=[padded(100)], headers={"content-length": length})
        assert (reply.status, reply.code) == (400, "invalid_body")
        assert reply.received == 0
        assert_untouched(client)


@pytest.mark.parametrize("path", POSTS)
def test_chunks_are_counted_and_not_read_beyond_the_limit(path: str) -> None:
    chunk = b" " * (64 * 1024)
    with served() as client:
        reply = client.post(path, chunks=[chunk] * 100)
        assert (reply.status, reply.code) == (413, "body_too_large")
        assert reply.received == 17
        assert_untouched(client)


def test_one_chunk_over_the_limit_is_refused() -> None:
    with served() as client:
        assert client.post(EXECUTE, chunks=[padded(MIB + 1)]).status == 413
        assert client.post(EXECUTE, chunks=[padded(MIB), b" "]).status == 413
        assert_untouched(client)


def test_declared_size_is_not_believed() -> None:
    with served() as client:
        headers = {"content-length": "10"}
        assert client.post(EXECUTE, chunks=[padded(MIB + 1)], headers=headers).status == 413
        assert_untouched(client)


def test_body_in_many_chunks_is_one_body() -> None:
    body = json.dumps(READ).encode()
    with served() as client:
        reply = client.post(EVALUATE, chunks=[bytes([byte]) for byte in body] + [b""])
        assert reply.json["matched_rule"] == "reads"


def test_body_limit_is_an_option() -> None:
    with served(app_with(max_body_bytes=100)) as client:
        assert client.post(EVALUATE, body=padded(100)).status == 200
        reply = client.post(EVALUATE, body=padded(101))
        assert (reply.status, reply.received) == (413, 0)
        assert "--max-body-bytes" in reply.json["error"]


@pytest.mark.parametrize(("method", "path"), BODIES)
@pytest.mark.parametrize(
    "declared",
    [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/jsonp",
        "application/json, text/plain",
        "application/json; charset=latin-1",
        "text/html; a=application/json",
        "json",
    ],
)
def test_body_declared_as_something_else_is_refused_unread(
    method: str, path: str, declared: str
) -> None:
    with served() as client:
        reply = client.ask(method, path, body=b"{}", headers={"content-type": declared})
        assert (reply.status, reply.code) == (415, "unsupported_media_type")
        assert reply.received == 0
        assert_untouched(client)


@pytest.mark.parametrize("path", POSTS)
def test_yaml_is_no_type_for_an_action(path: str) -> None:
    with served() as client:
        headers = {"content-type": "application/yaml"}
        assert client.post(path, body=padded(50), headers=headers).status == 415


@pytest.mark.parametrize(
    "declared",
    [
        None,
        "application/json",
        "Application/JSON",
        "application/json; charset=utf-8",
        'application/json;charset="UTF-8"',
        "application/vnd.api+json",
    ],
)
def test_body_declared_as_json_or_not_at_all_is_taken(declared: str | None) -> None:
    headers = {} if declared is None else {"content-type": declared}
    with served() as client:
        reply = client.post(EVALUATE, body=padded(50), headers=headers)
        assert reply.json["matched_rule"] == "reads"


@pytest.mark.parametrize(
    ("method", "path"),
    sorted(route for route in routes_of(app_of()) if route[0] not in ("GET", "HEAD")),
)
@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "text/plain"},
        {"content-type": "multipart/form-data; boundary=x"},
        {"content-type": ["application/json", "text/plain"]},
        {"content-type": "application/json", "content-encoding": "gzip"},
        {"content-encoding": "gzip"},
        {"content-encoding": "identity, gzip"},
        {"content-encoding": b"\xff"},
    ],
    ids=str,
)
@pytest.mark.parametrize("body", [None, b"{}"])
def test_every_route_that_changes_something_refuses_what_it_does_not_take_unread(
    method: str, path: str, headers: dict[str, Any], body: bytes | None
) -> None:
    with served() as client:
        reply = client.ask(method, path, body=body, headers=headers)
        assert (reply.status, reply.code) == (415, "unsupported_media_type")
        assert reply.received == 0
        is_coding = "content-encoding" in headers
        assert reply.header("accept-encoding") == ("identity" if is_coding else None)
        assert_untouched(client)


@pytest.mark.parametrize("coding", ["identity", "Identity", ""])
def test_body_that_is_not_encoded_may_say_so(coding: str) -> None:
    with served() as client:
        headers = {"content-encoding": coding}
        assert client.post(EVALUATE, READ, headers=headers).status == 200


@pytest.mark.parametrize("route", [("GET", "/health"), ("POST", EVALUATE)])
def test_headers_over_their_limit_are_refused(route: tuple[str, str]) -> None:
    value = READ if route[0] == "POST" else None
    with served() as client:
        assert client.ask(*route, value, headers={"x-a": "a" * 60_000}).status == 200
        for headers in ({"x-a": "a" * 70_000}, {f"x-{n}": "a" * 1_000 for n in range(70)}):
            reply = client.ask(*route, value, headers=headers)
            assert (reply.status, reply.code, reply.received) == (431, "headers_too_large", 0)


# --- bodies that do not come ---------------------------------------------------------------------


@pytest.mark.parametrize(("method", "path"), BODIES)
def test_body_that_never_comes_is_timed_out(method: str, path: str) -> None:
    with served(app_with(body_timeout=0.05)) as client:
        reply = client.ask(method, path, chunks=[b'{"action_type":'], then="silence")
        assert (reply.status, reply.code) == (408, "body_timeout")
        assert reply.header("connection") == "close"
        assert_untouched(client)


def test_body_whose_first_byte_never_comes_is_timed_out() -> None:
    with served(app_with(body_timeout=0.05)) as client:
        assert client.post(EXECUTE, chunks=[], then="silence").status == 408


def test_timed_out_request_ends_alone() -> None:
    async def scenario(client: Client) -> list[int]:
        silent = client.request("POST", EXECUTE, chunks=[], then="silence")
        quick = client.request("POST", EXECUTE, READ)
        return [reply.status for reply in await asyncio.gather(silent, quick)]

    with served(app_with(body_timeout=0.05)) as client:
        assert client.run(scenario(client)) == [408, 200]
        assert client.post(EXECUTE, READ).status == 200


@pytest.mark.parametrize(
    ("method", "largest", "made"), [("GET", 0, 0), ("HEAD", 0, 0), ("POST", 0, 1), ("POST", 100, 1)]
)
def test_only_an_answer_that_may_change_something_is_made_for_a_client_that_has_gone(
    method: str, largest: int, made: int
) -> None:
    count = 0

    async def slow(_: Request) -> Response:
        nonlocal count
        await asyncio.sleep(0.05)
        count += 1
        return Response(200, (), b"{}")

    with served(app_around(Route("probe", slow, None, largest, needs_service=False))) as client:
        client.ask(method, "/probe", body=b"{}" if largest else None, then="leave")
        client.run(asyncio.sleep(0.1))
        assert count == made


def test_request_may_take_longer_than_its_body() -> None:
    is_late = asyncio.Event()

    async def slow(_: Request) -> Response:
        await is_late.wait()
        return Response(200, (), b"{}")

    async def scenario(client: Client) -> list[int]:
        answer = asyncio.ensure_future(client.request("POST", "/probe", {}))
        silent = await client.request("POST", "/probe", chunks=[], then="silence")
        is_late.set()
        return [silent.status, (await answer).status]

    route = Route("probe", slow, None, 100, needs_service=False)
    with served(app_around(route, body_timeout_s=0.05)) as client:
        assert client.run(scenario(client)) == [408, 200]


@pytest.mark.parametrize(("method", "path"), BODIES)
@pytest.mark.parametrize("chunks", [[], [b""], [padded(100)]])
def test_body_that_breaks_off_is_refused_and_leaves_nothing(
    method: str, path: str, chunks: list[bytes]
) -> None:
    with served() as client:
        reply = client.ask(method, path, chunks=chunks, then="disconnect")
        assert (reply.status, reply.code) == (400, "invalid_body")
        assert_untouched(client)


# --- the application and its server --------------------------------------------------------------


@pytest.mark.one_interface
def test_websocket_is_refused() -> None:
    sent: list[Mapping[str, Any]] = []

    async def receive() -> Mapping[str, Any]:
        return {"type": "websocket.connect"}

    async def send(message: Mapping[str, Any]) -> None:
        sent.append(message)

    app = app_of()
    asyncio.run(app({"type": "websocket", "path": "/", "headers": []}, receive, send))
    assert [message["type"] for message in sent] == ["websocket.close"]


@pytest.mark.parametrize("path", GETS)
def test_without_a_lifespan_the_first_request_opens(path: str) -> None:
    with served(lifespan=False) as client:
        assert client.get(path).status == 200


def test_without_a_lifespan_many_first_requests_open_once() -> None:
    async def scenario(client: Client) -> None:
        await asyncio.gather(*[client.request("POST", EXECUTE, READ) for _ in range(50)])

    with served(lifespan=False) as client:
        client.run(scenario(client))
        assert len(client.records()) == 50
        assert client.get(POLICY_PATH).json["version"] == 1


def test_stopped_server_is_not_ready_but_lives() -> None:
    app = app_of()
    with served(app, lifespan=False) as client:

        async def life() -> None:
            async with living(app):
                pass

        client.run(life())
        for path in ("/health/ready", POLICY_PATH, AUDIT):
            reply = client.get(path)
            assert (reply.status, reply.code) == (503, "not_ready")
        assert client.post(EXECUTE, READ).status == 503
        assert client.get("/health/live").status == 200


@pytest.mark.one_interface
@pytest.mark.parametrize("root_path", ["/aegis", "/a/b"])
def test_mounted_application_answers_below_its_root(root_path: str) -> None:
    with served(root_path=root_path) as client:
        assert client.post(EVALUATE, READ).json["matched_rule"] == "reads"
        assert client.ask("HEAD", "/health").status == 200
        assert client.get("/nope").status == 404
        assert client.get(EVALUATE).header("allow") == "POST"


def test_many_requests_at_once_get_their_own_answers() -> None:
    async def scenario(client: Client) -> list[Any]:
        asked = [
            client.request("POST", EVALUATE, {"type": "read", "target": str(n)}) for n in range(99)
        ]
        return [reply.json["target"] for reply in await asyncio.gather(*asked)]

    with served() as client:
        assert client.run(scenario(client)) == [str(n) for n in range(99)]


@pytest.mark.parametrize("content", [b"no database at all, but long enough to be taken for one"])
def test_server_does_not_start_with_a_file_that_is_no_database(
    content: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "audit.db"
    path.write_bytes(content)
    with pytest.raises(StartupFailed, match="not a SQLite database"), served(app_at(path)):
        pass
    assert path.read_bytes() == content


def test_server_does_not_start_with_a_database_in_a_folder_that_is_not_there(
    tmp_path: Path,
) -> None:
    with pytest.raises(StartupFailed), served(app_at(tmp_path / "missing" / "audit.db")):
        pass


def app_at(path: Path) -> App:
    """An application of `POLICY` over a database file."""
    return app_of(audit_db_path=path)


def test_what_was_recorded_is_there_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "audit.db"
    with served(app_at(path)) as client:
        client.post(EXECUTE, [READ, READ])
        before = client.records()
    with served(app_at(path)) as client:
        assert client.records() == before


def test_two_applications_over_one_file_share_records_and_policies(tmp_path: Path) -> None:
    path = tmp_path / "audit.db"
    with served(app_at(path)) as one, served(app_at(path)) as other:
        one.post(EXECUTE, READ)
        other.post(EXECUTE, READ)
        assert len(one.records()) == len(other.records()) == 2
        other.put(POLICY_PATH, {"rules": []})
        assert one.post(EVALUATE, READ).json["matched_rule"] == "<default>"
        assert one.get(POLICY_PATH).json["version"] == 2
