"""Who may call: keys and what they may do, or, without keys, whoever is on this machine."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from aegis.config import Settings, host_of, is_loopback
from aegis.errors import ConfigError, Forbidden, Unauthorized, shown
from aegis.keys import Key, KeyRing, Permission

__all__ = ["Gate"]

_MOST_HOSTS_REMEMBERED = 256
_STANDARD_PORTS = {"http": "80", "https": "443"}
_CHALLENGE = ((b"www-authenticate", b"Bearer"),)
_DOINGS = {
    Permission.DESCRIBE: "ask for this",
    Permission.DECIDE: "evaluate or execute actions",
    Permission.READ: "read the audit and the policy",
    Permission.CHANGE_POLICY: "change the policy",
}


class Gate:
    """Admits callers.

    Invariant: a key that is not known to be good is only ever compared as a digest, in constant time.

    Args:
        settings: Which hosts are ours, and whether callers need keys.
        keys: The keys.

    Attributes:
        admit: Lets a request pass, given the permission that its route asks for (None: no key is
            needed), its headers (names in lower case, values of repeated ones joined) and the
            caller's address and port (None where the server knows none). Returns the caller's key;
            None where it needs none. Raises Unauthorized where it has no key or not a good one;
            Forbidden where its key may not do this or, without keys, it does not come from here.
    """

    def __init__(self, settings: Settings, keys: KeyRing) -> None:
        self.admit = self._admit_local if settings.is_keyless else self._admit_key
        self._find_key = keys.find
        self._allows_remote = settings.allow_unauthenticated
        self._hosts = frozenset(host.lower() for host in settings.allowed_hosts)
        self._known_hosts: set[bytes] = set()

    def _admit_key(
        self, needed: Permission | None, headers: Mapping[bytes, bytes], _client: Any
    ) -> Key | None:
        if needed is None:
            return None
        secret = headers.get(b"x-api-key", b"").strip()
        authorization = headers.get(b"authorization")
        if authorization is not None:
            secret = _with_bearer(secret, authorization)
        if not secret:
            raise _unauthorized("send a key as X-API-Key or Bearer token")
        key = self._find_key(secret)
        if key is None:
            raise _unauthorized("the key is unknown")
        if key.expires_s is not None and key.is_expired(time.time()):
            raise _unauthorized("the key has expired")
        if needed not in key.permissions:
            what = f"a key of the role {key.role}" if key.role is not None else "this key"
            raise Forbidden(f"{what} may not {_DOINGS[needed]}")
        return key

    def _admit_local(
        self, _: Permission | None, headers: Mapping[bytes, bytes], client: Any
    ) -> Key | None:
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
        return None

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


def _with_bearer(secret: bytes, authorization: bytes) -> bytes:
    """The key of both headers together; schemes other than Bearer are not ours."""
    scheme, _, token = authorization.partition(b" ")
    if scheme.lower() != b"bearer":
        return secret
    token = token.strip()
    if secret and token:
        raise _unauthorized("two keys were sent; send one")
    return secret or token


def _unauthorized(message: str) -> Unauthorized:
    return Unauthorized(message, headers=_CHALLENGE)
