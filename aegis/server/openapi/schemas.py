"""Schemas of actions, decisions, results, audit records, health and refusals."""

from __future__ import annotations

from aegis.audit import RECORD_SCHEMA
from aegis.config import Settings
from aegis.server.openapi.errors import ERRORS
from aegis.server.openapi.terms import (
    ANYTHING,
    APPROVAL,
    ID,
    INT64,
    RISK,
    SHA256,
    STATUS,
    TEXT,
    TEXT_OR_NULL,
    Schema,
    list_of,
    object_of,
    ref,
)

__all__ = ["AUDIT_SCHEMAS", "ERROR_SCHEMAS", "HEALTH", "action_schemas"]

_KIND: Schema = {"type": "string", "minLength": 1}
_ACTION_MEMBERS: Schema = {
    "target": {
        **TEXT,
        "description": "What it is done to, as in `prod-db`; empty if left out.",
    },
    "params": {
        "type": ["object", "null"],
        "additionalProperties": ANYTHING,
        "description": "Its parameters.",
    },
    "description": {**TEXT_OR_NULL, "description": "For the audit."},
    "agent_id": {**TEXT_OR_NULL, "description": "Who wants it."},
    "session_id": {**TEXT_OR_NULL, "description": "The server's own if left out."},
    "parent_agent_id": {**TEXT_OR_NULL, "description": "Who asked that agent to."},
    "chain_id": {**TEXT_OR_NULL, "description": "The delegation that it belongs to."},
    "chain_depth": {
        "anyOf": [INT64, {"type": "null"}],
        "description": "How deep in that delegation; 0 if left out.",
    },
}
_NO_BATCH: Schema = {"required": ["actions"]}

_ACTION: Schema = {
    "type": "object",
    "description": "What an agent is about to do. Members that are not known are ignored, and null"
    " means that a member is left out.",
    "properties": {
        "action_type": {**_KIND, "description": "The kind of operation, as in `delete`."},
        "type": {"description": "The same; counts if `action_type` is left out."},
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


def action_schemas(settings: Settings) -> Schema:
    """Schemas of actions and of what is answered about them.

    Args:
        settings: Has the limit of a batch.
    """
    one: Schema = {"anyOf": [ref("Action"), ref("ActionByType")]}
    batch: Schema = {"type": "array", "items": one, "maxItems": settings.max_batch}
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
            "anyOf": [ref("Action"), ref("ActionByType"), ref("Batch"), batch],
        },
        "Decision": object_of(
            {
                "action_type": TEXT,
                "target": TEXT,
                "risk_level": RISK,
                "approval": APPROVAL,
                "is_allowed": {"type": "boolean", "description": "False if it is blocked."},
                "matched_rule": {**TEXT, "description": "`<default>` if no rule matches."},
                "error": {**TEXT, "description": "Why the rule could not be judged."},
            },
            optional=("error",),
        ),
        "Result": object_of(
            {
                "action_type": TEXT,
                "target": TEXT,
                "status": STATUS,
                "data": {"description": "What the executor gave."},
                "error": TEXT_OR_NULL,
            }
        ),
    }


AUDIT_SCHEMAS: Schema = {
    "AuditRecord": object_of(RECORD_SCHEMA),
    "AuditHead": object_of(
        {
            "id": {**ID, "description": "The number of the newest entry."},
            "hash": SHA256,
            "count": ID,
            "signed_at": {"type": "string", "format": "date-time"},
            "signature": {**TEXT, "description": "Ed25519, in base64."},
            "public_key": {**TEXT, "description": "In base64."},
        },
        optional=("signed_at", "signature", "public_key"),
    ),
}

HEALTH: Schema = object_of(
    {
        "status": {"const": "ok"},
        "version": TEXT,
        "policy_file": object_of(
            {
                "failures": {
                    "type": "integer",
                    "minimum": 1,
                    "description": "How often it could not be loaded since the start.",
                },
                "error": {**TEXT_OR_NULL, "description": "Why it cannot be now."},
            },
            description="If it could not be loaded; the policy in force stays.",
        ),
        "keys_file": object_of(
            {
                "failures": {"type": "integer", "minimum": 1},
                "error": {**TEXT_OR_NULL, "description": "Why it is refused now."},
            },
            description="If it was refused; the previous keys stay in force.",
        ),
        "workers": object_of(
            {
                "running": {"type": "integer", "minimum": 0},
                "expected": {"type": "integer", "minimum": 1},
                "error": TEXT,
            },
            description="If not all of them run; the others answer.",
        ),
    },
    optional=("version", "policy_file", "keys_file", "workers"),
)

ERROR_SCHEMAS: Schema = {
    f"Error{status}": object_of(
        {
            "error": {**TEXT, "minLength": 1},
            "code": {"type": "string", "enum": list(codes)},
            **({"problems": list_of("Problem")} if status == 400 else {}),
        },
        optional=("problems",),
        description=meaning,
    )
    for status, (meaning, codes) in ERRORS.items()
}
