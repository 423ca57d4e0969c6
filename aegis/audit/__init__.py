"""The audit: links of a chain, committed in groups before they are acknowledged, and read in pages.

What is written is in `records`, how in `log`, read in `reading`, and judged in `verify`.
"""

from aegis.audit.log import AuditLog, Committed
from aegis.audit.reading import AuditFilter, AuditReader
from aegis.audit.records import (
    MEMBERS,
    AuditRecord,
    Operation,
    Outcome,
    ResultStatus,
    now_us,
    timestamp_text,
)
from aegis.audit.requests import Claim, Claimed

__all__ = [
    "MEMBERS",
    "AuditFilter",
    "AuditLog",
    "AuditReader",
    "AuditRecord",
    "Claim",
    "Claimed",
    "Committed",
    "Operation",
    "Outcome",
    "ResultStatus",
    "now_us",
    "timestamp_text",
]
