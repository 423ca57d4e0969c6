from collections.abc import Sequence

from aegis_core.model import Policy

__all__ = ["build"]

def build(policy: Policy, conditional: Sequence[bool]) -> tuple[bytes, dict[int, int]]: ...
