"""The operations of the API; they mirror the table of routes."""

from __future__ import annotations

from typing import Any

from aegis.audit.filters import MAX_ID, MAX_LIMIT
from aegis.server.api.operators import MAX_NOTE, MAX_VERSIONS
from aegis.server.openapi.errors import ERRORS
from aegis.server.openapi.terms import (
    ANY_CASE,
    ANYTHING,
    ID,
    OPERATION,
    STATUS,
    TEXT,
    Schema,
    list_of,
    ref,
)

__all__ = ["OPERATIONS"]

_REQUEST_ID = {
    "X-Request-Id": {
        "description": "Echoed if the request has one of at most 128 visible characters.",
        "required": True,
        "schema": {"type": "string", "pattern": "^[!-~]{1,128}$"},
    }
}
_POLICY_VERSION = {
    "X-Aegis-Policy-Version": {
        "description": "The version of the policy that decided.",
        "required": True,
        "schema": {"type": "integer", "minimum": 1},
    }
}
_ERROR_HEADERS: dict[int, Schema] = {
    401: {"WWW-Authenticate": {"required": True, "schema": {"const": "Bearer"}}},
    405: {"Allow": {"required": True, "schema": TEXT}},
    503: {
        "Retry-After": {"description": "Seconds.", "required": True, "schema": {"type": "integer"}}
    },
}


_ETAG = {
    "ETag": {
        "description": "The version in quotes, for `If-Match` and `If-None-Match`.",
        "required": True,
        "schema": {"type": "string", "pattern": '^"[1-9][0-9]*"$'},
    }
}


def _answer(
    description: str,
    schema: Schema,
    *,
    versioned: bool = False,
    tagged: bool = False,
    lines: Schema | None = None,
) -> Schema:
    headers = _REQUEST_ID | (_POLICY_VERSION if versioned else {}) | (_ETAG if tagged else {})
    content = {"application/json": {"schema": schema}}
    if lines is not None:
        content["application/x-ndjson"] = {"schema": lines}
    return {"description": description, "headers": headers, "content": content}


def _unchanged(headers: Schema) -> Schema:
    """The response to a client that has the representation already."""
    return {
        "304": {
            "description": "The client has it already.",
            "headers": _REQUEST_ID | _ETAG | headers,
        }
    }


def _refusals(*statuses: int) -> Schema:
    return {
        str(status): {
            "description": ERRORS[status][0],
            "headers": _REQUEST_ID | _ERROR_HEADERS.get(status, {}),
            "content": {"application/json": {"schema": ref(f"Error{status}")}},
        }
        for status in sorted({*statuses, 400, 403, 431, 500})
    }


def _one_or_list(name: str) -> Schema:
    return {"oneOf": [ref(name), list_of(name)]}


def _asking(name: str, summary: str, operation_id: str, *refusals: int, **more: Any) -> Schema:
    return {
        "operationId": operation_id,
        "summary": summary,
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": ref("Actions"),
                    "example": {"action_type": "delete", "target": "prod-db"},
                }
            },
        },
        "responses": {
            "200": _answer(
                "For one action an object, for several a list.", _one_or_list(name), versioned=True
            ),
            **_refusals(400, 401, 408, 413, 415, 503, *refusals),
        },
        **more,
    }


def _parameter(name: str, schema: Schema, description: str) -> Schema:
    return {
        "name": name,
        "in": "query",
        "required": False,
        "allowEmptyValue": True,
        "schema": schema,
        "description": description,
    }


_AUDIT_PARAMETERS = [
    _parameter("session_id", TEXT, "Of this session."),
    _parameter("action_type", TEXT, "Of this type."),
    _parameter("risk_level", ANY_CASE, "Of this risk level."),
    _parameter("result_status", STATUS, "With this outcome."),
    _parameter("agent_id", TEXT, "By this agent."),
    _parameter("matched_rule", TEXT, "Decided by this rule."),
    _parameter("operation", OPERATION, "Executed, only evaluated, or imported."),
    _parameter("since", {"type": "string", "format": "date-time"}, "At or after this moment."),
    _parameter("until", {"type": "string", "format": "date-time"}, "At or before this moment."),
    _parameter("after", ID, "With a larger id."),
    _parameter("before", ID, "With a smaller id."),
    _parameter(
        "since_seq", ID, "That have got a link after this one; they come in the order of `seq`."
    ),
    _parameter(
        "limit",
        {"type": "integer", "minimum": 0, "maximum": MAX_LIMIT},
        "The newest so many of them; with `after` or `since_seq`, the first so many after it.",
    ),
]

_IDEMPOTENCY_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "schema": {"type": "string", "pattern": "^[!-~]{1,255}$"},
    "description": "Made up by the client for this request. If it comes again within 24 hours,"
    " nothing is executed, and the answer is that of the first time, as the audit has it.",
}

_IF_NONE_MATCH = {
    "name": "If-None-Match",
    "in": "header",
    "required": False,
    "schema": TEXT,
    "description": 'What the client has: the `ETag` of an earlier response, as in `"7"`.',
}

_IF_MATCH = {
    "name": "If-Match",
    "in": "header",
    "required": False,
    "schema": TEXT,
    "description": 'The version that this change follows, in quotes as in `"7"`, or `*`.',
}


def _health(operation_id: str, summary: str, *refusals: int) -> Schema:
    return {
        "operationId": operation_id,
        "summary": summary,
        "security": [{}],
        "responses": {"200": _answer("It is.", ref("Health")), **_refusals(*refusals)},
    }


OPERATIONS: dict[tuple[str, str], Schema] = {
    ("GET", "/health"): _health("health", "The release that answers"),
    ("GET", "/health/live"): _health("live", "Whether the process answers"),
    ("GET", "/health/ready"): _health("ready", "Whether it can decide and record", 503),
    ("GET", "/healthz"): _health("healthz", "The same as /health/live"),
    ("GET", "/readyz"): _health("readyz", "The same as /health/ready", 503),
    ("GET", "/api/v1/health"): _health("apiHealth", "The same as /health"),
    ("GET", "/openapi.json"): {
        "operationId": "openapi",
        "summary": "This description",
        "responses": {
            "200": _answer("OpenAPI 3.1.", {"type": "object", "additionalProperties": ANYTHING}),
            **_refusals(401),
        },
    },
    ("POST", "/api/v1/evaluate"): _asking("Decision", "Decide, without executing", "evaluate"),
    ("POST", "/api/v1/execute"): _asking(
        "Result",
        "Decide, approve, execute, audit",
        "execute",
        409,
        504,
        description="A batch runs in order, one after the other; each action has its own outcome.",
        parameters=[_IDEMPOTENCY_KEY],
    ),
    ("GET", "/api/v1/audit"): {
        "operationId": "audit",
        "summary": "Audit records, oldest first",
        "parameters": _AUDIT_PARAMETERS,
        "responses": {
            "200": _answer(
                "Those that fit all parameters; as JSON lines if the client accepts those.",
                list_of("AuditRecord"),
                lines=ref("AuditRecord"),
            ),
            **_refusals(400, 401, 503),
        },
    },
    ("GET", "/api/v1/audit/head"): {
        "operationId": "auditHead",
        "summary": "The newest entry of the audit's chain, to keep elsewhere",
        "responses": {"200": _answer("It.", ref("AuditHead")), **_refusals(401, 503)},
    },
    ("GET", "/api/v1/policy"): {
        "operationId": "policy",
        "summary": "The policy in force",
        "parameters": [_IF_NONE_MATCH],
        "responses": {
            "200": _answer("It.", ref("PolicyInForce"), versioned=True, tagged=True),
            **_unchanged(_POLICY_VERSION),
            **_refusals(401, 503),
        },
    },
    ("PUT", "/api/v1/policy"): {
        "operationId": "putPolicy",
        "summary": "Change the policy",
        "description": "When this answers, every worker decides by the new policy.",
        "parameters": [
            _IF_MATCH,
            _parameter("note", {**TEXT, "maxLength": MAX_NOTE}, "What to say about it."),
        ],
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {
                        "anyOf": [
                            ref("PolicySource"),
                            ref("PolicyRules"),
                            ref("PolicyDefaults"),
                        ]
                    },
                    "example": {
                        "rules": [{"name": "reads", "match": {"type": "read*"}, "approval": "auto"}]
                    },
                },
                "application/yaml": {"schema": ref("PolicyDocument")},
            },
        },
        "responses": {
            "200": _answer("It is in force.", ref("PolicyUpdated"), versioned=True, tagged=True),
            **_refusals(400, 401, 408, 412, 413, 415, 503),
        },
    },
    ("GET", "/api/v1/policy/versions"): {
        "operationId": "policyVersions",
        "summary": "All versions of the policy, newest first",
        "parameters": [
            _IF_NONE_MATCH,
            _parameter("before", ID, "With a smaller number."),
            _parameter(
                "limit",
                {"type": "integer", "minimum": 0, "maximum": MAX_VERSIONS},
                "The newest so many of them; the most if it is left out.",
            ),
        ],
        "responses": {
            "200": _answer("The first is in force.", list_of("PolicyVersion"), tagged=True),
            **_unchanged({}),
            **_refusals(400, 401, 503),
        },
    },
    ("GET", "/api/v1/policy/versions/{version}"): {
        "operationId": "policyVersion",
        "summary": "One version, with its text",
        "parameters": [
            _IF_NONE_MATCH,
            {
                "name": "version",
                "in": "path",
                "required": True,
                "schema": {"type": "integer", "minimum": 1, "maximum": MAX_ID},
            },
        ],
        "responses": {
            "200": _answer("It.", ref("PolicyVersionWithSource"), tagged=True),
            **_unchanged({}),
            **_refusals(401, 404, 503),
        },
    },
    ("POST", "/api/v1/policy/reload"): {
        "operationId": "reloadPolicy",
        "summary": "Load the policy file again",
        "description": "A file that has not changed since it was last loaded changes nothing.",
        "responses": {
            "200": _answer("It is in force.", ref("PolicyUpdated"), versioned=True, tagged=True),
            **_refusals(400, 401, 404, 408, 413, 415, 503),
        },
    },
    ("POST", "/api/v1/policy/rollback"): {
        "operationId": "rollbackPolicy",
        "summary": "Put an earlier version into force again, as a new one",
        "parameters": [_IF_MATCH],
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": ref("Rollback"), "example": {"version": 1}}},
        },
        "responses": {
            "200": _answer("It is in force.", ref("PolicyUpdated"), versioned=True, tagged=True),
            **_refusals(400, 401, 404, 408, 412, 413, 415, 503),
        },
    },
}
"""What answers each (method, path), as the route table has it."""
