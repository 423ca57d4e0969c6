"""A client of an application in this process, and the server that it speaks to, in ASGI or in RSGI.

It is as strict as a server may be: an answer that breaks the interface fails the test that asked.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from aegis.auth.ring import KeyRing
from aegis.config import Settings
from aegis.errors import NotReady
from aegis.policy.loader import load_text
from aegis.server import create_app
from aegis.server.http.app import App
from aegis.server.http.gate import Gate
from aegis.server.http.kernel import EndHook
from aegis.server.http.lifecycle import Lifecycle
from aegis.server.http.routing import Route, RouteTable
from tests.contract import rsgi

Message = Mapping[str, Any]
Application = Callable[
    [Any, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]
]
Headers = Mapping[str, str | bytes | list[str] | list[bytes]]
"""A list stands for a header that stands several times."""

POLICY = """\
rules:
  - {name: reads, match: {type: "read*"}, risk_level: low, approval: auto}
  - {name: writes, match: {type: "write*"}, risk_level: high}
  - {name: no_deletes, match: {type: "delete*"}, risk_level: critical, approval: block}
"""
"""Allows reads, approves writes, blocks deletes and, by its defaults, all the rest."""

EVALUATE = "/api/v1/evaluate"
EXECUTE = "/api/v1/execute"
AUDIT = "/api/v1/audit"
POLICY_PATH = "/api/v1/policy"
VERSIONS = "/api/v1/policy/versions"
ROLLBACK = "/api/v1/policy/rollback"
RELOAD = "/api/v1/policy/reload"

interface = "asgi"
"""What is spoken now, `asgi` or `rsgi`, unless a test says what only ASGI can say; `none` in a test
that is run once."""

LOCAL = ("127.0.0.1", 50000)
REMOTE = ("203.0.113.7", 50000)
HOST = "127.0.0.1:8000"

PATIENCE_S = 10.0
"""Far longer than anything takes here; what is waited for this long has failed."""


class StartupFailed(Exception):
    """The application said in its lifespan that it cannot start, and why."""


@dataclass
class Reply:
    """What was answered.

    Attributes:
        status: The status; 0 where nothing was sent.
        headers: Names in lower case and values, in their order.
        body: The whole body.
        parts: How many messages it came in.
        received: How many messages of the body the application asked for.
    """

    status: int = 0
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""
    parts: int = 0
    received: int = 0
    is_complete: bool = False

    @property
    def json(self) -> Any:
        """The body's value."""
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The stable code of a refusal."""
        refusal = self.json
        assert type(refusal["error"]) is str
        assert refusal["error"]
        code = refusal["code"]
        assert type(code) is str
        return code

    def header(self, name: str) -> str | None:
        """The value of a header; None where there is none, or more than one."""
        values = [value for known, value in self.headers if known == name]
        return values[0] if len(values) == 1 else None


class Client:
    """Asks one application.

    Args:
        app: What is asked.
        runner: Runs what is asked without `await`.
        headers: Sent with every request; the host is ours unless they say another.
        address: Whose requests they are.
        root_path: Where the application is mounted.
        http_version: What it speaks.
    """

    def __init__(
        self,
        app: Application,
        runner: asyncio.Runner,
        *,
        headers: Headers | None = None,
        address: tuple[str, int] | None = LOCAL,
        root_path: str = "",
        http_version: str = "1.1",
    ) -> None:
        self.app = app
        self.runner = runner
        self.headers: dict[str, Any] = {"host": HOST} | dict(headers or {})
        self.address = address
        self.root_path = root_path
        self.http_version = http_version

    def run(self, scenario: Awaitable[Any]) -> Any:
        """Run what needs several requests at once."""

        async def within() -> Any:
            return await asyncio.wait_for(scenario, PATIENCE_S)

        return self.runner.run(within())

    def ask(self, method: str, path: str, value: Any = None, **details: Any) -> Reply:
        """`request`, waited for."""
        reply = self.run(self.request(method, path, value, **details))
        assert isinstance(reply, Reply)
        return reply

    def get(self, path: str, **details: Any) -> Reply:
        """`ask` with GET."""
        return self.ask("GET", path, **details)

    def post(self, path: str, value: Any = None, **details: Any) -> Reply:
        """`ask` with POST."""
        return self.ask("POST", path, value, **details)

    def put(self, path: str, value: Any = None, **details: Any) -> Reply:
        """`ask` with PUT."""
        return self.ask("PUT", path, value, **details)

    def records(self, query: str = "") -> list[dict[str, Any]]:
        """The audit's records."""
        reply = self.get(AUDIT + query)
        assert reply.status == 200, reply.body
        records = reply.json
        assert isinstance(records, list)
        return records

    async def request(
        self,
        method: str,
        path: str,
        value: Any = None,
        *,
        body: bytes | None = None,
        chunks: Sequence[bytes] | None = None,
        then: str | None = None,
        headers: Headers | None = None,
        address: tuple[str, int] | None = None,
    ) -> Reply:
        """Ask and collect the answer.

        Args:
            method: The method.
            path: Path and query, or an absolute target, as on the wire; `{version}`, as the route
                table has it, is the first.
            value: Sent as JSON, declared as such.
            body: Sent as it is, with its length.
            chunks: Sent one after the other, without a length.
            then: What follows the last chunk: None ends the body, `leave` does and hangs up,
                `silence` leaves it open, `disconnect` hangs up in it.
            headers: Besides the client's; an empty text takes one away.
            address: Instead of the client's.
        """
        path = path.replace("{version}", "1")
        sent = dict(self.headers)
        if value is not None:
            body = json.dumps(value).encode()
            sent["content-type"] = "application/json"
        if body is not None:
            sent["content-length"] = str(len(body))
        sent.update(headers or {})
        reply = Reply()
        parts = list(chunks) if chunks is not None else [body or b""]
        address = address or self.address
        if self.speaks_rsgi:
            if chunks is not None and "content-length" not in sent:
                sent["transfer-encoding"] = "chunked"
            await self._by_rsgi(reply, method, path, sent, address, parts, then)
        else:
            scope = self._scope(method, path, sent, address)
            await self.app(scope, _receiving(parts, then, reply), _sending(reply))
        if reply.status:
            assert reply.is_complete, "the answer was not ended"
            length = reply.header("content-length")
            assert method == "HEAD" or length is None or int(length) == len(reply.body)
        return reply

    @property
    def speaks_rsgi(self) -> bool:
        """Whether it does now; RSGI knows no mounted applications and no unknown addresses."""
        could = isinstance(self.app, App) and not self.root_path and self.address is not None
        assert not could or interface != "none", "it depends on the interface: run it over both"
        return could and interface == "rsgi"

    async def _by_rsgi(
        self,
        reply: Reply,
        method: str,
        path: str,
        headers: Headers,
        address: tuple[str, int] | None,
        parts: list[bytes],
        then: str | None,
    ) -> None:
        assert isinstance(self.app, App)
        assert address is not None
        raw_path, _, query = path.partition("?")
        authority = None
        if raw_path.startswith("http://"):
            authority, slash, rest = raw_path.removeprefix("http://").partition("/")
            raw_path = slash + rest
        host, port = address
        client = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        sent = [(name.decode(), value) for name, value in _raw(headers)]
        raw_path = unquote(raw_path, errors="replace")
        scope = rsgi.Scope(
            method, raw_path, query, sent, client, authority, self.http_version.removesuffix(".0")
        )
        protocol = rsgi.Protocol(method, parts, then)
        await self.app.__rsgi__(scope, protocol)
        await protocol.end()
        reply.status, reply.headers, reply.body = protocol.status, protocol.headers, protocol.body
        reply.parts, reply.received = protocol.parts, protocol.received
        reply.is_complete = True
        assert reply.status, "it was not answered"

    def _scope(
        self, method: str, path: str, headers: Headers, address: tuple[str, int] | None
    ) -> dict[str, Any]:
        raw_path, _, query = path.partition("?")
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": self.http_version,
            "method": method,
            "scheme": "http",
            "path": self.root_path + unquote(raw_path),
            "raw_path": (self.root_path + raw_path).encode(),
            "query_string": query.encode(),
            "root_path": self.root_path,
            "headers": _raw(headers),
            "client": address,
            "server": ("127.0.0.1", 8000),
        }


def _raw(headers: Headers) -> list[tuple[bytes, bytes]]:
    return [
        (name.lower().encode(), text if isinstance(text, bytes) else text.encode())
        for name, texts in headers.items()
        for text in (texts if isinstance(texts, list) else [texts])
    ]


def _receiving(
    parts: list[bytes], then: str | None, reply: Reply
) -> Callable[[], Awaitable[Message]]:
    """What the application is given when it asks for the body."""
    left = list(parts)

    async def receive() -> Message:
        reply.received += 1
        if left:
            part = left.pop(0)
            more = bool(left) or then in ("silence", "disconnect")
            return {"type": "http.request", "body": part, "more_body": more}
        if then not in ("leave", "disconnect"):
            await asyncio.Event().wait()
        return {"type": "http.disconnect"}

    return receive


def _sending(reply: Reply) -> Callable[[Message], Awaitable[None]]:
    """Takes the answer, and takes no offence against ASGI."""

    async def send(message: Message) -> None:
        assert not reply.is_complete, "something was sent after the end of the answer"
        if message["type"] == "http.response.start":
            assert not reply.status, "the answer was started twice"
            reply.status = message["status"]
            for name, value in message["headers"]:
                assert name == name.lower()
                reply.headers.append((name.decode("latin-1"), value.decode("latin-1")))
            return
        assert message["type"] == "http.response.body"
        assert reply.status, "a body was sent before its start"
        reply.body += message.get("body", b"")
        reply.parts += 1
        reply.is_complete = not message.get("more_body", False)

    return send


def app_of(policy: str = POLICY, **options: Any) -> App:
    """An application of a policy's text that keeps nothing, unless the options say otherwise."""
    options.setdefault("audit_db_path", ":memory:")
    return create_app(policy=load_text(policy).policy, **options)


def app_of_file(folder: Path, policy: str = POLICY, **options: Any) -> App:
    """An application of a policy file in a folder."""
    path = folder / "policy.yaml"
    path.write_text(policy, encoding="utf-8")
    options.setdefault("audit_db_path", ":memory:")
    return create_app(path, **options)


def app_around(
    route: Route,
    path: str = "/probe",
    *,
    body_timeout_s: float = 1.0,
    on_end: EndHook | None = None,
) -> App:
    """An application of one route, for GET and POST, with nothing to open."""

    async def nothing() -> None:
        pass

    return App(
        RouteTable({("GET", path): route, ("POST", path): route}),
        Gate(Settings(), KeyRing([])),
        Lifecycle(nothing, lambda: None, nothing),
        body_timeout_s=body_timeout_s,
        on_end=on_end,
    )


@asynccontextmanager
async def living(app: Application) -> AsyncIterator[None]:
    """The application between the start and the end of its life.

    Raises:
        StartupFailed: It said that it cannot start.
    """
    to_app: asyncio.Queue[Message] = asyncio.Queue()
    from_app: asyncio.Queue[Message] = asyncio.Queue()
    scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}}
    life = asyncio.ensure_future(app(scope, to_app.get, from_app.put))
    to_app.put_nowait({"type": "lifespan.startup"})
    said = await asyncio.wait_for(from_app.get(), PATIENCE_S)
    if said["type"] == "lifespan.startup.failed":
        await life
        raise StartupFailed(said["message"])
    assert said == {"type": "lifespan.startup.complete"}
    try:
        yield
    finally:
        to_app.put_nowait({"type": "lifespan.shutdown"})
        await asyncio.wait_for(life, PATIENCE_S)
        assert from_app.get_nowait()["type"].startswith("lifespan.shutdown.")


@contextmanager
def served(
    app: Application | None = None, *, lifespan: bool = True, **details: Any
) -> Iterator[Client]:
    """A client of an application, which is opened and closed as a server does it.

    Args:
        app: The application; None: one of `POLICY`.
        lifespan: Whether the server runs a lifespan.
        details: Of the client.

    Raises:
        StartupFailed: It said that it cannot start.
    """
    app = app_of() if app is None else app
    with asyncio.Runner() as runner:
        client = Client(app, runner, **details)
        if not lifespan:
            yield client
            return
        if client.speaks_rsgi:
            assert isinstance(app, App)
            try:
                app.__rsgi_init__(runner.get_loop())
            except NotReady as error:
                raise StartupFailed(str(error)) from error
            try:
                yield client
            finally:
                app.__rsgi_del__(runner.get_loop())
            return
        life = living(app)
        runner.run(life.__aenter__())
        try:
            yield client
        finally:
            runner.run(life.__aexit__(None, None, None))


def routes_of(app: App) -> dict[tuple[str, str], Route]:
    """The route table."""
    return app.routes.all


async def eventually(is_so: Callable[[], Awaitable[Any]]) -> Any:
    """Ask until the answer is true, and return it; fails after a time that nothing takes."""
    deadline = asyncio.get_running_loop().time() + PATIENCE_S
    while not (answer := await is_so()):
        assert asyncio.get_running_loop().time() < deadline, "it never came true"
        await asyncio.sleep(0.005)
    return answer
