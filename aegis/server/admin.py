"""What operators call: the policy and its change."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from aegis import codec
from aegis.compiled import PolicyText
from aegis.decisions import Snapshot
from aegis.errors import InvalidBody, named
from aegis.headers import Headers, value_of
from aegis.server.kernel import Answer, Caller, problems_json
from aegis.versions import PolicyHistory

__all__ = ["YAML_TYPES", "Admin"]

YAML_TYPES = frozenset(
    ("application/yaml", "application/x-yaml", "text/yaml", "text/x-yaml", "text/vnd.yaml")
)
_DOCUMENT_KEYS = ("rules", "defaults")


class Admin:
    """The handlers.

    Args:
        deepest: Limit on the nesting of a JSON body.
        snapshot: The policy in force.
        history: All versions.
        load: Loads and compiles a text.
        put: Stores a policy, if it may follow the newest version, under the name of the key that
            asked for it, and switches to it everywhere.
    """

    def __init__(
        self,
        *,
        deepest: int,
        snapshot: Callable[[], Snapshot],
        history: Callable[[], PolicyHistory],
        load: Callable[[str | bytes], PolicyText],
        put: Callable[[PolicyText, Callable[[int], bool], str | None], Snapshot],
    ) -> None:
        self._deepest = deepest
        self._snapshot = snapshot
        self._history = history
        self._load = load
        self._put = put

    async def policy(self, _body: bytes, _headers: Headers, _query: str, _caller: Caller) -> Answer:
        """`GET /api/v1/policy`: the policy in force."""
        snapshot = self._snapshot()
        # In a thread: a large one takes its time to be read and written.
        answer = await asyncio.to_thread(_policy_json, snapshot, self._history())
        return 200, snapshot.headers, answer

    async def put_policy(
        self, body: bytes, headers: Headers, _query: str, caller: Caller
    ) -> Answer:
        """`PUT /api/v1/policy`: validate, compile, store, switch."""
        # In a thread: other requests go on while a large policy is parsed and compiled.
        snapshot = await asyncio.to_thread(self._load_and_put, body, headers, caller)
        answer = {
            "status": "updated",
            "rule_count": snapshot.rule_count,
            "version": snapshot.version,
            "sha256": snapshot.compiled.sha256,
            "warnings": problems_json(snapshot.compiled.warnings),
        }
        return 200, snapshot.headers, codec.dumps(answer)

    def _load_and_put(self, body: bytes, headers: Headers, caller: Caller) -> Snapshot:
        media_type = value_of(headers, "content-type") or ""
        text = self._load(policy_text(media_type, body, deepest=self._deepest))
        condition = value_of(headers, "if-match")
        tags = None if condition is None else [tag.strip() for tag in condition.split(",")]

        def is_expected(newest: int) -> bool:
            # SOURCE: RFC 9110 section 13.1.1; a version's tag is its number in quotes.
            return tags is None or tags == ["*"] or f'"{newest}"' in tags

        return self._put(text, is_expected, None if caller is None else caller.name)


def _policy_json(snapshot: Snapshot, history: PolicyHistory) -> bytes:
    stored = snapshot.stored
    more = {
        "version": snapshot.version,
        "sha256": stored.sha256,
        "origin": stored.origin,
        "key_name": stored.key_name,
        "source": history.source(snapshot.version),
    }
    return b"".join((b"{", snapshot.compiled.members, b",", codec.dumps(more)[1:]))


def policy_text(media_type: str, body: bytes, *, deepest: int) -> str | bytes:
    """The policy's text of a body in any of its three forms.

    Raises:
        InvalidBody: It is none of them.
    """
    if media_type.partition(";")[0].strip().lower() in YAML_TYPES:
        if not body:
            raise InvalidBody("the body is empty; send the policy's YAML")
        return body
    value = codec.loads(body, deepest)
    if not isinstance(value, dict):
        raise InvalidBody(f"the body must be an object, not {named(value)}")
    if "yaml" in value:
        text = value["yaml"]
        if not isinstance(text, str):
            raise InvalidBody(f"`yaml` must be text, not {named(text)}")
        if any(key in value for key in _DOCUMENT_KEYS):
            raise InvalidBody("send either `yaml` or `rules` and `defaults`, not both")
        return text
    if not any(key in value for key in _DOCUMENT_KEYS):
        raise InvalidBody("a policy is missing; send `yaml`, or `rules` and `defaults`")
    return body  # the text itself, so that problems have lines
