"""The audit: entries of a hash chain, committed in groups before they are acknowledged.

`entries` says what is written, `writer` how, `reader` and `export` how it is read, and `verify` judges it.
"""

from aegis.audit.entries import AuditRecord, Outcome, PayloadEntry
from aegis.audit.export import ChainEntry, read_entries
from aegis.audit.filters import AuditFilter
from aegis.audit.idempotency import Claim, Claimed
from aegis.audit.jobs import Committed
from aegis.audit.members import MEMBERS, RECORD_SCHEMA, Operation, ResultStatus
from aegis.audit.reader import AuditReader
from aegis.audit.writer import AuditLog

__all__ = [
    "MEMBERS",
    "RECORD_SCHEMA",
    "AuditFilter",
    "AuditLog",
    "AuditReader",
    "AuditRecord",
    "ChainEntry",
    "Claim",
    "Claimed",
    "Committed",
    "Operation",
    "Outcome",
    "PayloadEntry",
    "ResultStatus",
    "read_entries",
]
