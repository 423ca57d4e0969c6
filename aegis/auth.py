"""Who may call: keys and their roles, or, without keys, whoever is on this machine."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from enum import IntEnum
from typing import Any
from urllib.parse import urlsplit

from aegis.config import Settings, host_of, is_loopback
from aegis.errors import ConfigError, Forbidden, Unauthorized, shown

__all__ = ["Gate", "Role"]

_MOST_HOSTS_REMEMBERED = 256
_STANDARD_PORTS = {"http": "80", "https": "443"}


class Role(IntEnum):
    """What a route asks of its caller; each includes those before it."""

    ANYONE = 0
    USER = 1
    ADMIN = 2


class Gate:
    """Admits callers.

    Invariant: keys are only ever compared as digests, in constant time.

    Args:
        settings: The keys, and which hosts are ours.

    Attributes:
        admit: Lets a request pass, given what its route asks for, its headers (names in lower
            case) and the caller's address and port (None where the server knows none). Raises
            Unauthorized where it has no key or an unknown one; Forbidden where its key may not do
            this or, without keys, it does not come from here.
    """

    def __init__(self, settings: Settings) -> None:
        self.admit = self._admit_local if settings.is_keyless else self._admit_key
        self._allows_remote = settings.allow_unauthenticated
        self._hosts = frozenset(host.lower() for host in settings.allowed_hosts)
        self._known_hosts: set[bytes] = set()
        self._keys: list[tuple[bytes, Role]] = []
        if settings.api_key is not None:
            role = Role.ADMIN if settings.admin_key is None else Role.USER
            self._keys.append((_digest(_bytes(settings.api_key)), role))
        if settings.admin_key is not None:
            self._keys.append((_digest(_bytes(settings.admin_key)), Role.ADMIN))

    def _admit_key(self, needed: Role, headers: Mapping[bytes, bytes], _client: Any) -> None:
        if needed is Role.ANYONE:
            return
        presented = headers.get(b"x-api-key", b"")
        if not presented:
            scheme, _, presented = headers.get(b"authorization", b"").partition(b" ")
            if scheme.lower() != b"bearer":
                presented = b""
        digest = _digest(presented.strip())
        role = None
        for known, of in self._keys:
            if hmac.compare_digest(digest, known):
                role = of if role is None else max(role, of)
        if role is None:
            said = "the key is unknown" if presented else "send a key as X-API-Key or Bearer token"
            raise Unauthorized(said, headers=((b"www-authenticate", b"Bearer"),))
        if role < needed:
            raise Forbidden("this key may not change the policy; use the admin key")

    def _admit_local(self, _: Role, headers: Mapping[bytes, bytes], client: Any) -> None:
        # A web page that a browser on this machine shows must not be able to drive the server: by
        # a name that it resolves to us (Host), or across origins (Origin).
        if client is not None and not self._allows_remote:
            address = client[0]
            if address != "127.0.0.1" and _is_remote(address):
                raise Forbidden(
                    "without keys only this machine may call; set AEGIS_API_KEY", "not_local"
                )
        host = headers.get(b"host")
        if host and host not in self._known_hosts:
            self._check_host(host)
        origin = headers.get(b"origin")
        if origin is not None:
            self._check_origin(origin, host)

    def _check_host(self, host: bytes) -> None:
        try:
            name, _ = host_of(host.decode("ascii"))
            is_ours = self._is_ours(name)
        except (UnicodeDecodeError, ConfigError):
            is_ours = False
        if not is_ours:
            raise Forbidden(
                f"host {shown(host.decode('latin-1'))} is not this machine; without keys name it"
                " with --allowed-hosts",
                "foreign_host",
            )
        if len(self._known_hosts) < _MOST_HOSTS_REMEMBERED:
            self._known_hosts.add(host)

    def _check_origin(self, origin: bytes, host: bytes | None) -> None:
        if not self._is_own_origin(origin, host or b""):
            raise Forbidden(
                f"origin {shown(origin.decode('latin-1'))} is a web page of another site",
                "foreign_origin",
            )

    def _is_own_origin(self, origin: bytes, host: bytes) -> bool:
        try:
            parts = urlsplit(origin.decode("ascii"))
            name, port = host_of(parts.netloc)
            _, own_port = host_of(host.decode("ascii"))
        except (UnicodeDecodeError, ConfigError, ValueError):
            return False
        standard = _STANDARD_PORTS.get(parts.scheme, "")
        return self._is_ours(name) and (port or standard) == (own_port or standard)

    def _is_ours(self, name: str) -> bool:
        return is_loopback(name) or name in self._hosts


def _is_remote(address: str) -> bool:
    # What is no address (a test client's name, a socket's path) does not come over a network.
    return not is_loopback(address) and (":" in address or address.replace(".", "").isdecimal())


def _bytes(key: str) -> bytes:
    # An environment variable may hold any bytes; a header may as well.
    return key.strip().encode(errors="surrogateescape")


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
