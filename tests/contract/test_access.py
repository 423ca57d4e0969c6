"""Who may call: without keys only this machine and no web page, with keys whoever has one."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from aegis.auth.keys_file import add_key, change_keys
from aegis.auth.roles import Role
from aegis.errors import ConfigError
from tests.contract.client import (
    AUDIT,
    EVALUATE,
    EXECUTE,
    HOST,
    POLICY_PATH,
    RELOAD,
    REMOTE,
    ROLLBACK,
    VERSIONS,
    Client,
    app_of,
    app_of_file,
    routes_of,
    served,
)

READ = {"action_type": "read"}
API_KEY = "the-api-key"
ADMIN_KEY = "the-admin-key"

ROUTES = sorted({of for of in routes_of(app_of()) if of[0] != "HEAD"})
BODIES: dict[tuple[str, str], Any] = {
    ("POST", EVALUATE): READ,
    ("POST", EXECUTE): READ,
    ("PUT", POLICY_PATH): {"rules": []},
    ("POST", ROLLBACK): {"version": 1},
}

HEALTH = ("/health", "/health/live", "/health/ready", "/healthz", "/readyz", "/api/v1/health")
FORWARDING = (
    "forwarded",
    "x-real-ip",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-forwarded-anything",
)

ROLES = ("agent", "auditor", "operator", "admin")
CALLERS = (None, "unknown", API_KEY, ADMIN_KEY, *ROLES)
OPEN = (200, 200, 200, 200, 200, 200, 200, 200)
TO_DECIDE = (401, 401, 200, 200, 200, 403, 403, 200)
TO_READ = (401, 401, 200, 200, 403, 200, 200, 200)
TO_CHANGE = (401, 401, 403, 200, 403, 403, 200, 200)
WITH_ANY_KEY = (401, 401, 200, 200, 200, 200, 200, 200)
MATRIX = {
    **{("GET", path): OPEN for path in HEALTH},
    ("GET", "/openapi.json"): WITH_ANY_KEY,
    ("POST", EVALUATE): TO_DECIDE,
    ("POST", EXECUTE): TO_DECIDE,
    ("GET", AUDIT): TO_READ,
    ("GET", f"{AUDIT}/head"): TO_READ,
    ("GET", POLICY_PATH): TO_READ,
    ("PUT", POLICY_PATH): TO_CHANGE,
    ("GET", VERSIONS): TO_READ,
    ("GET", f"{VERSIONS}/{{version}}"): TO_READ,
    ("POST", ROLLBACK): TO_CHANGE,
    ("POST", RELOAD): TO_CHANGE,
}
"""What each route answers to each of `CALLERS`; a role stands for a key of the keys file."""


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A server with the keys of the environment and one of each role, named as the role."""
    folder = tmp_path_factory.mktemp("keys")
    path = folder / "keys.yaml"
    for role in ROLES:
        change_keys(str(path), partial(_with_role, role))
    with served(
        app_of_file(folder, api_key=API_KEY, admin_key=ADMIN_KEY, keys_path=path), address=REMOTE
    ) as client:
        yield client


def _with_role(role: str, source: str) -> str:
    return add_key(source, "keys.yaml", role, Role(role), role, [], "")


def with_key(key: str | bytes | None) -> dict[str, str | bytes]:
    return {} if key is None else {"x-api-key": key}


# --- every route, every caller -------------------------------------------------------------------


@pytest.mark.one_interface
def test_matrix_has_a_row_for_each_route() -> None:
    assert sorted(MATRIX) == ROUTES


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(("column", "key"), list(enumerate(CALLERS)), ids=str)
def test_route_answers_each_role_as_the_matrix_says(
    keyed: Client, route: tuple[str, str], column: int, key: str | None
) -> None:
    reply = keyed.ask(*route, BODIES.get(route), headers=with_key(key))
    assert reply.status == MATRIX[route][column]


@pytest.mark.parametrize("path", sorted(path for method, path in ROUTES if method == "GET"))
@pytest.mark.parametrize(("column", "key"), list(enumerate(CALLERS)), ids=str)
def test_head_needs_what_get_needs(keyed: Client, path: str, column: int, key: str | None) -> None:
    reply = keyed.ask("HEAD", path, headers=with_key(key))
    assert reply.status == MATRIX["GET", path][column]


@pytest.mark.parametrize(("column", "key"), list(enumerate(CALLERS)), ids=str)
@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nope", 404), ("DELETE", POLICY_PATH, 405), ("GET", EVALUATE, 405)],
)
def test_what_there_is_not_is_told_to_every_key(
    keyed: Client, method: str, path: str, status: int, column: int, key: str | None
) -> None:
    reply = keyed.ask(method, path, headers=with_key(key))
    assert reply.status == (401 if column < 2 else status)


@pytest.mark.parametrize("route", ROUTES)
def test_without_keys_this_machine_may_do_everything(
    route: tuple[str, str], tmp_path: Path
) -> None:
    with served(app_of_file(tmp_path)) as client:
        assert client.ask(*route, BODIES.get(route)).status == 200


FROM_ELSEWHERE: list[dict[str, Any]] = [
    {"address": REMOTE},
    {"headers": {"host": "evil.example"}},
    {"headers": {"origin": "http://evil.example"}},
    *({"headers": {name: "203.0.113.7"}} for name in FORWARDING),
    {"headers": {"x-forwarded-for": b"\xff"}},
    {"headers": {"x-forwarded-for": ""}},
]


@pytest.mark.parametrize("details", FROM_ELSEWHERE, ids=str)
def test_without_keys_no_route_is_open_to_others(details: dict[str, Any]) -> None:
    with served() as client:
        for route in ROUTES:
            if MATRIX[route] != OPEN:
                reply = client.ask(*route, BODIES.get(route), **details)
                assert (reply.status, reply.received) == (403, 0)


@pytest.mark.parametrize("details", FROM_ELSEWHERE, ids=str)
@pytest.mark.parametrize("path", HEALTH)
def test_probes_may_ask_for_health_from_anywhere_and_by_any_name(
    path: str, details: dict[str, Any]
) -> None:
    with served() as client:
        assert client.get(path, **details).status == 200
        assert client.ask("HEAD", path, **details).status == 200


@pytest.mark.parametrize("name", FORWARDING)
def test_forwarding_headers_count_only_where_locality_decides(name: str) -> None:
    headers = {name: "for=203.0.113.7", "x-api-key": API_KEY}
    for app in (app_of(allow_unauthenticated=True), app_of(api_key=API_KEY)):
        with served(app) as client:
            assert client.post(EVALUATE, READ, headers=headers).status == 200


def test_refusal_of_a_forwarded_request_says_what_to_do() -> None:
    with served() as client:
        reply = client.post(EVALUATE, READ, headers={"X-Forwarded-Proto": "https"})
        assert reply.code == "not_local"
        assert "x-forwarded-proto" in reply.json["error"]
        assert "AEGIS_API_KEY" in reply.json["error"]


# --- keys ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        {"x-api-key": API_KEY},
        {"authorization": f"Bearer {API_KEY}"},
        {"authorization": f"bearer {API_KEY}"},
        {"authorization": f"BEARER  {API_KEY} "},
    ],
)
def test_key_is_taken_from_either_header(headers: dict[str, str]) -> None:
    with served(app_of(api_key=API_KEY)) as client:
        assert client.post(EVALUATE, READ, headers=headers).status == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"x-api-key": ""},
        {"x-api-key": "the-api-ke"},
        {"x-api-key": "the-api-key2"},
        {"x-api-key": "THE-API-KEY"},
        {"x-api-key": b"\xff\xfe"},
        {"authorization": API_KEY},
        {"authorization": f"Basic {API_KEY}"},
        {"authorization": "Bearer"},
        {"authorization": f"Bearer{API_KEY}"},
        {"cookie": f"x-api-key={API_KEY}"},
    ],
)
def test_without_its_key_nothing_is_done(headers: dict[str, str | bytes]) -> None:
    with served(app_of(api_key=API_KEY)) as client:
        reply = client.post(EXECUTE, READ, headers=headers)
        assert (reply.status, reply.code) == (401, "unauthorized")
        assert reply.header("www-authenticate") == "Bearer"
        client.headers = {"host": HOST, "x-api-key": API_KEY}
        assert client.records() == []


def test_key_in_the_query_is_no_key() -> None:
    with served(app_of(api_key=API_KEY)) as client:
        assert client.post(f"{EVALUATE}?api_key={API_KEY}", READ).status == 401


@pytest.mark.parametrize("route", sorted(BODIES))
def test_body_of_an_unknown_caller_is_not_read(route: tuple[str, str]) -> None:
    with served(app_of(api_key=API_KEY)) as client:
        reply = client.ask(*route, BODIES[route])
        assert (reply.status, reply.received) == (401, 0)


@pytest.mark.parametrize(
    "headers",
    [
        {"content-length": "999999999999"},
        {"content-type": "text/plain"},
        {"content-length": "many"},
    ],
)
def test_unknown_caller_learns_nothing_but_that(headers: dict[str, str]) -> None:
    with served(app_of(api_key=API_KEY)) as client:
        assert client.post(EVALUATE, chunks=[b"{}"], headers=headers).status == 401


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "OPTIONS"])
def test_unknown_caller_does_not_learn_which_paths_there_are(method: str) -> None:
    with served(app_of(api_key=API_KEY)) as client:
        for path in ("/nope", "/", f"{EVALUATE}/"):
            assert client.ask(method, path).status == 401
            assert client.ask(method, path, headers=with_key(API_KEY)).status == 404


def test_unknown_caller_does_not_learn_which_methods_there_are() -> None:
    with served(app_of(api_key=API_KEY)) as client:
        assert client.ask("DELETE", POLICY_PATH).status == 401
        assert client.ask("DELETE", POLICY_PATH, headers=with_key(API_KEY)).status == 405


def test_api_key_may_not_put_a_policy_where_there_is_an_admin_key() -> None:
    with served(app_of(api_key=API_KEY, admin_key=ADMIN_KEY)) as client:
        reply = client.put(POLICY_PATH, {"rules": []}, headers=with_key(API_KEY))
        assert (reply.status, reply.code, reply.received) == (403, "forbidden", 0)
        assert client.get(POLICY_PATH, headers=with_key(API_KEY)).json["version"] == 1


def test_api_key_is_the_admin_key_where_there_is_no_other() -> None:
    with served(app_of(api_key=API_KEY)) as client:
        assert client.put(POLICY_PATH, {"rules": []}, headers=with_key(API_KEY)).status == 200


def test_admin_key_alone_is_asked_for_everywhere() -> None:
    with served(app_of(admin_key=ADMIN_KEY)) as client:
        assert client.post(EVALUATE, READ).status == 401
        assert client.post(EVALUATE, READ, headers=with_key(ADMIN_KEY)).status == 200
        assert client.put(POLICY_PATH, {"rules": []}, headers=with_key(ADMIN_KEY)).status == 200


def test_one_key_for_both_roles_is_the_admin_key() -> None:
    with served(app_of(api_key=API_KEY, admin_key=API_KEY)) as client:
        assert client.put(POLICY_PATH, {"rules": []}, headers=with_key(API_KEY)).status == 200


def test_with_a_key_any_host_and_origin_and_address_may_call() -> None:
    with served(app_of(api_key=API_KEY), address=REMOTE) as client:
        headers = {"x-api-key": API_KEY, "host": "aegis.example", "origin": "https://app.example"}
        assert client.post(EVALUATE, READ, headers=headers).status == 200


def test_keys_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AEGIS_API_KEY", API_KEY)
    monkeypatch.setenv("AEGIS_ADMIN_KEY", ADMIN_KEY)
    with served(app_of()) as client:
        assert client.post(EVALUATE, READ).status == 401
        assert client.post(EVALUATE, READ, headers=with_key(API_KEY)).status == 200
        assert client.put(POLICY_PATH, {"rules": []}, headers=with_key(API_KEY)).status == 403


@pytest.mark.one_interface
@pytest.mark.parametrize("name", ["AEGIS_API_KEY", "AEGIS_ADMIN_KEY"])
@pytest.mark.parametrize("value", ["", " ", "\t\n"])
def test_blank_variable_is_refused_and_not_taken_for_no_key(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=name):
        app_of()


@pytest.mark.one_interface
@pytest.mark.parametrize("name", ["api_key", "admin_key"])
@pytest.mark.parametrize("value", ["", "  "])
def test_blank_argument_is_refused_and_not_taken_for_no_key(name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=name):
        app_of(**{name: value})


@pytest.mark.parametrize("key", [API_KEY, ADMIN_KEY])
def test_refusal_does_not_repeat_a_key(key: str) -> None:
    with served(app_of(api_key="another", admin_key="a-third")) as client:
        assert key.encode() not in client.post(EVALUATE, READ, headers=with_key(key)).body


# --- without keys: this machine ------------------------------------------------------------------

LOCAL_HOSTS = [
    "127.0.0.1",
    "127.0.0.1:8000",
    "127.9.9.9:1",
    "localhost",
    "LOCALHOST:8000",
    "[::1]",
    "[::1]:8000",
]

FOREIGN_HOSTS = [
    "evil.example",
    "evil.example:8000",
    "localhost.evil.example",
    "127.0.0.1.evil.example",
    "192.168.0.1",
    "0.0.0.0",
    "[2001:db8::1]",
]

NO_HOSTS: list[Any] = [
    "",
    "localhost:abc",
    "localhost:99999",
    "127.0.0.1@evil.example",
    "evil.example#127.0.0.1",
    "localhost/",
    "local host",
    "[::1",
    "[::1]x",
    b"\xff",
    [HOST, HOST],
    [HOST, "evil.example"],
    [],
]
"""Malformed, doubled and missing ones."""


@pytest.mark.parametrize("host", LOCAL_HOSTS)
def test_local_host_is_served(host: str) -> None:
    with served(headers={"host": host}) as client:
        assert client.post(EVALUATE, READ).status == 200


@pytest.mark.parametrize("host", FOREIGN_HOSTS)
def test_foreign_host_is_refused_unread(host: str) -> None:
    with served() as client:
        reply = client.post(EXECUTE, READ, headers={"host": host})
        assert (reply.status, reply.code, reply.received) == (403, "foreign_host", 0)
        assert client.records() == []


@pytest.mark.parametrize("host", NO_HOSTS, ids=repr)
@pytest.mark.parametrize("key", [None, API_KEY])
def test_request_that_does_not_say_which_host_it_is_for_is_refused_unread(
    key: str | None, host: Any
) -> None:
    with served(app_of(api_key=key)) as client:
        for _ in range(2):
            sent = with_key(key) | {"host": host}
            reply = client.post(EXECUTE, READ, headers=sent)
            assert (reply.status, reply.code, reply.received) == (400, "invalid_host", 0)
            assert client.get("/health", headers=sent).status == 400
        assert client.get(AUDIT, headers=with_key(key)).json == []


@pytest.mark.parametrize("key", [None, API_KEY])
@pytest.mark.parametrize("host", ["", []])
def test_request_in_http_1_0_need_not_say_which_host_it_is_for(host: Any, key: str | None) -> None:
    # granian hands an empty host over where HTTP/1.0 sent none.
    with served(app_of(api_key=key), http_version="1.0") as client:
        assert client.post(EXECUTE, READ, headers=with_key(key) | {"host": host}).status == 200


@pytest.mark.parametrize(
    ("authority", "status"),
    [("localhost:8000", 200), ("evil.example", 403), ("a@localhost", 400), ("localhost:abc", 400)],
)
@pytest.mark.parametrize("host", [HOST, "evil.example"])
def test_host_of_an_absolute_target_counts_and_not_the_header(
    host: str, authority: str, status: int
) -> None:
    with served(headers={"host": host}) as client:
        assert client.post(f"http://{authority}{EVALUATE}", READ).status == status


def test_absolute_target_needs_a_host_too() -> None:
    with served(headers={"host": []}) as client:
        assert client.post(f"http://{HOST}{EVALUATE}", READ).status == 400


def test_foreign_host_stays_foreign_after_a_local_one() -> None:
    with served() as client:
        for _ in range(3):
            assert client.post(EVALUATE, READ, headers={"host": "localhost"}).status == 200
            assert client.post(EVALUATE, READ, headers={"host": "evil.example"}).status == 403


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        (HOST, f"http://{HOST}"),
        (HOST, "http://localhost:8000"),
        ("localhost:8000", "http://127.0.0.1:8000"),
        ("[::1]:8000", "http://[::1]:8000"),
        ("localhost", "http://localhost"),
        ("localhost", "http://localhost:80"),
        ("localhost:443", "https://localhost"),
    ],
)
def test_own_origin_is_served(host: str, origin: str) -> None:
    with served(headers={"host": host, "origin": origin}) as client:
        assert client.post(EVALUATE, READ).status == 200


@pytest.mark.parametrize(
    "origin",
    [
        "null",
        "http://evil.example",
        "http://127.0.0.1:9000",
        "http://localhost",
        "https://127.0.0.1",
        "http://127.0.0.1.evil.example:8000",
        "http://127.0.0.1:8000@evil.example",
        "http://evil.example:8000",
        "file://",
        "http://[::1",
        "",
        b"http://\xff:8000",
    ],
)
def test_foreign_origin_is_refused_unread(origin: str | bytes) -> None:
    with served() as client:
        reply = client.post(EXECUTE, READ, headers={"origin": origin})
        assert (reply.status, reply.code, reply.received) == (403, "foreign_origin", 0)
        assert client.records() == []


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "127.1.2.3", "::1", "::ffff:127.0.0.1", "testclient"]
)
def test_local_address_is_served(address: str) -> None:
    with served(address=(address, 1)) as client:
        assert client.post(EVALUATE, READ).status == 200


@pytest.mark.one_interface
def test_unknown_address_is_served() -> None:
    with served(address=None) as client:
        assert client.post(EVALUATE, READ).status == 200


@pytest.mark.parametrize(
    "address",
    ["203.0.113.7", "192.168.1.1", "10.0.0.1", "2001:db8::1", "::ffff:203.0.113.7", "fe80::1%eth0"],
)
def test_remote_address_is_refused_unread(address: str) -> None:
    with served() as client:
        reply = client.post(EXECUTE, READ, address=(address, 1))
        assert (reply.status, reply.code, reply.received) == (403, "not_local", 0)
        assert client.records() == []


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"address": REMOTE}, "not_local"),
        ({"headers": {"host": "evil.example"}}, "foreign_host"),
        ({"headers": {"x-forwarded-for": "203.0.113.7"}}, "not_local"),
        ({"headers": {"origin": "http://evil.example"}}, "foreign_origin"),
    ],
)
def test_one_that_was_admitted_opens_the_door_to_no_other(
    changes: dict[str, Any], code: str
) -> None:
    with served() as client:
        assert client.post(EVALUATE, READ).status == 200
        reply = client.post(EXECUTE, READ, **changes)
        assert (reply.status, reply.code, reply.received) == (403, code, 0)
        assert client.post(EVALUATE, READ).status == 200


def test_remote_address_is_served_where_that_is_allowed() -> None:
    with served(app_of(allow_unauthenticated=True), address=REMOTE) as client:
        assert client.post(EVALUATE, READ).status == 200


def test_open_server_still_refuses_web_pages() -> None:
    with served(app_of(allow_unauthenticated=True), address=REMOTE) as client:
        for headers in ({"host": "evil.example"}, {"origin": "http://evil.example"}):
            assert client.post(EVALUATE, READ, headers=headers).status == 403


@pytest.mark.parametrize("allowed", [["aegis.internal"], ["AEGIS.internal", "other"]])
def test_allowed_host_is_served(allowed: list[str]) -> None:
    with served(app_of(allowed_hosts=allowed)) as client:
        ask_as(client, "aegis.internal", None, 200)
        ask_as(client, "Aegis.Internal:8000", None, 200)
        ask_as(client, "aegis.internal:8000", "http://aegis.internal:8000", 200)
        ask_as(client, "aegis.internal:8000", "http://aegis.internal:9000", 403)
        ask_as(client, "internal", None, 403)
        ask_as(client, "x.aegis.internal", None, 403)


def test_allowed_ending_allows_what_is_below_it() -> None:
    with served(app_of(allowed_hosts=[".one.internal", "*.two.internal"])) as client:
        ask_as(client, "one.internal", None, 200)
        ask_as(client, "a.b.one.internal:8000", "http://a.b.one.internal:8000", 200)
        ask_as(client, "xone.internal", None, 403)
        ask_as(client, "two.internal", None, 403)
        ask_as(client, "a.two.internal", None, 200)


@pytest.mark.one_interface
@pytest.mark.parametrize("allowed", ["*", "", "a:8000", "10.0.0.0/8"])
def test_allowed_host_that_could_never_match_is_refused(allowed: str) -> None:
    with pytest.raises(ConfigError, match="allowed_hosts"):
        app_of(allowed_hosts=["localhost", allowed])


def ask_as(client: Client, host: str, origin: str | None, status: int) -> None:
    headers = {"host": host} | ({} if origin is None else {"origin": origin})
    assert client.post(EVALUATE, READ, headers=headers).status == status


@pytest.mark.parametrize("value", ["aegis.internal,other", "other aegis.internal"])
def test_allowed_hosts_come_from_the_environment(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AEGIS_ALLOWED_HOSTS", value)
    with served(app_of(), headers={"host": "aegis.internal"}) as client:
        assert client.post(EVALUATE, READ).status == 200


@pytest.mark.parametrize(("value", "status"), [("1", 200), ("true", 200), ("0", 403), ("", 403)])
def test_leave_for_others_comes_from_the_environment(
    value: str, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AEGIS_ALLOW_UNAUTHENTICATED", value)
    with served(app_of(), address=REMOTE) as client:
        assert client.post(EVALUATE, READ).status == status


def test_a_key_with_blanks_around_it_is_the_key_without_them() -> None:
    with served(app_of(api_key="secret ")) as client:
        assert client.get("/api/v1/policy", headers={"x-api-key": "secret"}).status == 200


def test_an_empty_key_header_leaves_the_bearer_token_to_speak() -> None:
    with served(app_of(api_key="secret")) as client:
        headers = {"x-api-key": "", "authorization": "Bearer secret"}
        assert client.get("/api/v1/policy", headers=headers).status == 200
