"""The API's description, in OpenAPI 3.1; its table of operations mirrors that of the routes."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from aegis._version import __version__
from aegis.audit import RECORD_SCHEMA, Operation, ResultStatus
from aegis.audit.filters import LARGEST_ID, LARGEST_LIMIT
from aegis.codec import dumps
from aegis.config import Settings
from aegis.server.api.operators import LONGEST_NOTE, MOST_VERSIONS
from aegis.server.http.messages import Request, Response
from aegis_core import Approval, RiskLevel

__all__ = ["ERRORS", "document", "handler"]

Schema = dict[str, Any]

ERRORS: dict[int, tuple[str, tuple[str, ...]]] = {
    400: (
        "The request is refused: what is wrong, and where.",
        (
            "invalid_json",
            "invalid_body",
            "invalid_host",
            "invalid_query",
            "invalid_policy",
            "invalid_idempotency_key",
        ),
    ),
    401: ("No key, or not a good one.", ("unauthorized",)),
    403: (
        "The key may not do this; without keys: the caller is not on this machine.",
        ("forbidden", "forbidden_agent", "foreign_host", "foreign_origin", "not_local"),
    ),
    404: ("No such path, or no such version.", ("not_found",)),
    405: ("No such method on this path.", ("method_not_allowed",)),
    408: ("The body did not arrive in time.", ("body_timeout",)),
    409: (
        "It contradicts an earlier request of the same `Idempotency-Key`, that one still runs, or what"
        " became of it was archived.",
        ("idempotency_key_reused", "request_in_progress", "request_archived"),
    ),
    412: ("Another change came first.", ("precondition_failed",)),
    413: ("The body is over its limit.", ("body_too_large",)),
    415: (
        "The body is declared as something else, or encoded.",
        ("unsupported_media_type",),
    ),
    431: ("The headers are over their limit.", ("headers_too_large",)),
    500: ("A defect of the server.", ("internal_error",)),
    503: (
        "Not now: policy or audit are not available.",
        ("not_ready", "store_unavailable", "audit_unavailable", "audit_busy"),
    ),
    504: ("Actions were executed, but not recorded in time.", ("outcome_unknown",)),
}
"""What each status of a refusal means, and the codes that it has."""

# Whoever generates a client from this wants plain objects: no schema here is `true` or `false`, which
# some generators cannot read, and every open mapping says so, which others take for an empty one.
_ANYTHING: Schema = {}
_TEXT: Schema = {"type": "string"}
_TEXT_OR_NULL: Schema = {"type": ["string", "null"]}
_RISK = {"type": "string", "enum": [level.name for level in RiskLevel]}
_APPROVAL = {"type": "string", "enum": [approval.value for approval in Approval]}
_STATUS = {"type": "string", "enum": [status.value for status in ResultStatus]}
_OPERATION = {"type": "string", "enum": [operation.value for operation in Operation]}
_INT64 = {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1}
_ID = {"type": "integer", "minimum": 0, "maximum": LARGEST_ID}
_SHA256 = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
_NOT_NULL: Schema = {  # not recursive: generators cannot read that
    "anyOf": [
        {"type": ["number", "boolean", "string"]},
        {"type": "array", "items": _ANYTHING},
        {"type": "object", "additionalProperties": _ANYTHING},
    ]
}


def _object(properties: Schema, *, optional: tuple[str, ...] = (), description: str = "") -> Schema:
    """An object that has just these members, all but the optional ones always."""
    schema: Schema = {
        "type": "object",
        "properties": properties,
        "required": [name for name in properties if name not in optional],
        "additionalProperties": False,
    }
    return {"description": description, **schema} if description else schema


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _list_of(name: str, **limits: int) -> Schema:
    return {"type": "array", "items": _ref(name), **limits}


_KIND: Schema = {"type": "string", "minLength": 1}
_ACTION_MEMBERS: Schema = {
    "target": {
        **_TEXT,
        "description": "What it is done to, as in `prod-db`; empty where left out.",
    },
    "params": {
        "type": ["object", "null"],
        "additionalProperties": _ANYTHING,
        "description": "Its parameters.",
    },
    "description": {**_TEXT_OR_NULL, "description": "For the audit."},
    "agent_id": {**_TEXT_OR_NULL, "description": "Who wants it."},
    "session_id": {**_TEXT_OR_NULL, "description": "The server's own where it is left out."},
    "parent_agent_id": {**_TEXT_OR_NULL, "description": "Who asked that agent to."},
    "chain_id": {**_TEXT_OR_NULL, "description": "The delegation that it belongs to."},
    "chain_depth": {
        "anyOf": [_INT64, {"type": "null"}],
        "description": "How deep in that delegation; 0 where it is left out.",
    },
}
_NO_BATCH: Schema = {"required": ["actions"]}

_ACTION: Schema = {
    "type": "object",
    "description": "What an agent is about to do. Members that are not known are ignored, and null"
    " stands for a member that is left out.",
    "properties": {
        "action_type": {**_KIND, "description": "The kind of operation, as in `delete`."},
        "type": {"description": "The same; counts where `action_type` is left out."},
        **_ACTION_MEMBERS,
    },
    "required": ["action_type"],
    "not": _NO_BATCH,
}

_ACTION_BY_TYPE: Schema = {
    "type": "object",
    "description": "An action whose kind is called `type`.",
    "properties": {
        "type": {**_KIND, "description": "The kind of operation, as in `delete`."},
        "action_type": {"type": "null"},
        **_ACTION_MEMBERS,
    },
    "required": ["type"],
    "not": _NO_BATCH,
}

_MAPPING_TO = "Of parameter names to values."
_CONDITIONS: Schema = {
    "type": "object",
    "description": "All must hold.",
    "properties": {
        "time_after": {"type": "string", "pattern": "^([01]?[0-9]|2[0-3]):[0-5][0-9]$"},
        "time_before": {"type": "string", "pattern": "^([01]?[0-9]|2[0-3]):[0-5][0-9]$"},
        "timezone": {
            "type": "string",
            "format": "time-zone",
            "description": "As in `Europe/Paris`.",
        },
        "weekdays": {
            "type": "array",
            "items": {"type": "integer", "minimum": 1, "maximum": 7},
            "description": "1 is Monday.",
        },
        "param_eq": {
            "type": "object",
            "additionalProperties": _NOT_NULL,
            "description": _MAPPING_TO,
        },
        **{
            f"param_{name}": {
                "type": "object",
                "additionalProperties": {"anyOf": [{"type": "number"}, _TEXT]},
                "description": _MAPPING_TO,
            }
            for name in ("gt", "lt", "gte", "lte")
        },
        "param_contains": {
            "type": "object",
            "additionalProperties": _NOT_NULL,
            "description": _MAPPING_TO,
        },
        "param_matches": {
            "type": "object",
            "additionalProperties": {"type": "string", "format": "re2"},
            "description": "Of parameter names to regular expressions in RE2's syntax.",
        },
    },
    "additionalProperties": False,
}

_ANY_CASE = {
    "type": "string",
    "pattern": "^([lL][oO][wW]|[mM][eE][dD][iI][uU][mM]|[hH][iI][gG][hH]|[cC][rR][iI][tT][iI][cC][aA][lL])$",
}

_RULE: Schema = {
    "type": "object",
    "properties": {
        "name": _TEXT,
        "description": _TEXT,
        "match": {
            "type": "object",
            "properties": {
                name: {**_TEXT, "description": "`*` where left out."}
                for name in ("type", "target", "agent")
            },
            "additionalProperties": False,
        },
        "risk_level": {**_ANY_CASE, "description": "`medium` where left out."},
        "approval": {**_APPROVAL, "description": "`approve` where left out."},
        "conditions": _ref("Conditions"),
    },
    "additionalProperties": False,
}

_DOCUMENT_MEMBERS: Schema = {
    "version": {"anyOf": [{"type": "string", "enum": ["1"]}, {"type": "integer", "enum": [1]}]},
    "defaults": {
        "type": ["object", "null"],
        "properties": {"risk_level": _ANY_CASE, "approval": _APPROVAL},
        "additionalProperties": False,
    },
    "rules": {"type": ["array", "null"], "items": _ref("Rule")},
    "scope": _TEXT,
    "scope_id": _TEXT,
    "description": _TEXT,
}


def _document_with(*required: str) -> Schema:
    return {
        "type": "object",
        "properties": _DOCUMENT_MEMBERS,
        "patternProperties": {"^x-": _ANYTHING},
        "additionalProperties": False,
        "required": list(required),
    }


_VERSION_MEMBERS: Schema = {
    "version": {"type": "integer", "minimum": 1},
    "sha256": _SHA256,
    "origin": {"type": "string", "enum": ["file", "put", "rollback"]},
    "created": {"type": "string", "format": "date-time"},
    "key_name": {**_TEXT_OR_NULL, "description": "Whose key put it."},
    "note": {**_TEXT_OR_NULL, "description": "What was said about it."},
}


def _schemas(settings: Settings) -> Schema:
    one: Schema = {"anyOf": [_ref("Action"), _ref("ActionByType")]}
    batch: Schema = {"type": "array", "items": one, "maxItems": settings.largest_batch}
    return {
        "Action": _ACTION,
        "ActionByType": _ACTION_BY_TYPE,
        "Batch": {
            "type": "object",
            "description": "Several actions.",
            "properties": {"actions": batch},
            "required": ["actions"],
        },
        "Actions": {
            "description": "One action, or several: as a list, or under `actions`.",
            "anyOf": [_ref("Action"), _ref("ActionByType"), _ref("Batch"), batch],
        },
        "Decision": _object(
            {
                "action_type": _TEXT,
                "target": _TEXT,
                "risk_level": _RISK,
                "approval": _APPROVAL,
                "is_allowed": {"type": "boolean", "description": "False where it is blocked."},
                "matched_rule": {**_TEXT, "description": "`<default>` where no rule matches."},
                "error": {**_TEXT, "description": "Why the rule could not be judged."},
            },
            optional=("error",),
        ),
        "Result": _object(
            {
                "action_type": _TEXT,
                "target": _TEXT,
                "status": _STATUS,
                "data": {"description": "What the executor gave."},
                "error": _TEXT_OR_NULL,
            }
        ),
        "AuditRecord": _object(RECORD_SCHEMA),
        "AuditHead": _object(
            {
                "id": {**_ID, "description": "The number of the newest entry."},
                "hash": _SHA256,
                "count": _ID,
                "signed_at": {"type": "string", "format": "date-time"},
                "signature": {**_TEXT, "description": "Ed25519, in base64."},
                "public_key": {**_TEXT, "description": "In base64."},
            },
            optional=("signed_at", "signature", "public_key"),
        ),
        "Conditions": _CONDITIONS,
        "Rule": _RULE,
        "PolicySource": {
            "type": "object",
            "description": "A policy file as text.",
            "properties": {"yaml": {"type": "string", "format": "policy"}},
            "required": ["yaml"],
            "not": {"anyOf": [{"required": ["rules"]}, {"required": ["defaults"]}]},
        },
        "PolicyRules": _document_with("rules"),
        "PolicyDefaults": _document_with("defaults"),
        "PolicyDocument": {
            **_document_with(),
            "type": ["object", "null"],
            "description": "A policy file; an empty one has nothing but the defaults.",
        },
        "PolicyInForce": _object(
            {
                "default_risk_level": _RISK,
                "default_approval": _APPROVAL,
                "rules": {
                    "type": "array",
                    "items": _object(
                        {
                            "name": _TEXT,
                            "match_type": _TEXT,
                            "match_target": _TEXT,
                            "match_agent": _TEXT,
                            "risk_level": _RISK,
                            "approval": _APPROVAL,
                            "conditions": {
                                "type": "object",
                                "additionalProperties": _ANYTHING,
                            },
                        }
                    ),
                },
                **_VERSION_MEMBERS,
                "source": {**_TEXT, "description": "The policy's text."},
            }
        ),
        "PolicyVersion": _object(_VERSION_MEMBERS),
        "PolicyVersionWithSource": _object(
            {**_VERSION_MEMBERS, "source": {**_TEXT, "description": "The policy's text."}}
        ),
        "Rollback": {
            "type": "object",
            "properties": {
                "version": {"type": "integer", "minimum": 1, "maximum": 2**63 - 1},
                "note": {**_TEXT_OR_NULL, "maxLength": LONGEST_NOTE},
            },
            "required": ["version"],
        },
        "PolicyUpdated": _object(
            {
                "status": {"const": "updated"},
                "changed": {
                    "type": "boolean",
                    "description": "False where this was in force already.",
                },
                "rule_count": {"type": "integer", "minimum": 0},
                "version": {"type": "integer", "minimum": 1},
                "sha256": _SHA256,
                "workers": {
                    "type": "integer",
                    "minimum": 1,
                    "description": "How many processes have it at hand.",
                },
                "warnings": _list_of("Problem"),
            }
        ),
        "Problem": _object(
            {
                "line": {"type": ["integer", "null"], "minimum": 1},
                "rule": _TEXT_OR_NULL,
                "key": _TEXT,
                "message": _TEXT,
            },
            description="One thing that is wrong with a policy, or odd about it.",
        ),
        "Health": _object(
            {
                "status": {"const": "ok"},
                "version": _TEXT,
                "policy_file": _object(
                    {
                        "failures": {
                            "type": "integer",
                            "minimum": 1,
                            "description": "How often it could not be loaded since the start.",
                        },
                        "error": {**_TEXT_OR_NULL, "description": "Why it cannot be now."},
                    },
                    description="Where it could not be loaded; the policy in force stays.",
                ),
                "keys_file": _object(
                    {
                        "failures": {"type": "integer", "minimum": 1},
                        "error": {**_TEXT_OR_NULL, "description": "Why it is refused now."},
                    },
                    description="Where it was refused; the keys before it stay in force.",
                ),
                "workers": _object(
                    {
                        "running": {"type": "integer", "minimum": 0},
                        "expected": {"type": "integer", "minimum": 1},
                        "error": _TEXT,
                    },
                    description="Where not all of them run; those that do answer.",
                ),
            },
            optional=("version", "policy_file", "keys_file", "workers"),
        ),
        **{
            f"Error{status}": _object(
                {
                    "error": {**_TEXT, "minLength": 1},
                    "code": {"type": "string", "enum": list(codes)},
                    **({"problems": _list_of("Problem")} if status == 400 else {}),
                },
                optional=("problems",),
                description=said,
            )
            for status, (said, codes) in ERRORS.items()
        },
    }


_REQUEST_ID = {
    "X-Request-Id": {
        "description": "Echoed where one of at most 128 visible characters is sent.",
        "required": True,
        "schema": {"type": "string", "pattern": "^[!-~]{1,128}$"},
    }
}
_POLICY_VERSION = {
    "X-Aegis-Policy-Version": {
        "description": "The version of the policy that was asked.",
        "required": True,
        "schema": {"type": "integer", "minimum": 1},
    }
}
_ERROR_HEADERS: dict[int, Schema] = {
    401: {"WWW-Authenticate": {"required": True, "schema": {"const": "Bearer"}}},
    405: {"Allow": {"required": True, "schema": _TEXT}},
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
            "content": {"application/json": {"schema": _ref(f"Error{status}")}},
        }
        for status in sorted({*statuses, 400, 403, 431, 500})
    }


def _one_or_list(name: str) -> Schema:
    return {"oneOf": [_ref(name), _list_of(name)]}


def _asking(name: str, summary: str, operation_id: str, *refusals: int, **more: Any) -> Schema:
    return {
        "operationId": operation_id,
        "summary": summary,
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": _ref("Actions"),
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
    _parameter("session_id", _TEXT, "Of this session."),
    _parameter("action_type", _TEXT, "Of this type."),
    _parameter("risk_level", _ANY_CASE, "Of this risk level."),
    _parameter("result_status", _STATUS, "With this outcome."),
    _parameter("agent_id", _TEXT, "By this agent."),
    _parameter("matched_rule", _TEXT, "Decided by this rule."),
    _parameter("operation", _OPERATION, "Executed, only evaluated, or imported."),
    _parameter("since", {"type": "string", "format": "date-time"}, "At or after this moment."),
    _parameter("until", {"type": "string", "format": "date-time"}, "At or before this moment."),
    _parameter("after", _ID, "With a larger id."),
    _parameter("before", _ID, "With a smaller id."),
    _parameter(
        "since_seq", _ID, "That have got a link after this one; they come in the order of `seq`."
    ),
    _parameter(
        "limit",
        {"type": "integer", "minimum": 0, "maximum": LARGEST_LIMIT},
        "The newest so many of them; with `after` or `since_seq`, the first so many after it.",
    ),
]

_IDEMPOTENCY_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "schema": {"type": "string", "pattern": "^[!-~]{1,255}$"},
    "description": "Made up by the client for this request. Where it comes again within 24 hours,"
    " nothing is executed, and the answer is that of the first time, as the audit has it.",
}

_IF_NONE_MATCH = {
    "name": "If-None-Match",
    "in": "header",
    "required": False,
    "schema": _TEXT,
    "description": 'What the client has: the `ETag` of an earlier response, as in `"7"`.',
}

_IF_MATCH = {
    "name": "If-Match",
    "in": "header",
    "required": False,
    "schema": _TEXT,
    "description": 'The version that this change follows, in quotes as in `"7"`, or `*`.',
}


def _health(operation_id: str, summary: str, *refusals: int) -> Schema:
    return {
        "operationId": operation_id,
        "summary": summary,
        "security": [{}],
        "responses": {"200": _answer("It is.", _ref("Health")), **_refusals(*refusals)},
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
            "200": _answer("OpenAPI 3.1.", {"type": "object", "additionalProperties": _ANYTHING}),
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
        description="A batch runs in order, one after the other; each action stands alone.",
        parameters=[_IDEMPOTENCY_KEY],
    ),
    ("GET", "/api/v1/audit"): {
        "operationId": "audit",
        "summary": "Audit records, oldest first",
        "parameters": _AUDIT_PARAMETERS,
        "responses": {
            "200": _answer(
                "Those that fit all parameters; as JSON lines where these are accepted.",
                _list_of("AuditRecord"),
                lines=_ref("AuditRecord"),
            ),
            **_refusals(400, 401, 503),
        },
    },
    ("GET", "/api/v1/audit/head"): {
        "operationId": "auditHead",
        "summary": "The newest entry of the audit's chain, to keep elsewhere",
        "responses": {"200": _answer("It.", _ref("AuditHead")), **_refusals(401, 503)},
    },
    ("GET", "/api/v1/policy"): {
        "operationId": "policy",
        "summary": "The policy in force",
        "parameters": [_IF_NONE_MATCH],
        "responses": {
            "200": _answer("It.", _ref("PolicyInForce"), versioned=True, tagged=True),
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
            _parameter("note", {**_TEXT, "maxLength": LONGEST_NOTE}, "What to say about it."),
        ],
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {
                        "anyOf": [
                            _ref("PolicySource"),
                            _ref("PolicyRules"),
                            _ref("PolicyDefaults"),
                        ]
                    },
                    "example": {
                        "rules": [{"name": "reads", "match": {"type": "read*"}, "approval": "auto"}]
                    },
                },
                "application/yaml": {"schema": _ref("PolicyDocument")},
            },
        },
        "responses": {
            "200": _answer("It is in force.", _ref("PolicyUpdated"), versioned=True, tagged=True),
            **_refusals(400, 401, 408, 412, 413, 415, 503),
        },
    },
    ("GET", "/api/v1/policy/versions"): {
        "operationId": "policyVersions",
        "summary": "All versions of the policy, newest first",
        "parameters": [
            _IF_NONE_MATCH,
            _parameter("before", _ID, "With a smaller number."),
            _parameter(
                "limit",
                {"type": "integer", "minimum": 0, "maximum": MOST_VERSIONS},
                "The newest so many of them; the most where it is left out.",
            ),
        ],
        "responses": {
            "200": _answer("The first is in force.", _list_of("PolicyVersion"), tagged=True),
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
                "schema": {"type": "integer", "minimum": 1, "maximum": LARGEST_ID},
            },
        ],
        "responses": {
            "200": _answer("It.", _ref("PolicyVersionWithSource"), tagged=True),
            **_unchanged({}),
            **_refusals(401, 404, 503),
        },
    },
    ("POST", "/api/v1/policy/reload"): {
        "operationId": "reloadPolicy",
        "summary": "Load the policy file again",
        "description": "A file that has not changed since it was last loaded changes nothing.",
        "responses": {
            "200": _answer("It is in force.", _ref("PolicyUpdated"), versioned=True, tagged=True),
            **_refusals(400, 401, 404, 408, 413, 415, 503),
        },
    },
    ("POST", "/api/v1/policy/rollback"): {
        "operationId": "rollbackPolicy",
        "summary": "Put an earlier version into force again, as a new one",
        "parameters": [_IF_MATCH],
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": _ref("Rollback"), "example": {"version": 1}}
            },
        },
        "responses": {
            "200": _answer("It is in force.", _ref("PolicyUpdated"), versioned=True, tagged=True),
            **_refusals(400, 401, 404, 408, 412, 413, 415, 503),
        },
    },
}
"""What answers each (method, path), as the route table has it."""


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
            "schemas": _schemas(settings),
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
