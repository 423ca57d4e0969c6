"""Headers of a request, as any server has them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, Self

from aegis.errors import HeadersTooLarge

__all__ = [
    "MAX_HEADERS_BYTES",
    "UNREADABLE",
    "Head",
    "HeaderNames",
    "Headers",
    "check_headers_size",
    "value_of",
]

MAX_HEADERS_BYTES = 64 * 1024
"""Of all names and values of a request's headers together."""

UNREADABLE = "\xff"
"""Stands for a value that the server cannot give as text; equal to nothing that is sought."""


class Headers(Protocol):
    """Headers by their names in lower case. RSGI's own are such, so that nothing need be copied."""

    def get_all(self, name: str, /) -> list[str]:
        """The values of a header, one for each time that it stands; unreadable ones are left out."""

    def __contains__(self, name: str, /) -> bool:
        """Whether a header stands there, readable or not."""


_USUAL = frozenset(
    (
        "accept",
        "accept-encoding",
        "authorization",
        "connection",
        "content-length",
        "content-type",
        "host",
        "user-agent",
        "x-api-key",
    )
)


class Head(Protocol):
    """What a request says besides its headers and its body. RSGI's scope is one."""

    @property
    def client(self) -> str:
        """The caller's address and port; empty where the server knows none."""

    @property
    def authority(self) -> str | None:
        """Host and port of an absolute target (RFC 9112 section 3.2.2); None: it is not absolute."""

    @property
    def http_version(self) -> str:
        """As in `1.1`."""


@dataclass(frozen=True, slots=True)
class HeaderNames:
    """What the names of a request's headers say, whatever their values are.

    Clients send the same few names again and again, so this is found once for all of their requests.

    Attributes:
        forwarding: A header that a proxy adds; empty: there is none.
        has_origin: Whether there is an `Origin`.
        has_request_id: Whether there is an `X-Request-Id`.
        is_encoded: Whether there is a `Content-Encoding`.
        is_chunked: Whether there is a `Transfer-Encoding`.
        is_direct: Whether neither a proxy nor a web page shows in them.
        is_usual: Whether they are those of nearly every request, whose values are short.
    """

    forwarding: str
    has_origin: bool
    has_request_id: bool
    is_encoded: bool
    is_chunked: bool
    is_direct: bool
    is_usual: bool

    @classmethod
    def of(cls, names: Iterable[str]) -> Self:
        """Look at names, in lower case."""
        known = set(names)
        forwarding = min(filter(_is_forwarding, known), default="")
        has_origin = "origin" in known
        return cls(
            forwarding,
            has_origin,
            "x-request-id" in known,
            "content-encoding" in known,
            "transfer-encoding" in known,
            not forwarding and not has_origin,
            known <= _USUAL,
        )


def _is_forwarding(name: str) -> bool:
    # SOURCE: RFC 7239, and what proxies added before it.
    return name in ("forwarded", "x-real-ip") or name.startswith("x-forwarded-")


def value_of(headers: Headers, name: str) -> str | None:
    """The value of a header; None: there is none.

    Those of a repeated one are joined (RFC 9110 section 5.3), so that a second value never hides
    the first: two keys or hosts are none. One that is there and cannot be read is `UNREADABLE`,
    so that it is not taken for left out.
    """
    values = headers.get_all(name)
    if len(values) == 1:
        return values[0]
    if values:
        return ", ".join(values)
    return UNREADABLE if name in headers else None


def check_headers_size(size: int) -> None:
    """See that the headers of a request are within their limit.

    Raises:
        HeadersTooLarge: They are not.
    """
    if size > MAX_HEADERS_BYTES:
        raise HeadersTooLarge(
            f"the headers are over {MAX_HEADERS_BYTES} bytes together; send less of them"
        )
