"""Errors as responses: the one form that every refusal has."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from aegis.codec import dumps
from aegis.errors import AegisError, PolicyError, RequestError
from aegis.server.http.messages import Header, Response

__all__ = ["problems_json", "refusal"]

_RETRY_AFTER: Header = ("retry-after", "1")


def refusal(error: AegisError) -> Response:
    """The response to a request that is refused."""
    members: dict[str, Any] = {"error": str(error), "code": error.code}
    headers: tuple[Header, ...] = ()
    if isinstance(error, RequestError):
        headers = error.headers
    if isinstance(error, PolicyError):
        members["error"] = f"the policy is refused: {error}"
        members["problems"] = problems_json(error.problems)
    if error.status == 503:
        headers = (*headers, _RETRY_AFTER)
    return Response(error.status, headers, dumps(members))


def problems_json(problems: Iterable[Any]) -> list[dict[str, Any]]:
    """Problems or warnings of a policy, as answers and commands show them."""
    return [
        {
            "line": problem.line,
            "rule": problem.rule,
            "key": problem.key,
            "message": problem.message,
        }
        for problem in problems
    ]
