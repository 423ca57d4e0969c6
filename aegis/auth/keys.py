"""Keys: who calls, and what the caller may do.

Only digests of keys are ever kept. A key has over 128 random bits, so a plain SHA-256 of it reveals
nothing; a word that a person chose would need a slow hash, and is not accepted as a key.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import translate

from aegis.auth.roles import API_KEY_PERMISSIONS, Permission, Role

__all__ = ["ADMIN_KEY", "API_KEY", "Key", "digest_of", "environment_keys", "new_secret"]

API_KEY, ADMIN_KEY = "AEGIS_API_KEY", "AEGIS_ADMIN_KEY"
"""Names of the environment's keys, for variables as well as in records."""

_WILD = re.compile(r"[*?\[]")


@dataclass(frozen=True, slots=True)
class Key:
    """A key, without what it takes to use it.

    Attributes:
        name: What audit records and policy versions call it.
        digest: SHA-256 of the key, 32 bytes.
        permissions: What it may do.
        role: Where that comes from; None for the API key of the environment.
        agents: Patterns of the agents that it may speak for; empty: any.
        expires_s: From when on it is no key any more, in seconds since the epoch; None: never.
    """

    name: str
    digest: bytes = field(repr=False)
    permissions: frozenset[Permission]
    role: Role | None = None
    agents: tuple[str, ...] = ()
    expires_s: float | None = None
    _matches: Callable[[str], object] | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        pattern = "|".join(translate(agent) for agent in self.agents)
        object.__setattr__(self, "_matches", re.compile(pattern).match if self.agents else None)

    def is_expired(self, now_s: float) -> bool:
        """Whether it is no key any more."""
        return self.expires_s is not None and now_s >= self.expires_s

    def agent_for(self, agent_id: str) -> str | None:
        """The agent that an action of this key is by.

        Args:
            agent_id: As the action has it; "" where it has none.

        Returns:
            It, or the only agent that the key may speak for; None where it may not speak for it.
        """
        if self._matches is None:
            return agent_id
        if not agent_id and len(self.agents) == 1 and not _WILD.search(self.agents[0]):
            return self.agents[0]
        return agent_id if self._matches(agent_id) else None


def digest_of(secret: bytes) -> bytes:
    """What is kept of a key."""
    return hashlib.sha256(secret).digest()


def new_secret() -> str:
    """A new key: 256 random bits, recognisable where it should not be."""
    return f"aegis_{secrets.token_urlsafe(32)}"


def environment_keys(api_key: str | None, admin_key: str | None) -> list[Key]:
    """The two keys of the environment. Without an admin key, the API key is one."""
    keys = []
    if api_key is not None:
        may = API_KEY_PERMISSIONS if admin_key is not None else frozenset(Permission)
        keys.append(Key(API_KEY, digest_of(api_key.encode()), may))
    if admin_key is not None:
        digest = digest_of(admin_key.encode())
        keys.append(Key(ADMIN_KEY, digest, frozenset(Permission), Role.ADMIN))
    return keys
