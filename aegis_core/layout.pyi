from collections.abc import Hashable, Iterable, Sequence

from aegis_core.model import Policy, PolicyRule

__all__ = ["build", "covered_rules"]

def build(policy: Policy, conditional: Sequence[bool]) -> tuple[bytes, dict[int, int]]: ...
def covered_rules(
    rules: Sequence[PolicyRule], needs: Iterable[Iterable[Hashable]]
) -> dict[int, int]: ...
