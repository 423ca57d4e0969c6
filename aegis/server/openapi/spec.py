"""The API's description, in OpenAPI 3.1."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from aegis._version import __version__
from aegis.codec import dumps
from aegis.config import Settings
from aegis.server.http.messages import Request, Response
from aegis.server.openapi.paths import OPERATIONS
from aegis.server.openapi.policy_schemas import POLICY_SCHEMAS
from aegis.server.openapi.schemas import AUDIT_SCHEMAS, ERROR_SCHEMAS, HEALTH, action_schemas
from aegis.server.openapi.terms import Schema

__all__ = ["document", "handler"]


def document(settings: Settings) -> Schema:
    """The description of a server.

    Args:
        settings: Its limits, and whether it asks for keys.

    Source: OpenAPI 3.1.1.
    """
    keyed: list[Schema] = [] if settings.is_keyless else [{"ApiKey": []}, {"Bearer": []}]
    paths: dict[str, Schema] = {}
    for (method, path), operation in OPERATIONS.items():
        of_keys = {} if "security" in operation else {"security": keyed}
        paths.setdefault(path, {})[method.lower()] = operation | of_keys
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Aegis",
            "version": __version__,
            "description": "Decides by a policy what AI agents may do, executes it, and keeps an audit.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {
            "schemas": {
                **action_schemas(settings),
                **AUDIT_SCHEMAS,
                **POLICY_SCHEMAS,
                "Health": HEALTH,
                **ERROR_SCHEMAS,
            },
            "securitySchemes": {
                "ApiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
                "Bearer": {"type": "http", "scheme": "bearer"},
            },
        },
    }


def handler(settings: Settings) -> Callable[[Request], Response]:
    """What answers `GET /openapi.json`."""

    @cache
    def written() -> bytes:
        return dumps(document(settings))

    def openapi(_request: Request) -> Response:
        return Response(200, (), written())

    return openapi
