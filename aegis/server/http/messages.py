"""Requests and responses as handlers know them, whatever server they come by."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from types import MappingProxyType

from msgspec import Struct

from aegis.auth.keys import Key
from aegis.server.http.headers import Headers, value_of

__all__ = [
    "CLOSE",
    "JSON",
    "NO_PARAMETERS",
    "Caller",
    "Handler",
    "Header",
    "Request",
    "Response",
    "not_modified",
]

Header = tuple[str, str]

JSON: Header = ("content-type", "application/json")
CLOSE: Header = ("connection", "close")
NO_PARAMETERS: Mapping[str, str] = MappingProxyType({})

Caller = Key | None
"""Who sends a request; None: no key is needed."""


# A struct is made in a third of the time that a dataclass takes, which shows on every request.
class Request(Struct):
    """A request whose caller has been admitted and whose body has arrived.

    Attributes:
        route: The name of its route.
        body: The whole body.
        headers: The headers.
        query: The raw query string; "" if the route takes a body and no query.
        caller: Who sends it.
        request_id: Its id in the response and in logs.
        parameters: What stands in the path for the names in braces of the route's template.
    """

    route: str
    body: bytes
    headers: Headers
    query: str = ""
    caller: Caller = None
    request_id: str = ""
    parameters: Mapping[str, str] = NO_PARAMETERS


class Response(Struct):
    """What a handler answers.

    Attributes:
        status: The status.
        headers: Headers besides the content type, the length and the request's id.
        body: The whole body, or its parts as they come; None: there is none, and no length either.
        content_type: The header that names the media type of the body.
    """

    status: int
    headers: Sequence[Header]
    body: bytes | AsyncIterator[bytes] | None
    content_type: Header = JSON


Handler = Callable[[Request], "Response | Awaitable[Response]"]
"""Answers a request; may raise any `AegisError`."""


def not_modified(request: Request, etag: str, headers: Sequence[Header] = ()) -> Response | None:
    """The response to a GET whose client has this representation already; None: it has not.

    Args:
        request: Its `If-None-Match` is looked at.
        etag: The tag of the representation that the handler would send, in quotes.
        headers: What the handler would send with it.
    """
    if "if-none-match" not in request.headers:
        return None
    # SOURCE: RFC 9110 section 13.1.2: a list, or `*`; weak tags compare equal to strong ones.
    listed = (value_of(request.headers, "if-none-match") or "").split(",")
    tags = {tag.strip().removeprefix("W/") for tag in listed}
    if etag not in tags and tags != {"*"}:
        return None
    return Response(304, (("etag", etag), *headers), None)
