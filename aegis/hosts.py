"""Names and addresses of machines: which are this one, and which `--allowed-hosts` may name."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable

from aegis.errors import ConfigError
from aegis.messages import quote

__all__ = ["allowed_hosts_of", "host_of", "is_loopback"]

_HOST = re.compile(
    r"(\[[0-9a-f:.]+\]|(?:[a-z0-9._~!$&'()*+,;=-]|%[0-9a-f]{2})+)(?::([0-9]*))?",
    re.ASCII | re.IGNORECASE,
)
_MAX_PORT = 65_535
_NAME = re.compile(r"(\*\.|\.)?[a-z0-9_-]+(\.[a-z0-9_-]+)*")


def is_loopback(host: str) -> bool:
    """Whether an address or name only reaches this machine."""
    if host.lower() == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def host_of(text: str) -> tuple[str, str]:
    """Name and port of a `Host` value, lower case; the port is "" where there is none.

    Raises:
        ConfigError: It is none.

    Source: RFC 9110 section 7.2, RFC 3986 section 3.2.
    """
    match = _HOST.fullmatch(text)
    if match is None:
        raise ConfigError(f"{quote(text)} is not a host")
    name, port = match[1].lower(), match[2] or ""
    if port and int(port[:6]) > _MAX_PORT:
        raise ConfigError(f"{quote(text)} is not a host: ports end at {_MAX_PORT}")
    if name.startswith("["):
        try:
            name = f"[{ipaddress.IPv6Address(name[1:-1])}]"
        except ValueError:
            raise ConfigError(f"{quote(text)} is not a host") from None
    return name, port


def allowed_hosts_of(entries: Iterable[str]) -> frozenset[str]:
    """Hosts as `--allowed-hosts` has them, checked, in the form in which `host_of` gives names.

    Args:
        entries: Names and addresses; `.example.com` is a name and all below it, `*.example.com` what
            is below it.

    Raises:
        ConfigError: One of them could never be the name of a host, or would be every name.
    """
    return frozenset(map(_allowed_host, entries))


def _allowed_host(entry: str) -> str:
    text = entry.strip().lower()
    host = quote(entry)
    if not text:
        raise ConfigError(f"{host} is empty; name a host, or leave the option out")
    if text == "*":
        raise ConfigError(
            f"{host} would let web pages of any name call; name the hosts, or set AEGIS_API_KEY:"
            " with keys every host may"
        )
    if "://" in text:
        raise ConfigError(f"{host} is a URL; give its host alone")
    if "/" in text:
        raise ConfigError(f"{host} is a range of addresses; name each host")
    try:
        address = ipaddress.ip_address(text.strip("[]"))
    except ValueError:
        pass
    else:
        return f"[{address}]" if address.version == 6 else str(address)
    if ":" in text:
        raise ConfigError(f"{host} has a port; leave it out: every port of a host is allowed")
    if not _NAME.fullmatch(text):
        raise ConfigError(
            f"{host} is not a host; write `example.com`, or `.example.com` with all below it"
        )
    return text
