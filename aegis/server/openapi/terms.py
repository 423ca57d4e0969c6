"""Schemas that the others are made of."""

from __future__ import annotations

from typing import Any

from aegis.audit import Operation, ResultStatus
from aegis.audit.filters import MAX_ID
from aegis_core import Approval, RiskLevel

__all__ = [
    "ANYTHING",
    "ANY_CASE",
    "APPROVAL",
    "ID",
    "INT64",
    "NOT_NULL",
    "OPERATION",
    "RISK",
    "SHA256",
    "STATUS",
    "TEXT",
    "TEXT_OR_NULL",
    "Schema",
    "list_of",
    "object_of",
    "ref",
]

Schema = dict[str, Any]

# Generators of clients want plain objects: no schema here is `true` or `false`, which some of them
# cannot read, and every open mapping says so, which others take for an empty one.
ANYTHING: Schema = {}
TEXT: Schema = {"type": "string"}
TEXT_OR_NULL: Schema = {"type": ["string", "null"]}
RISK = {"type": "string", "enum": [level.name for level in RiskLevel]}
APPROVAL = {"type": "string", "enum": [approval.value for approval in Approval]}
STATUS = {"type": "string", "enum": [status.value for status in ResultStatus]}
OPERATION = {"type": "string", "enum": [operation.value for operation in Operation]}
INT64 = {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1}
ID = {"type": "integer", "minimum": 0, "maximum": MAX_ID}
SHA256 = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
NOT_NULL: Schema = {  # not recursive: generators cannot read that
    "anyOf": [
        {"type": ["number", "boolean", "string"]},
        {"type": "array", "items": ANYTHING},
        {"type": "object", "additionalProperties": ANYTHING},
    ]
}

ANY_CASE = {
    "type": "string",
    "pattern": "^([lL][oO][wW]|[mM][eE][dD][iI][uU][mM]|[hH][iI][gG][hH]|[cC][rR][iI][tT][iI][cC][aA][lL])$",
}


def object_of(
    properties: Schema, *, optional: tuple[str, ...] = (), description: str = ""
) -> Schema:
    """An object that has just these members, all but the optional ones always."""
    schema: Schema = {
        "type": "object",
        "properties": properties,
        "required": [name for name in properties if name not in optional],
        "additionalProperties": False,
    }
    return {"description": description, **schema} if description else schema


def ref(name: str) -> Schema:
    """One of the named schemas."""
    return {"$ref": f"#/components/schemas/{name}"}


def list_of(name: str, **limits: int) -> Schema:
    """A list of one of the named schemas."""
    return {"type": "array", "items": ref(name), **limits}
