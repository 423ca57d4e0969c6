"""Headers of a request, as any server has them."""

from __future__ import annotations

from typing import Protocol

__all__ = ["UNREADABLE", "Headers", "value_of"]

UNREADABLE = "\xff"
"""Stands for a value that the server cannot give as text; equal to nothing that is sought."""


class Headers(Protocol):
    """Headers by their names in lower case. RSGI's own are such, so that nothing need be copied."""

    def get_all(self, name: str, /) -> list[str]:
        """The values of a header, one for each time that it stands; unreadable ones are left out."""

    def __contains__(self, name: str, /) -> bool:
        """Whether a header stands there, readable or not."""


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
