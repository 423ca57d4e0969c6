"""What the kernel gives to handlers and takes from them: requests, responses, the end of a request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from aegis.server.http.kernel import EndHook
from aegis.server.http.messages import Request, Response, not_modified
from aegis.server.http.routing import Route, RouteTable
from tests.contract.client import (
    AUDIT,
    EVALUATE,
    POLICY_PATH,
    VERSIONS,
    app_around,
    app_of,
    routes_of,
    served,
)

ITEM = "/items/{item}/parts/{part}"
HTML = ("content-type", "text/html; charset=utf-8")
TEXT = ("content-type", "text/plain")


def answer(_: Request) -> Response:
    return Response(200, (), b"<p>", HTML)


def probe(handler: Any, max_body_bytes: int = 0) -> Route:
    """A route that anyone may call."""
    return Route("probe", handler, None, max_body_bytes, needs_service=False)


# --- requests ------------------------------------------------------------------------------------


def test_handler_is_given_the_whole_request() -> None:
    seen: list[Request] = []

    def handler(request: Request) -> Response:
        seen.append(request)
        return Response(200, (), b"{}")

    with served(app_around(probe(handler, 100), ITEM)) as client:
        client.post("/items/a b/parts/7?x=1", {"n": 1}, headers={"x-request-id": "mine"})
        client.post("/items/a%20b/parts/7", {"n": 1})
    request = seen[0]
    assert (request.route, request.body, request.request_id) == ("probe", b'{"n": 1}', "mine")
    assert dict(request.parameters) == {"item": "a b", "part": "7"}
    assert request.caller is None
    assert request.headers.get_all("content-type") == ["application/json"]
    assert dict(seen[1].parameters) == {"item": "a b", "part": "7"}


@pytest.mark.parametrize(
    "path", ["/items", "/items/a", "/items/a/parts/", "/items//parts/7", "/items/a/parts/7/", "/x"]
)
def test_template_matches_whole_segments_that_are_not_empty(path: str) -> None:
    with served(app_around(probe(answer), ITEM)) as client:
        assert client.get("/items/a/parts/7").status == 200
        assert client.get(path).status in (401, 403, 404)


def test_path_without_braces_is_found_before_a_template() -> None:
    first, second, third = (Route(name, answer, None) for name in "abc")
    table = RouteTable(
        {("GET", "/items/{item}"): first, ("GET", "/items/new"): second, ("PUT", "/items/x"): third}
    )
    assert table.match("GET", "/items/new")[0] is second
    assert table.match("GET", "/items/old") == (first, {"item": "old"})
    assert table.match("GET", "/items/x")[0].name == "unmatched"


def test_template_answers_what_is_allowed() -> None:
    with served() as client:
        reply = client.ask("DELETE", f"{VERSIONS}/1")
        assert (reply.status, reply.header("allow")) == (405, "GET, HEAD")


def test_routes_have_names() -> None:
    names = {route.name for route in routes_of(app_of()).values()}
    assert {"evaluate", "execute", "audit", "policy", "put_policy", "health"} <= names
    assert all(name.replace("_", "").isalpha() and name.islower() for name in names)


# --- responses -----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("size", [0, 5, 600_000])
@pytest.mark.parametrize("is_streamed", [False, True])
def test_response_has_the_media_type_that_its_handler_names(
    method: str, size: int, is_streamed: bool
) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, size, 100_000):
            yield b"x" * min(100_000, size - start)

    def handler(_: Request) -> Response:
        return Response(200, (("x-a", "b"),), chunks() if is_streamed else b"x" * size, TEXT)

    with served(app_around(probe(handler))) as client:
        reply = client.ask(method, "/probe")
        assert (reply.status, reply.header("content-type")) == (200, "text/plain")
        assert reply.header("x-a") == "b"
        assert reply.body == (b"" if method == "HEAD" else b"x" * size)


def test_response_without_a_body_has_no_media_type() -> None:
    with served(app_around(probe(lambda _: Response(304, (), None)))) as client:
        reply = client.get("/probe")
        assert (reply.status, reply.body, reply.header("content-type")) == (304, b"", None)


# --- conditional requests ------------------------------------------------------------------------

TAGGED = (POLICY_PATH, VERSIONS, f"{VERSIONS}/1")


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("path", TAGGED)
@pytest.mark.parametrize("sent", ['"1"', 'W/"1"', '"0", "1"', "*", ['"7"', '"1"']])
def test_representation_that_the_client_has_is_not_sent_again(
    method: str, path: str, sent: str | list[str]
) -> None:
    with served() as client:
        reply = client.ask(method, path, headers={"if-none-match": sent})
        assert (reply.status, reply.body) == (304, b"")
        whole = client.get(path)
        for name in ("etag", "x-aegis-policy-version"):
            assert reply.header(name) == whole.header(name)


@pytest.mark.parametrize("path", TAGGED)
@pytest.mark.parametrize("sent", ['"2"', "1", "", '"*"', b"\xff"])
def test_representation_that_the_client_has_not_is_sent(path: str, sent: str | bytes) -> None:
    with served() as client:
        reply = client.get(path, headers={"if-none-match": sent})
        assert reply.status == 200
        assert reply.json


def test_tag_of_the_versions_changes_with_each_change() -> None:
    with served() as client:
        before = client.get(VERSIONS).header("etag") or ""
        client.put(POLICY_PATH, {"rules": []})
        reply = client.get(VERSIONS, headers={"if-none-match": before})
        assert (reply.status, len(reply.json)) == (200, 2)


def test_version_that_is_not_there_is_not_found_whatever_the_client_has() -> None:
    with served() as client:
        reply = client.get(f"{VERSIONS}/99", headers={"if-none-match": '"99"'})
        assert reply.status == 404


def test_tags_are_compared_as_a_whole() -> None:
    class Headers:
        def get_all(self, _name: str, /) -> list[str]:
            return ['"11"']

        def __contains__(self, _name: str, /) -> bool:
            return True

    request = Request("probe", b"", Headers())
    assert not_modified(request, '"1"') is None
    assert not_modified(request, '"11"') is not None


# --- the end of a request ------------------------------------------------------------------------


class Ends:
    """Takes what the hook is given."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, int]] = []
        self.durations_ns: list[int] = []

    def __call__(self, route: str, method: str, status: int, duration_ns: int) -> None:
        self.seen.append((route, method, status))
        self.durations_ns.append(duration_ns)


def test_hook_is_called_at_the_end_of_every_request() -> None:
    async def slow(_: Request) -> Response:
        await asyncio.sleep(0.02)
        return Response(200, (), b"{}")

    ends = Ends()
    with served(app_around(probe(slow, 10), on_end=ends)) as client:
        client.post("/probe", body=b"{}")
        client.get("/probe?x")
        client.post("/probe", body=b"x" * 11)
        client.post("/probe", body=b"{}", headers={"x-a": "a" * 70_000})
        client.post("/probe", body=b"{}", headers={"host": "a b"})
        client.get("/nope")
        client.ask("DELETE", "/probe")
    assert ends.seen == [
        ("probe", "POST", 200),
        ("probe", "GET", 200),
        ("probe", "POST", 413),
        ("probe", "POST", 431),
        ("probe", "POST", 400),
        ("unmatched", "GET", 404),
        ("unmatched", "DELETE", 405),
    ]
    assert all(0 < duration_ns < 5e9 for duration_ns in ends.durations_ns)
    assert ends.durations_ns[0] > 0.015e9


def test_hook_is_called_when_a_stream_has_been_sent() -> None:
    ends = Ends()
    seen_before_the_end: list[Any] = []

    async def chunks() -> AsyncIterator[bytes]:
        yield b"x" * 100_000
        seen_before_the_end.extend(ends.seen)
        yield b"x" * 100_000

    route = probe(lambda _: Response(200, (), chunks()))
    with served(app_around(route, on_end=ends)) as client:
        assert len(client.get("/probe").body) == 200_000
    assert seen_before_the_end == []
    assert ends.seen == [("probe", "GET", 200)]


@pytest.mark.parametrize("error", [ZeroDivisionError("a defect"), OSError()])
def test_failure_of_the_hook_is_not_the_clients(error: Exception) -> None:
    def fail(*_: object) -> None:
        raise error

    hook: EndHook = fail
    with served(app_around(probe(answer), on_end=hook)) as client:
        reply = client.get("/probe")
        assert (reply.status, reply.body) == (200, b"<p>")


def test_request_that_is_cancelled_ends_without_a_status() -> None:
    ends = Ends()

    async def wait(_: Request) -> Response:
        await asyncio.Event().wait()
        raise AssertionError

    async def cancelled(client: Any) -> None:
        task = asyncio.ensure_future(client.request("POST", "/probe", body=b"{}"))
        await asyncio.sleep(0.02)
        task.cancel()
        await asyncio.wait([task])

    with served(app_around(probe(wait, 10), on_end=ends)) as client:
        client.run(cancelled(client))
    assert ends.seen == [("probe", "POST", 0)]


def test_audit_in_lines_and_as_json_have_their_types() -> None:
    with served() as client:
        client.post(EVALUATE, {"action_type": "read"})
        lines = client.get(AUDIT, headers={"accept": "application/x-ndjson"})
        assert lines.header("content-type") == "application/x-ndjson"
        assert client.get(AUDIT).header("content-type") == "application/json"
