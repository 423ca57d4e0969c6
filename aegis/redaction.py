"""Secrets, known by the names of their keys, and kept out of what is stored."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from aegis.codec import MAX_FOREIGN_DEPTH, dumps, dumps_foreign, is_deeper, loads_own

__all__ = ["REDACTED", "Redaction"]

REDACTED = "[REDACTED]"

_ANYWHERE = (
    "password", "passwd", "secret", "api_key", "api-key", "authorization", "cookie", "credential",
    "private_key", "access_key",
)  # fmt: skip
_AT_AN_END = ("token", "pwd")
"""Secret only where they end a key or a part of it: `max_tokens` and `tokenizer` are none."""
_NEVER = ("max_tokens", "input_tokens", "output_tokens", "total_tokens", "tokenizer", "pwd")
_IN_SECRETS = ("pass", "pwd", "secret", "token", "key", "auth", "cookie", "credential")
"""Each of those words has one of these in it, which are quicker to look for."""
_END = r"(?:(?![^\W\d_])|(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z]))"
"""No letter follows, or one that begins a part in camelCase."""
_SHORTEST_HIDDEN = 4
"""A shorter secret is not looked for in texts: what is hidden would show where it stood."""


class Redaction:
    """Tells whose values are secret, and replaces them.

    Args:
        names: Further names; keys that have one of them in it, in any case, are those of secrets.
        except_names: Keys that are none, in any case.
    """

    def __init__(self, names: Iterable[str] = (), except_names: Iterable[str] = ()) -> None:
        more = [name.lower() for name in names]
        anywhere = "|".join(map(re.escape, (*_ANYWHERE, *more)))
        ends = "|".join(_AT_AN_END)
        self._name = re.compile(f"(?i:{anywhere})|(?i:{ends}){_END}")
        self._never = frozenset((*_NEVER, *(name.lower() for name in except_names)))
        parts = (*_IN_SECRETS, *more)
        # A letter that is not ASCII may be one in another case: the regular expression knows.
        self._parts = tuple(map(str.encode, parts)) if all(map(str.isascii, parts)) else None

    def is_secret(self, key: str) -> bool:
        """Whether a key is the name of a secret."""
        return self._name.search(key) is not None and key.lower() not in self._never

    def json(self, text: bytes) -> bytes:
        """JSON without the values of secrets, at any depth.

        Args:
            text: JSON as `dumps` writes it: it escapes no letter, so a secret's name shows in it.
        """
        if not self._may_name_secrets(text):
            return text
        return dumps(self._redacted(loads_own(text)))

    def json_text(self, text: str) -> str:
        """JSON that others wrote, as `json` gives it; what is no JSON becomes one of its strings.

        Raises:
            RecursionError: It is nested too deeply.
        """
        try:
            value = json.loads(text)  # agent-aegis writes NaN, which is no JSON, as Python does
        except ValueError:
            value = text
        if is_deeper(value, MAX_FOREIGN_DEPTH):
            raise RecursionError
        return self.json(dumps_foreign(value)).decode()

    def hide(self, text: str, params: Any) -> str:
        """Text without the secrets of some params that it may repeat."""
        hidden = {secret for secret in self._secrets(params) if len(secret) >= _SHORTEST_HIDDEN}
        for secret in sorted(hidden, key=len, reverse=True):
            text = text.replace(secret, REDACTED).replace(repr(secret)[1:-1], REDACTED)
        return text

    def _may_name_secrets(self, text: bytes) -> bool:
        if self._parts is not None and text.isascii():
            small = text.lower()
            for part in self._parts:
                if part in small:
                    break
            else:
                return False
        return self._name.search(text.decode()) is not None

    def _redacted(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {
                key: REDACTED if self.is_secret(key) else self._redacted(member)
                for key, member in value.items()
            }
        if isinstance(value, list):
            return [self._redacted(member) for member in value]
        return value

    def _secrets(self, value: Any, *, is_secret: bool = False) -> Iterator[str]:
        """The texts and numbers of a value that are secret."""
        if isinstance(value, dict):
            for key, member in value.items():
                yield from self._secrets(member, is_secret=is_secret or self.is_secret(key))
        elif isinstance(value, list):
            for member in value:
                yield from self._secrets(member, is_secret=is_secret)
        elif is_secret and isinstance(value, str | int | float) and not isinstance(value, bool):
            yield str(value)
