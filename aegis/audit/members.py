"""What entries of the chain say: each member's column, place in the canonical form and JSON name, once.

The format is documented in docs/audit-format.md. A change of a place or a code here makes every
trail that exists unverifiable; how kinds, members and codes are added is written there too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum, StrEnum, auto
from typing import Any

from aegis.timestamps import timestamp_text
from aegis_core import Approval, RiskLevel

__all__ = [
    "APPROVALS",
    "CANONICAL",
    "COLUMNS",
    "ID_MEMBERS",
    "IS_RECORD",
    "MEMBERS",
    "OPERATION_CODES",
    "OUTCOME",
    "RECORD_MEMBERS",
    "RECORD_SCHEMA",
    "SELECT",
    "STATUSES",
    "STATUS_CODES",
    "Member",
    "Operation",
    "ResultStatus",
    "Stored",
    "as_members",
]


class ResultStatus(StrEnum):
    """What became of an action."""

    SUCCESS = "success"
    FAILED = "failed"
    BLOCKED = "blocked"
    DENIED = "denied"
    SKIPPED = "skipped"
    STARTED = "started"
    INTERRUPTED = "interrupted"
    DECIDED = "decided"


class Operation(StrEnum):
    """What was asked for: to do an action, or only a decision; or where else a record is from."""

    EXECUTE = "execute"
    EVALUATE = "evaluate"
    IMPORT = "import"


# INVARIANT: these numbers are in every file; new ones are only added at the end, with a new schema.
STATUS_CODES = {status: code for code, status in enumerate(ResultStatus, 1)}
STATUSES = {code: status for status, code in STATUS_CODES.items()}
OPERATION_CODES = {operation: code for code, operation in enumerate(Operation, 1)}
APPROVALS = {1: Approval.AUTO, 2: Approval.APPROVE, 3: Approval.BLOCK}
_RISKS = {level.name: level.value for level in RiskLevel}
_APPROVALS = {approval.value: code for code, approval in APPROVALS.items()}
_STATUSES = {status.value: code for status, code in STATUS_CODES.items()}
_OPERATIONS = {operation.value: code for operation, code in OPERATION_CODES.items()}


class Stored(Enum):
    """How a member is in its column."""

    PLAIN = auto()
    WORD = auto()
    """The number of a text in the table `word`."""
    CODE = auto()
    """The number of one of a few names."""
    TIME = auto()
    """Microseconds since the epoch."""


@dataclass(frozen=True, slots=True)
class Member:
    """One thing that a record says.

    Attributes:
        name: In JSON.
        schema: As OpenAPI describes it.
        place: In the canonical form, after the kind and the number.
        column: In the table `record`.
        stored: How it is there.
        codes: The names that there are, where it is stored as a code.
        is_outcome: Whether it is the outcome's, once there is one.
    """

    name: str
    schema: Mapping[str, Any]
    place: int
    column: str
    stored: Stored = Stored.PLAIN
    codes: Mapping[str, int] = field(default_factory=dict)
    is_outcome: bool = False

    @property
    def text(self) -> str:
        """The SQL of the member of a row `r` as JSON has it; a time stays a number."""
        match self.stored:
            case Stored.WORD:
                return f"{self.column}_word.text"
            case Stored.CODE:
                cases = " ".join(f"WHEN {code} THEN '{name}'" for name, code in self.codes.items())
                return f"CASE r.{self.column} {cases} END"
            case _:
                return f"r.{self.column}"


_TEXT = {"type": "string"}
_TEXT_OR_NULL = {"type": ["string", "null"]}
_TIME = {"type": "string", "format": "date-time"}
_JSON = "application/json"
_PLAIN, _WORD, _CODE = Stored.PLAIN, Stored.WORD, Stored.CODE


def _one_of(names: Iterable[str]) -> dict[str, Any]:
    return {"type": "string", "enum": list(names)}


# INVARIANT: no place ever changes; what is new comes at the end of the places.
RECORD_MEMBERS = (
    Member("session_id", _TEXT, 2, "session", _WORD),
    Member("timestamp", _TIME, 0, "timestamp_us", Stored.TIME),
    Member("action_type", _TEXT, 3, "action_type", _WORD),
    Member("action_target", _TEXT, 4, "action_target"),
    Member("action_params", {**_TEXT, "contentMediaType": _JSON}, 5, "action_params"),
    Member("action_desc", _TEXT_OR_NULL, 6, "action_desc"),
    Member("risk_level", _one_of(_RISKS), 7, "risk_level", _CODE, _RISKS),
    Member("approval", _one_of(_APPROVALS), 8, "approval", _CODE, _APPROVALS),
    Member("matched_rule", _TEXT, 9, "matched_rule", _WORD),
    Member("human_decision", _TEXT_OR_NULL, 10, "human_decision", _WORD),
    Member(
        "result_status", _one_of(_STATUSES), 11, "result_status", _CODE, _STATUSES, is_outcome=True
    ),
    Member(
        "result_data",
        {**_TEXT_OR_NULL, "contentMediaType": _JSON},
        12,
        "result_data",
        is_outcome=True,
    ),
    Member("result_error", _TEXT_OR_NULL, 13, "result_error", is_outcome=True),
    Member("agent_id", _TEXT_OR_NULL, 14, "agent", _WORD),
    Member("parent_agent_id", _TEXT_OR_NULL, 15, "parent_agent", _WORD),
    Member("chain_id", _TEXT_OR_NULL, 16, "chain", _WORD),
    Member("chain_depth", {"type": "integer", "format": "int64"}, 17, "chain_depth"),
    Member(
        "policy_version",
        {"type": "integer", "minimum": 0, "description": "0 where the record was imported."},
        18,
        "policy_version",
    ),
    Member(
        "key_name",
        {**_TEXT_OR_NULL, "description": "Whose key asked for it."},
        19,
        "key_name",
        _WORD,
    ),
    Member("operation", _one_of(_OPERATIONS), 1, "operation", _CODE, _OPERATIONS),
    Member(
        "worker",
        {
            "type": ["integer", "null"],
            "minimum": 1,
            "description": "The process that executed it; null where nothing was begun.",
        },
        20,
        "worker",
    ),
    Member(
        "call_id",
        {**_TEXT_OR_NULL, "description": "What the agent's framework calls the call."},
        21,
        "call_id",
    ),
    Member(
        "request_id",
        {**_TEXT_OR_NULL, "description": "The `X-Request-Id` that it came by."},
        22,
        "request_id",
    ),
    Member(
        "trace_id",
        {**_TEXT_OR_NULL, "description": "The trace that it is part of (W3C Trace Context)."},
        23,
        "trace_id",
    ),
)
"""What a record says, in the order of the API."""

_CANONICAL_MEMBERS = sorted(RECORD_MEMBERS, key=lambda member: member.place)
_ID_PLACE = 21
ID_MEMBERS = tuple(member.name for member in _CANONICAL_MEMBERS[_ID_PLACE:])
"""Members that came later than the format: at the end of the canonical form, or, all null, left out."""

COLUMNS = (
    f"record (id, hash, {', '.join(member.column for member in _CANONICAL_MEMBERS)},"
    " intent, kind, payload)"
)
"""The table and its columns, in the order of the rows that entries make."""

_WORDS = "".join(
    f" LEFT JOIN word AS {member.column}_word ON {member.column}_word.id = r.{member.column}"
    for member in RECORD_MEMBERS
    if member.stored is _WORD
)

OUTCOME = "o.intent = r.id AND o.id > r.id"
"""How a record `r` is joined with its outcome `o`, which comes after it."""

IS_RECORD = "r.operation IS NOT NULL"
"""Whether an entry `r` is a record; the table refuses an operation in any other."""

# --- records, as they are answered ---------------------------------------------------------------

_INT64 = {"type": "integer", "format": "int64", "minimum": 0}
_AFTERWARDS: dict[str, tuple[str, Mapping[str, Any]]] = {
    "ended": (
        "o.timestamp_us",
        {
            "type": ["string", "null"],
            "format": "date-time",
            "description": "When its outcome was known, where it was begun before.",
        },
    ),
    "seq": ("ifnull(o.id, r.id)", {**_INT64, "description": "The number of its newest entry."}),
    "hash": (
        "ifnull(o.hash, r.hash)",
        {**_TEXT, "pattern": "^[0-9a-f]{64}$", "description": "Of its newest entry."},
    ),
}
"""What follows from a record and its outcome: SQL and schema."""


def _answered(member: Member) -> str:
    if not member.is_outcome:
        return member.text if member.stored is _WORD else f"r.{member.column}"
    return f"iif(o.id IS NULL, r.{member.column}, o.{member.column})"


SELECT = f"""
SELECT r.id, {", ".join(map(_answered, RECORD_MEMBERS))},
    {", ".join(sql for sql, _ in _AFTERWARDS.values())}
FROM record AS r LEFT JOIN record AS o ON {OUTCOME}{_WORDS}
"""
"""A record as it is now; `r` is its first entry, `o` its outcome."""

MEMBERS = ("id", *(member.name for member in RECORD_MEMBERS), *_AFTERWARDS)
"""The members of a record, in the order of `SELECT` and of the API."""

RECORD_SCHEMA: dict[str, Mapping[str, Any]] = {
    "id": {"type": "integer", "minimum": 1},
    **{member.name: member.schema for member in RECORD_MEMBERS},
    **{name: schema for name, (_, schema) in _AFTERWARDS.items()},
}
"""The members of a record, as OpenAPI describes them."""

_NAMES = {
    member.name: {code: name for name, code in member.codes.items()}
    for member in RECORD_MEMBERS
    if member.stored is _CODE
}


def as_members(row: tuple[Any, ...]) -> dict[str, Any]:
    """A row of `SELECT`, as the API shows it."""
    members = dict(zip(MEMBERS, row, strict=True))
    for name, names in _NAMES.items():
        members[name] = names[members[name]]
    members["timestamp"] = timestamp_text(members["timestamp"])
    if members["ended"] is not None:
        members["ended"] = timestamp_text(members["ended"])
    members["hash"] = members["hash"].hex()
    return members


# --- the canonical form --------------------------------------------------------------------------


def _array(kind: str, members: Iterable[str]) -> str:
    return f"json_array('{kind}', r.id, {', '.join(members)})"


_RECORD = [member.text for member in _CANONICAL_MEMBERS]
_STATUS_TEXT = next(member.text for member in RECORD_MEMBERS if member.name == "result_status")

# SQLite writes these arrays just as `dumps` does: no blanks, nothing escaped that need not be.
CANONICAL = f"""
SELECT r.id, r.hash, CAST(CASE
    WHEN r.operation IS NOT NULL THEN
        iif(coalesce({", ".join(f"r.{name}" for name in ID_MEMBERS)}) IS NULL,
            {_array("record", _RECORD[:_ID_PLACE])}, {_array("record", _RECORD)})
    WHEN r.intent IS NOT NULL THEN {
    _array(
        "outcome", ("r.timestamp_us", "r.intent", _STATUS_TEXT, "r.result_data", "r.result_error")
    )
}
    ELSE '["' || r.kind || '",' || r.id || ',' || r.timestamp_us || ',' || r.payload || ']'
    END AS BLOB)
FROM record AS r{_WORDS}
"""
"""Each entry's number, hash and canonical form."""
