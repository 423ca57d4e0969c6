"""The audit: links of a chain, committed in groups before they are acknowledged, and read in pages.

What is written is in `records`, how in `log`, read in `reading`, and judged in `verify`.
"""

from aegis.audit.entries import AuditRecord, Outcome, PayloadEntry
from aegis.audit.idempotency import Claim, Claimed
from aegis.audit.members import MEMBERS, RECORD_SCHEMA, Operation, ResultStatus
from aegis.audit.reader import AuditFilter, AuditReader
from aegis.audit.writer import AuditLog, Committed

__all__ = [
    "MEMBERS",
    "RECORD_SCHEMA",
    "AuditFilter",
    "AuditLog",
    "AuditReader",
    "AuditRecord",
    "Claim",
    "Claimed",
    "Committed",
    "Operation",
    "Outcome",
    "PayloadEntry",
    "ResultStatus",
]
