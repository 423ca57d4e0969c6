"""Roles of keys, and what each may do."""

from __future__ import annotations

from enum import StrEnum

__all__ = ["API_KEY_PERMISSIONS", "PERMISSIONS", "Permission", "Role"]


class Permission(StrEnum):
    """What a route asks of a key."""

    DESCRIBE = "describe"
    DECIDE = "decide"
    READ = "read"
    CHANGE_POLICY = "change_policy"


class Role(StrEnum):
    """What a key is for."""

    AGENT = "agent"
    AUDITOR = "auditor"
    OPERATOR = "operator"
    ADMIN = "admin"


PERMISSIONS = {
    Role.AGENT: frozenset((Permission.DESCRIBE, Permission.DECIDE)),
    Role.AUDITOR: frozenset((Permission.DESCRIBE, Permission.READ)),
    Role.OPERATOR: frozenset((Permission.DESCRIBE, Permission.READ, Permission.CHANGE_POLICY)),
    Role.ADMIN: frozenset(Permission),
}
API_KEY_PERMISSIONS = frozenset(Permission) - {Permission.CHANGE_POLICY}
"""Of the environment's API key, if there is an admin key too."""
