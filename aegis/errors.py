"""The error tree: a stable code, an HTTP status and an exit code for each.

    AegisError                      aegis_core.errors
    ├── PolicyError                 400 invalid_policy          exit 1
    ├── ConfigError                     invalid_configuration   exit 2
    ├── Defect                          internal_error          exit 70
    ├── StoreError                  503 store_unavailable       exit 2
    │   ├── AuditBusy               503 audit_busy
    │   ├── AuditUnavailable        503 audit_unavailable
    │   └── OutcomeUnknown          504 outcome_unknown
    ├── InvalidTrail                    invalid_trail           exit 1
    ├── InvalidHead                     invalid_head            exit 1
    └── RequestError                    the request is refused
        ├── InvalidBody             400 invalid_json | invalid_body
        ├── InvalidHost             400 invalid_host
        ├── InvalidQuery            400 invalid_query
        ├── Unauthorized            401 unauthorized
        ├── Forbidden               403 forbidden | forbidden_agent | foreign_host
        │                               | foreign_origin | not_local
        ├── NotFound                404 not_found
        ├── MethodNotAllowed        405 method_not_allowed
        ├── BodyTimeout             408 body_timeout
        ├── Conflict                409 idempotency_key_reused | request_in_progress
        │                               | request_archived
        ├── PreconditionFailed      412 precondition_failed
        ├── BodyTooLarge            413 body_too_large
        ├── UnsupportedMediaType    415 unsupported_media_type
        ├── HeadersTooLarge         431 headers_too_large
        └── NotReady                503 not_ready

Wording: lower case, one line, what is wrong and then what would be right, the user's value in
backticks. No secret ever enters a message.
"""

from __future__ import annotations

from aegis_core import AegisError, PolicyError, Problem

__all__ = [
    "AegisError",
    "AuditBusy",
    "AuditUnavailable",
    "BodyTimeout",
    "BodyTooLarge",
    "ConfigError",
    "Conflict",
    "Defect",
    "Forbidden",
    "HeadersTooLarge",
    "InvalidBody",
    "InvalidHead",
    "InvalidHost",
    "InvalidQuery",
    "InvalidTrail",
    "MethodNotAllowed",
    "NotFound",
    "NotReady",
    "OutcomeUnknown",
    "PolicyError",
    "PreconditionFailed",
    "Problem",
    "Problems",
    "RequestError",
    "StoreError",
    "Unauthorized",
    "UnsupportedMediaType",
]


class ConfigError(AegisError):
    """An option, a file or a machine that the server cannot start with."""

    code = "invalid_configuration"


class Defect(AegisError):
    """Aegis contradicts itself: a bug to report."""

    exit_code = 70  # SOURCE: sysexits.h, EX_SOFTWARE


class StoreError(AegisError):
    """The database cannot be opened, read or written.

    Attributes:
        is_permanent: It is these rows that cannot be stored, now or later.
        is_damaged: The file is not what SQLite has written.
    """

    code = "store_unavailable"
    status = 503
    is_permanent = False
    is_damaged = False


class AuditUnavailable(StoreError):
    """A record could not be committed within its deadline."""

    code = "audit_unavailable"


class OutcomeUnknown(StoreError):
    """Actions were executed, and their outcome could not be recorded in time: not to be repeated."""

    code = "outcome_unknown"
    status = 504


class AuditBusy(StoreError):
    """More of the audit is asked for at once than can be read."""

    code = "audit_busy"


class InvalidTrail(AegisError):
    """An audit that was changed, or of which something is missing.

    Args:
        what: What is wrong.
        number: The first entry that is wrong; None where it is something else than an entry.
    """

    code = "invalid_trail"
    exit_code = 1

    def __init__(self, what: str, number: int | None = None) -> None:
        where = "" if number is None else f"entry {number} "
        super().__init__(f"the audit is not as it was written: {where}{what}")
        self.number = number


class InvalidHead(AegisError):
    """A head of the audit that was not signed by the key that is to have signed it."""

    code = "invalid_head"
    exit_code = 1


class RequestError(AegisError):
    """A request that is refused: nothing was executed or stored.

    Args:
        message: What is wrong and what would be right.
        code: The stable code, where it is not the class's own.
        headers: Headers that the answer needs besides the usual ones.
    """

    status = 400

    def __init__(
        self,
        message: str,
        code: str | None = None,
        headers: tuple[tuple[str, str], ...] = (),
    ) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code
        self.headers = headers


class InvalidBody(RequestError):
    """A body that is not what the route takes; the message says where."""

    code = "invalid_body"


class InvalidHost(RequestError):
    """The request does not say which host it is for, or says it in a way that is none."""

    code = "invalid_host"
    status = 400


class InvalidQuery(RequestError):
    """A query parameter that does not exist or has an impossible value."""

    code = "invalid_query"


class Unauthorized(RequestError):
    """No key, or an unknown one."""

    code = "unauthorized"
    status = 401


class Forbidden(RequestError):
    """A caller that is known, or not local, and may not do this."""

    code = "forbidden"
    status = 403


class NotFound(RequestError):
    """No such path."""

    code = "not_found"
    status = 404


class MethodNotAllowed(RequestError):
    """The path exists; the method does not."""

    code = "method_not_allowed"
    status = 405


class BodyTimeout(RequestError):
    """A body that did not arrive in time."""

    code = "body_timeout"
    status = 408


class Conflict(RequestError):
    """A request that contradicts an earlier one of the same name."""

    code = "request_in_progress"
    status = 409


class PreconditionFailed(RequestError):
    """Another change came first."""

    code = "precondition_failed"
    status = 412


class BodyTooLarge(RequestError):
    """A body over the limit."""

    code = "body_too_large"
    status = 413


class UnsupportedMediaType(RequestError):
    """A body declared as something that the route does not take."""

    code = "unsupported_media_type"
    status = 415


class HeadersTooLarge(RequestError):
    """The fields of a request's head are over their limit together."""

    code = "headers_too_large"
    status = 431


class NotReady(RequestError):
    """The server cannot decide or record yet, or no more."""

    code = "not_ready"
    status = 503


class Problems(list[Problem]):
    """Problems as they are found. Past a thousand they are only counted: nobody reads on."""

    MOST = 1_000

    def __init__(self) -> None:
        super().__init__()
        self.left_out = 0

    def append(self, problem: Problem) -> None:
        """Take one more."""
        if len(self) < self.MOST:
            super().append(problem)
        else:
            self.left_out += 1

    def all(self) -> list[Problem]:
        """What was found, in the order of the text, and how much was left out."""
        found = sorted(self, key=lambda problem: problem.line or 0)
        more = [Problem(f"and {self.left_out} more problems")] if self.left_out else []
        return [*found, *more]
