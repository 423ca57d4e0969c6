"""What operators call: the policy, its versions and its change."""

from __future__ import annotations

import asyncio
from codecs import getincrementaldecoder
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from aegis import codec
from aegis.audit.filters import pairs_of
from aegis.errors import InvalidBody, InvalidQuery, NotFound, NotReady
from aegis.messages import json_type, quote, suggest
from aegis.policy.compile_process import compile_body
from aegis.policy.compiled_cache import Buffer, PolicyText
from aegis.policy.decision_point import Snapshot
from aegis.policy.history import PolicyHistory
from aegis.policy.rollout import InForce
from aegis.server.http.headers import value_of
from aegis.server.http.kernel import MAX_WHOLE_BYTES
from aegis.server.http.messages import Header, Request, Response, not_modified
from aegis.server.http.refusals import problems_json

__all__ = ["MAX_NOTE", "MAX_VERSIONS", "Admin", "Change", "Changes"]

MAX_NOTE = 1_000
MAX_VERSIONS = 1_000
MAX_CHANGES = 32
"""Changes of the policy that may wait in a process, each with its text."""
_CHANGE_THREADS, _READ_THREADS = 8, 2
_PIECE_BYTES = 256 * 1024
_MAX_VERSION = 2**63 - 1

_Read = TypeVar("_Read")


@dataclass(frozen=True, slots=True)
class Change:
    """What is known of a change of the policy besides the policy.

    Attributes:
        key_name: Whose key asks for it; None where there are no keys.
        note: What the caller says about it.
        tags: What its If-Match says; None: it may follow any version.
    """

    key_name: str | None
    note: str | None
    tags: tuple[str, ...] | None

    def is_expected(self, newest: int) -> bool:
        """Whether it may follow this version."""
        # SOURCE: RFC 9110 section 13.1.1; a version's tag is its number in quotes.
        return self.tags is None or self.tags == ("*",) or f'"{newest}"' in self.tags


class Changes(Protocol):
    """What changes the policy, everywhere; called in a thread."""

    def put(self, text: PolicyText, change: Change) -> InForce:
        """Put a policy into force."""

    def rollback(self, version: int, change: Change) -> InForce:
        """Put an earlier version into force again."""

    def reload(self) -> InForce:
        """Put the policy file into force, where it has changed."""


class Admin:
    """The handlers.

    Args:
        deepest: Limit on the nesting of a JSON body.
        snapshot: The policy in force.
        history: All versions.
        changes: Changes the policy.
    """

    def __init__(
        self,
        *,
        deepest: int,
        snapshot: Callable[[], Snapshot],
        history: Callable[[], PolicyHistory],
        changes: Changes,
    ) -> None:
        self._deepest = deepest
        self._snapshot = snapshot
        self._history = history
        self._changes = changes
        # Changes may wait for processes and for each other: in threads that nothing else needs.
        self._changing = ThreadPoolExecutor(_CHANGE_THREADS, "aegis-policy")
        self._reading = ThreadPoolExecutor(_READ_THREADS, "aegis-policy-read")
        self._waiting = 0

    def close(self) -> None:
        """Begin no more changes; those that are under way come to their end."""
        for threads in (self._changing, self._reading):
            threads.shutdown(wait=False, cancel_futures=True)

    async def _change(self, change: Callable[..., InForce], *arguments: Any) -> Response:
        if self._waiting >= MAX_CHANGES:
            raise NotReady(f"{MAX_CHANGES} changes of the policy wait already; try again")
        self._waiting += 1
        try:
            loop = asyncio.get_running_loop()
            return _updated(await loop.run_in_executor(self._changing, change, *arguments))
        finally:
            self._waiting -= 1

    async def _read(self, read: Callable[..., _Read], *arguments: Any) -> _Read:
        return await asyncio.get_running_loop().run_in_executor(self._reading, read, *arguments)

    # Everything here runs in a thread: other requests go on while a large policy is read, parsed
    # or written, and while the disk is waited for.

    async def policy(self, request: Request) -> Response:
        """`GET /api/v1/policy`: the policy in force."""
        snapshot = self._snapshot()
        etag = _etag(snapshot.version)
        if response := not_modified(request, etag, snapshot.headers):
            return response
        members = snapshot.compiled.members, codec.dumps(snapshot.stored.as_json())[1:-1]
        content = _with_source(members, self._history(), snapshot.version)
        return await _response(content, *snapshot.headers, ("etag", etag))

    async def put_policy(self, request: Request) -> Response:
        """`PUT /api/v1/policy`: validate, compile, store, switch."""

        def put() -> InForce:
            change = _change(request, _note_of(request.query))
            media_type = value_of(request.headers, "content-type") or ""
            return self._changes.put(compile_body(media_type, request.body, self._deepest), change)

        return await self._change(put)

    async def rollback(self, request: Request) -> Response:
        """`POST /api/v1/policy/rollback`: put an earlier version into force again."""
        version, note = _rollback_of(codec.loads(request.body, self._deepest))
        codec.refuse_repeated(request.body)
        change = _change(request, note)
        return await self._change(self._changes.rollback, version, change)

    async def reload(self, _request: Request) -> Response:
        """`POST /api/v1/policy/reload`: load the policy file again."""
        return await self._change(self._changes.reload)

    async def versions(self, request: Request) -> Response:
        """`GET /api/v1/policy/versions`: what was ever in force, newest first."""
        bounds = _bounds_of(request.query)
        # Before the page is read: a version that comes meanwhile makes the tag older than the page.
        etag = _etag(self._snapshot().version)
        if response := not_modified(request, etag):
            return response
        page = await self._read(lambda: self._history().page(**bounds))
        listed = codec.dumps([version.as_json() for version in page])
        return Response(200, (("etag", etag),), listed)

    async def version(self, request: Request) -> Response:
        """`GET /api/v1/policy/versions/{version}`: one version, with its text."""
        text = request.parameters["version"]
        number = _number(text)
        if number is None:
            raise NotFound(f"there is no policy version {quote(text)}; use a number")
        history = self._history()
        version = await self._read(history.find, number)
        etag = _etag(number)
        if response := not_modified(request, etag):
            return response
        start = codec.dumps(version.as_json())[1:-1]
        return await _response(_with_source((start,), history, number), ("etag", etag))


def _etag(version: int) -> str:
    return f'"{version}"'


def _updated(in_force: InForce) -> Response:
    snapshot = in_force.snapshot
    answer = {
        "status": "updated",
        "changed": in_force.is_changed,
        "rule_count": snapshot.rule_count,
        "version": snapshot.version,
        "sha256": snapshot.compiled.sha256,
        "workers": in_force.workers,
        "warnings": problems_json(snapshot.compiled.warnings),
    }
    headers = (*snapshot.headers, ("etag", _etag(snapshot.version)))
    return Response(200, headers, codec.dumps(answer))


async def _with_source(
    members: Sequence[Buffer], history: PolicyHistory, version: int
) -> AsyncIterator[bytes]:
    """An object of members and the text of a version, in pieces: it may be as large as a policy."""
    yield b"{"
    for part in members:
        for start in range(0, len(part), _PIECE_BYTES):
            yield bytes(part[start : start + _PIECE_BYTES])
        yield b","
    yield b'"source":"'
    decoder = getincrementaldecoder("utf-8")()  # a piece may end inside a character
    start = 0
    while piece := await asyncio.to_thread(history.piece, version, start, _PIECE_BYTES):
        yield codec.dumps(decoder.decode(piece))[1:-1]
        start += len(piece)
    yield b'"}'


async def _response(content: AsyncIterator[bytes], *headers: Header) -> Response:
    """The response with a body that comes in pieces, whole if it is small."""
    first: list[bytes] = []
    size = 0
    async for part in content:
        first.append(part)
        size += len(part)
        if size > MAX_WHOLE_BYTES:
            return Response(200, headers, _chained(first, content))
    return Response(200, headers, b"".join(first))


async def _chained(first: list[bytes], rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield b"".join(first)
    first.clear()
    async for part in rest:
        yield part


# --- what is asked -------------------------------------------------------------------------------


def _change(request: Request, note: str | None) -> Change:
    caller = request.caller
    condition = value_of(request.headers, "if-match")
    tags = None if condition is None else tuple(tag.strip() for tag in condition.split(","))
    return Change(None if caller is None else caller.name, note, tags)


def _rollback_of(value: object) -> tuple[int, str | None]:
    if not isinstance(value, dict):
        raise InvalidBody(f"the body must be an object, not {json_type(value)}")
    version, note = value.get("version"), value.get("note")
    if isinstance(version, float) and version.is_integer():
        version = int(version)  # JSON knows one kind of number
    if isinstance(version, bool) or not isinstance(version, int):
        raise InvalidBody(f"`version` must be the number of a version, not {json_type(version)}")
    if not 1 <= version <= _MAX_VERSION:
        raise InvalidBody(f"`version` {version} is no version; they count from 1")
    if note is not None and not isinstance(note, str):
        raise InvalidBody(f"`note` must be text, not {json_type(note)}")
    if note is not None and len(note) > MAX_NOTE:
        raise InvalidBody(f"`note` is over {MAX_NOTE} characters")
    return version, note


def _parameters(query: str) -> dict[str, str]:
    """The parameters of a query that are not empty.

    Raises:
        InvalidQuery: They cannot be read, or one of them is repeated.
    """
    found: dict[str, str] = {}
    for name, value in pairs_of(query):
        if name in found:
            raise InvalidQuery(f"{quote(name)} stands twice; give it once")
        found[name] = value
    return {name: value for name, value in found.items() if value}


def _note_of(query: str) -> str | None:
    note = _parameters(query).get("note")  # what else there is has always been left aside
    if note is not None and len(note) > MAX_NOTE:
        raise InvalidQuery(f"`note` is over {MAX_NOTE} characters")
    return note


def _bounds_of(query: str) -> dict[str, int]:
    bounds = {}
    largest = {"before": _MAX_VERSION, "limit": MAX_VERSIONS}
    for name, text in _parameters(query).items():
        if name not in largest:
            raise InvalidQuery(f"unknown parameter {quote(name)}{suggest(name, largest)}")
        number = _number(text)
        if number is None or number > largest[name]:
            raise InvalidQuery(
                f"`{name}` must be a number from 0 to {largest[name]}, not {quote(text)}"
            )
        bounds[name] = number
    return bounds


def _number(text: str) -> int | None:
    """The number that a text is in decimal digits; None: it is none of 63 bits."""
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        return None
    return int(text) if int(text) <= _MAX_VERSION else None
