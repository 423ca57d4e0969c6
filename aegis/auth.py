"""Who may call: keys and what they may do, or, without keys, whoever is on this machine."""

from __future__ import annotations

import time
from urllib.parse import urlsplit

from aegis.config import Settings, host_of, is_loopback
from aegis.errors import ConfigError, Forbidden, Unauthorized, shown
from aegis.headers import Headers, value_of
from aegis.keys import Key, KeyRing, Permission

__all__ = ["Gate"]

_MOST_HOSTS_REMEMBERED = 256
_BLANKS = " \t"
_STANDARD_PORTS = {"http": "80", "https": "443"}
_CHALLENGE = (("www-authenticate", "Bearer"),)
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
            needed), its headers and the caller's address (None where the server knows none). Returns the caller's key;
            None where it needs none. Raises Unauthorized where it has no key or not a good one;
            Forbidden where its key may not do this or, without keys, it does not come from here.
        asks_address: Whether it looks at the caller's address; None does for it otherwise.
        local_hosts: Values of `Host` under which `admit` is known to admit every request from
            127.0.0.1 without an `Origin`, whatever its route; empty where callers need keys.
    """

    def __init__(self, settings: Settings, keys: KeyRing) -> None:
        self.admit = self._admit_local if settings.is_keyless else self._admit_key
        self.asks_address = settings.is_keyless and not settings.allow_unauthenticated
        self._find_key = keys.find
        self._hosts = frozenset(host.lower() for host in settings.allowed_hosts)
        self.local_hosts: set[str] = set()

    def _admit_key(
        self, needed: Permission | None, headers: Headers, _client: str | None
    ) -> Key | None:
        if needed is None:
            return None
        secret = (value_of(headers, "x-api-key") or "").strip(_BLANKS)
        if "authorization" in headers:
            secret = _with_bearer(secret, value_of(headers, "authorization") or "")
        if not secret:
            raise _unauthorized("send a key as X-API-Key or Bearer token")
        key = self._find_key(secret.encode("latin-1"))
        if key is None:
            raise _unauthorized("the key is unknown")
        if key.expires_s is not None and key.is_expired(time.time()):
            raise _unauthorized("the key has expired")
        if needed not in key.permissions:
            what = f"a key of the role {key.role}" if key.role is not None else "this key"
            raise Forbidden(f"{what} may not {_DOINGS[needed]}")
        return key

    def _admit_local(
        self, _: Permission | None, headers: Headers, client: str | None
    ) -> Key | None:
        # A web page that a browser on this machine shows must not be able to drive the server: by
        # a name that it resolves to us (Host), or across origins (Origin).
        if client != "127.0.0.1" and client is not None and self.asks_address:
            _check_client(client)
        host = value_of(headers, "host")
        if host and host not in self.local_hosts:
            self._check_host(host)
        if "origin" in headers:
            self._check_origin(value_of(headers, "origin") or "", host or "")
        return None

    def _check_host(self, host: str) -> None:
        try:
            name, _ = host_of(host)
            is_ours = host.isascii() and self._is_ours(name)
        except ConfigError:
            is_ours = False
        if not is_ours:
            raise Forbidden(
                f"host {shown(host)} is not this machine; without keys name it"
                " with --allowed-hosts",
                "foreign_host",
            )
        if len(self.local_hosts) < _MOST_HOSTS_REMEMBERED:
            self.local_hosts.add(host)

    def _check_origin(self, origin: str, host: str) -> None:
        if not (origin.isascii() and self._is_own_origin(origin, host)):
            raise Forbidden(
                f"origin {shown(origin)} is a web page of another site", "foreign_origin"
            )

    def _is_own_origin(self, origin: str, host: str) -> bool:
        try:
            parts = urlsplit(origin)
            name, port = host_of(parts.netloc)
            _, own_port = host_of(host)
        except (ConfigError, ValueError):
            return False
        standard = _STANDARD_PORTS.get(parts.scheme, "")
        return self._is_ours(name) and (port or standard) == (own_port or standard)

    def _is_ours(self, name: str) -> bool:
        return is_loopback(name) or name in self._hosts


def _check_client(address: str) -> None:
    # What is no address (a test client's name, a socket's path) does not come over a network.
    if not is_loopback(address) and (":" in address or address.replace(".", "").isdecimal()):
        raise Forbidden("without keys only this machine may call; set AEGIS_API_KEY", "not_local")


def _with_bearer(secret: str, authorization: str) -> str:
    """The key of both headers together; schemes other than Bearer are not ours."""
    scheme, _, token = authorization.partition(" ")
    if scheme.lower() != "bearer":
        return secret
    token = token.strip(_BLANKS)
    if secret and token:
        raise _unauthorized("two keys were sent; send one")
    return secret or token


def _unauthorized(message: str) -> Unauthorized:
    return Unauthorized(message, headers=_CHALLENGE)
