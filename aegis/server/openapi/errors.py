"""What each status of a refusal means, and the codes that it has."""

from __future__ import annotations

__all__ = ["ERRORS"]

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
