"""The table of routes: what answers each method on each path."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from aegis.auth.roles import Permission
from aegis.errors import MethodNotAllowed, NotFound
from aegis.messages import quote
from aegis.server.http.messages import NO_PARAMETERS, Handler, Request, Response

__all__ = ["UNMATCHED", "Route", "RouteTable"]


@dataclass(frozen=True, slots=True)
class Route:
    """What answers a method on a path.

    Attributes:
        name: Of what it answers, for metrics and logs; several paths may share it.
        handler: Answers.
        permission: What a key must have to call it; None: no key is needed, and anyone may from
            anywhere.
        max_body_bytes: 0: it takes no body, and changes nothing.
        limit_option: What sets that limit; empty: nothing does.
        media_types: What its body may be declared as, besides types that end in `+json`.
        needs_service: Whether policy and audit must be open.
        takes_query: Whether it takes a query string besides its body.
    """

    name: str
    handler: Handler
    permission: Permission | None
    max_body_bytes: int = 0
    limit_option: str = "--max-body-bytes"
    media_types: frozenset[str] = frozenset(("application/json", "text/json"))
    needs_service: bool = True
    takes_query: bool = False


def _refuse(_: Request) -> Response:
    raise NotFound("no such path")


UNMATCHED = Route("unmatched", _refuse, Permission.DESCRIBE, needs_service=False)
"""The route of a request that has none; those that the table makes have its name."""


class RouteTable:
    """Finds routes: by a look-up of method and path, or by templates of paths.

    A template has names in braces as whole segments, as in `/versions/{version}`; each of them
    matches one segment that is not empty. HEAD is answered wherever GET is.

    Args:
        routes: By method, and path or template.

    Attributes:
        by_path: The routes of paths without braces, by method and path.
        all: The routes of all paths and templates.
    """

    def __init__(self, routes: Mapping[tuple[str, str], Route]) -> None:
        self.all = dict(routes)
        for (method, path), route in routes.items():
            if method == "GET":
                self.all.setdefault(("HEAD", path), route)
        self.by_path = {key: route for key, route in self.all.items() if "{" not in key[1]}
        self._paths = {path for _, path in self.by_path}
        templates = {path for _, path in self.all if "{" in path}
        self._templates = [(path, path.split("/")) for path in sorted(templates)]

    def match(self, method: str, path: str, root: str = "") -> tuple[Route, Mapping[str, str]]:
        """The route of a request, and the values of its template's names.

        Args:
            method: Of the request.
            path: Of the request.
            root: Where the application is mounted below another one.
        """
        if root and path.startswith(root):
            path = path[len(root) :]
        known, parameters = self._find(path)
        route = self.all.get((method, known))
        if route is None:
            return self._unmatched(method, known), NO_PARAMETERS
        return route, parameters

    def _find(self, path: str) -> tuple[str, Mapping[str, str]]:
        """The path as the table has it, and the values of its names."""
        if path in self._paths:
            return path, NO_PARAMETERS
        segments = path.split("/")
        for template, names in self._templates:
            if len(names) == len(segments) and all(
                name == segment or (name[:1] == "{" and segment)
                for name, segment in zip(names, segments, strict=True)
            ):
                pairs = zip(names, segments, strict=True)
                return template, {name[1:-1]: text for name, text in pairs if name[:1] == "{"}
        return path, NO_PARAMETERS

    def _unmatched(self, method: str, path: str) -> Route:
        """The route that refuses a method or a path that the table does not have."""
        of_path = {known: route for (known, of), route in self.all.items() if of == path}

        def refuse(_: Request) -> Response:
            if not of_path:
                raise NotFound(f"no such path: {quote(path)}")
            allowed = ", ".join(sorted(of_path))
            raise MethodNotAllowed(
                f"{quote(method)} is not allowed here; use {allowed}", headers=(("allow", allowed),)
            )

        # A caller without permission learns that, and nothing about which paths exist.
        is_open = any(route.permission is None for route in of_path.values())
        permission = None if is_open else Permission.DESCRIBE
        return Route(UNMATCHED.name, refuse, permission, needs_service=False)
