"""Schemas of policies, their versions and their changes."""

from __future__ import annotations

from aegis.server.api.operators import MAX_NOTE
from aegis.server.openapi.terms import (
    ANY_CASE,
    ANYTHING,
    APPROVAL,
    NOT_NULL,
    RISK,
    SHA256,
    TEXT,
    TEXT_OR_NULL,
    Schema,
    list_of,
    object_of,
    ref,
)

__all__ = ["POLICY_SCHEMAS"]

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
            "additionalProperties": NOT_NULL,
            "description": _MAPPING_TO,
        },
        **{
            f"param_{name}": {
                "type": "object",
                "additionalProperties": {"anyOf": [{"type": "number"}, TEXT]},
                "description": _MAPPING_TO,
            }
            for name in ("gt", "lt", "gte", "lte")
        },
        "param_contains": {
            "type": "object",
            "additionalProperties": NOT_NULL,
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


_RULE: Schema = {
    "type": "object",
    "properties": {
        "name": TEXT,
        "description": TEXT,
        "match": {
            "type": "object",
            "properties": {
                name: {**TEXT, "description": "`*` if left out."}
                for name in ("type", "target", "agent")
            },
            "additionalProperties": False,
        },
        "risk_level": {**ANY_CASE, "description": "`medium` if left out."},
        "approval": {**APPROVAL, "description": "`approve` if left out."},
        "conditions": ref("Conditions"),
    },
    "additionalProperties": False,
}

_DOCUMENT_MEMBERS: Schema = {
    "version": {"anyOf": [{"type": "string", "enum": ["1"]}, {"type": "integer", "enum": [1]}]},
    "defaults": {
        "type": ["object", "null"],
        "properties": {"risk_level": ANY_CASE, "approval": APPROVAL},
        "additionalProperties": False,
    },
    "rules": {"type": ["array", "null"], "items": ref("Rule")},
    "scope": TEXT,
    "scope_id": TEXT,
    "description": TEXT,
}


def _document_with(*required: str) -> Schema:
    return {
        "type": "object",
        "properties": _DOCUMENT_MEMBERS,
        "patternProperties": {"^x-": ANYTHING},
        "additionalProperties": False,
        "required": list(required),
    }


_VERSION_MEMBERS: Schema = {
    "version": {"type": "integer", "minimum": 1},
    "sha256": SHA256,
    "origin": {"type": "string", "enum": ["file", "put", "rollback"]},
    "created": {"type": "string", "format": "date-time"},
    "key_name": {**TEXT_OR_NULL, "description": "Whose key put it."},
    "note": {**TEXT_OR_NULL, "description": "What the caller noted."},
}


POLICY_SCHEMAS: Schema = {
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
    "PolicyInForce": object_of(
        {
            "default_risk_level": RISK,
            "default_approval": APPROVAL,
            "rules": {
                "type": "array",
                "items": object_of(
                    {
                        "name": TEXT,
                        "match_type": TEXT,
                        "match_target": TEXT,
                        "match_agent": TEXT,
                        "risk_level": RISK,
                        "approval": APPROVAL,
                        "conditions": {
                            "type": "object",
                            "additionalProperties": ANYTHING,
                        },
                    }
                ),
            },
            **_VERSION_MEMBERS,
            "source": {**TEXT, "description": "The policy's text."},
        }
    ),
    "PolicyVersion": object_of(_VERSION_MEMBERS),
    "PolicyVersionWithSource": object_of(
        {**_VERSION_MEMBERS, "source": {**TEXT, "description": "The policy's text."}}
    ),
    "Rollback": {
        "type": "object",
        "properties": {
            "version": {"type": "integer", "minimum": 1, "maximum": 2**63 - 1},
            "note": {**TEXT_OR_NULL, "maxLength": MAX_NOTE},
        },
        "required": ["version"],
    },
    "PolicyUpdated": object_of(
        {
            "status": {"const": "updated"},
            "changed": {
                "type": "boolean",
                "description": "False if this was in force already.",
            },
            "rule_count": {"type": "integer", "minimum": 0},
            "version": {"type": "integer", "minimum": 1},
            "sha256": SHA256,
            "workers": {
                "type": "integer",
                "minimum": 1,
                "description": "How many processes have it at hand.",
            },
            "warnings": list_of("Problem"),
        }
    ),
    "Problem": object_of(
        {
            "line": {"type": ["integer", "null"], "minimum": 1},
            "rule": TEXT_OR_NULL,
            "key": TEXT,
            "message": TEXT,
        },
        description="One thing that is wrong with a policy, or odd about it.",
    ),
}
