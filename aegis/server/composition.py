"""Puts the server together from settings: nothing else constructs its parts."""

from __future__ import annotations

import uuid

from aegis.auth.keys import environment_keys
from aegis.auth.ring import KeyRing
from aegis.auth.roles import Permission
from aegis.config import AuditDecisions, Settings
from aegis.execution.decide import ActionService
from aegis.execution.executors import Executor, NoOpExecutor
from aegis.host.memory import SharedBytes
from aegis.policy.compile_process import YAML_TYPES
from aegis.policy.compiled_cache import PolicyText
from aegis.server.api.agents import Api
from aegis.server.api.operators import Admin
from aegis.server.http.app import App
from aegis.server.http.gate import Gate
from aegis.server.http.lifecycle import Lifecycle
from aegis.server.http.messages import Handler
from aegis.server.http.routing import Route, RouteTable
from aegis.server.openapi import spec
from aegis.server.service import Service, Workers

__all__ = ["build_app"]

_JSON_TYPES = frozenset(("application/json", "text/json"))


def build_app(
    settings: Settings,
    *,
    file: PolicyText | None,
    executor: Executor | None = None,
    session_id: str | None = None,
    server: Workers | None = None,
    known_keys: SharedBytes | None = None,
) -> App:
    """Build the server from settings; `create_app` is the door for everybody else.

    Args:
        settings: Limits and keys.
        file: The policy file; None: the version in force in the database.
        executor: Does the actions.
        session_id: Of actions that name none; the same for all workers of a server.
        server: Of the `aegis serve` whose worker this is.
        known_keys: What its workers know of the keys file.
    """
    fixed = environment_keys(settings.api_key, settings.admin_key)
    keys = KeyRing(fixed, settings.keys, shared=known_keys)
    service = Service(
        settings, file, executor or NoOpExecutor(), session_id or uuid.uuid4().hex, server, keys
    )
    api = Api(
        settings,
        ActionService(
            service.decisions.snapshot,
            service.decider,
            service.enforcer,
            settings.audit_decisions,
        ),
        service.audit,
        service.reader,
        service.notices,
    )
    admin = Admin(
        deepest=settings.max_nesting,
        snapshot=service.decisions.snapshot,
        history=service.history,
        changes=service,
    )

    async def close() -> None:
        admin.close()
        await service.close()

    lifecycle = Lifecycle(service.open, service.stop, close, service.reload_files)
    routes = _probes(api) | _agent_routes(settings, api) | _operator_routes(settings, admin)
    return App(
        RouteTable(routes),
        Gate(settings, keys),
        lifecycle,
        body_timeout_s=settings.body_timeout,
    )


def _probes(api: Api) -> dict[tuple[str, str], Route]:
    health = Route("health", api.health, None, needs_service=False)
    live = Route("live", api.live, None, needs_service=False)
    ready = Route("ready", api.ready, None)
    return {
        ("GET", "/health"): health,
        ("GET", "/api/v1/health"): health,
        ("GET", "/health/live"): live,
        ("GET", "/healthz"): live,
        ("GET", "/health/ready"): ready,
        ("GET", "/readyz"): ready,
    }


def _agent_routes(settings: Settings, api: Api) -> dict[tuple[str, str], Route]:
    """What agents and auditors call."""
    body = settings.max_body_bytes
    decide, read = Permission.DECIDE, Permission.READ
    describe = spec.handler(settings)
    evaluate: Handler = api.evaluate
    if settings.audit_decisions is not AuditDecisions.NONE:
        evaluate = api.evaluate_recorded
    return {
        ("GET", "/openapi.json"): Route(
            "openapi", describe, Permission.DESCRIBE, needs_service=False
        ),
        ("POST", "/api/v1/evaluate"): Route("evaluate", evaluate, decide, body),
        ("POST", "/api/v1/execute"): Route("execute", api.execute, decide, body),
        ("GET", "/api/v1/audit"): Route("audit", api.audit, read),
        ("GET", "/api/v1/audit/head"): Route("audit_head", api.audit_head, read),
    }


def _operator_routes(settings: Settings, admin: Admin) -> dict[tuple[str, str], Route]:
    """What operators call."""
    body = settings.max_body_bytes
    read, change = Permission.READ, Permission.CHANGE_POLICY
    put_policy = Route(
        "put_policy",
        admin.put_policy,
        change,
        settings.max_policy_bytes,
        limit_option="",
        media_types=_JSON_TYPES | YAML_TYPES,
        takes_query=True,
    )
    return {
        ("GET", "/api/v1/policy"): Route("policy", admin.policy, read),
        ("PUT", "/api/v1/policy"): put_policy,
        ("POST", "/api/v1/policy/rollback"): Route("rollback", admin.rollback, change, body),
        ("POST", "/api/v1/policy/reload"): Route("reload", admin.reload, change, body),
        ("GET", "/api/v1/policy/versions"): Route("policy_versions", admin.versions, read),
        ("GET", "/api/v1/policy/versions/{version}"): Route("policy_version", admin.version, read),
    }
