from collections.abc import Hashable, Iterable, Sequence

from aegis_core.values import PolicyRule

__all__ = ["covered_rules"]

def covered_rules(
    rules: Sequence[PolicyRule], needs: Iterable[Iterable[Hashable]]
) -> dict[int, int]: ...
