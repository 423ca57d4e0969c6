"""Who may call: keys and what they may do, or, without keys, whoever is on this machine."""

from __future__ import annotations

import time
from urllib.parse import urlsplit

from aegis.auth.keys import Key
from aegis.auth.ring import KeyRing
from aegis.auth.roles import Permission
from aegis.config import Settings
from aegis.errors import ConfigError, Forbidden, InvalidHost, Unauthorized
from aegis.hosts import host_of, is_loopback
from aegis.messages import quote
from aegis.server.http.headers import Head, HeaderNames, Headers, value_of

__all__ = ["Gate"]

_MAX_HOSTS_REMEMBERED = 256
_BLANKS = " \t"
_HTTP_1_0 = ("1", "1.0")  # as granian and as others write it
_SET_KEYS = "set AEGIS_API_KEY, or give --keys"
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
        admit: Lets a request pass, given the permission that its route asks for (None: anyone may
            call it, from anywhere), its headers, what their names say, and the rest of its head.
            Returns the caller's key; None where it needs none. Raises InvalidHost where it does not
            say whom it is for; Unauthorized where it has no key or not a good one; Forbidden where
            its key may not do this or, without keys, it does not come from here.
    """

    def __init__(self, settings: Settings, keys: KeyRing) -> None:
        self.admit = self._admit_local if settings.is_keyless else self._admit_key
        self._asks_locality = not settings.allow_unauthenticated
        self._find_key = keys.find
        self._names = frozenset(
            name.lstrip(".") for name in settings.allowed_hosts if name[0] != "*"
        )
        self._endings = tuple(
            name.lstrip("*") for name in settings.allowed_hosts if name[0] in "*."
        )
        # Values of `Host` that were looked at before: well-formed, or ours.
        self._known_hosts: set[str] = set()
        self._own_hosts: set[str] = set()

    def _admit_key(
        self, needed: Permission | None, headers: Headers, _names: HeaderNames, head: Head
    ) -> Key | None:
        hosts = headers.get_all("host")
        if len(hosts) != 1 or hosts[0] not in self._known_hosts or head.authority is not None:
            self._host_of(headers, head)
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
        self, needed: Permission | None, headers: Headers, names: HeaderNames, head: Head
    ) -> Key | None:
        # What nearly every request is, seen at once; the rules are those below.
        hosts = headers.get_all("host")
        if (
            len(hosts) == 1
            and hosts[0] in self._own_hosts
            and names.is_direct
            and head.client[:10] == "127.0.0.1:"
            and head.authority is None
        ):
            return None
        host = self._host_of(headers, head)
        if needed is None:
            return None
        if self._asks_locality:
            _check_client(head.client)
            if names.forwarding:
                raise Forbidden(
                    f"{quote(names.forwarding)} says that a proxy sends this for somebody else, and"
                    f" without keys only this machine may call; {_SET_KEYS}",
                    "not_local",
                )
        # A web page that a browser on this machine shows must not be able to drive the server: by
        # a name that it resolves to us (Host), or across origins (Origin).
        if host and host not in self._own_hosts:
            self._check_host(host)
        if names.has_origin:
            self._check_origin(value_of(headers, "origin") or "", host)
        return None

    def _host_of(self, headers: Headers, head: Head) -> str:
        """Whom a request is for, well-formed; empty where HTTP/1.0 does not say it.

        Raises:
            InvalidHost: It does not say it as it must.
        """
        # SOURCE: RFC 9112 section 3.2: one well-formed Host in HTTP/1.1, always; section 3.2.2: the
        # host of an absolute target counts instead of it.
        host = value_of(headers, "host")
        if not host and head.http_version in _HTTP_1_0:
            host = ""
        elif host is None:
            raise InvalidHost("the header Host is missing; send it, as in `localhost:8000`")
        elif len(headers.get_all("host")) > 1:
            raise InvalidHost("the header Host stands twice; send it once")
        else:
            self._check_form(host)
        if head.authority is not None:
            host = head.authority
            self._check_form(host)
        return host

    def _check_form(self, host: str) -> None:
        if host in self._known_hosts:
            return
        try:
            host_of(host)
        except ConfigError:
            raise InvalidHost(
                f"host {quote(host)} is malformed; send a name or an address, and a port where it is"
                " not the standard one"
            ) from None
        if len(self._known_hosts) < _MAX_HOSTS_REMEMBERED:
            self._known_hosts.add(host)

    def _check_host(self, host: str) -> None:
        if not self._is_ours(host_of(host)[0]):
            raise Forbidden(
                f"host {quote(host)} is not this machine; without keys name it"
                " with --allowed-hosts",
                "foreign_host",
            )
        if len(self._own_hosts) < _MAX_HOSTS_REMEMBERED:
            self._own_hosts.add(host)

    def _check_origin(self, origin: str, host: str) -> None:
        if not (origin.isascii() and self._is_own_origin(origin, host)):
            raise Forbidden(
                f"origin {quote(origin)} is a web page of another site", "foreign_origin"
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
        return is_loopback(name) or name in self._names or name.endswith(self._endings)


def _check_client(client: str) -> None:
    address = client.rpartition(":")[0].strip("[]")
    # What is no address (a test client's name, a socket's path) does not come over a network.
    if not is_loopback(address) and (":" in address or address.replace(".", "").isdecimal()):
        raise Forbidden(f"without keys only this machine may call; {_SET_KEYS}", "not_local")


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
