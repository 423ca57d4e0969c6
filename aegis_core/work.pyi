from collections.abc import Callable, Mapping
from typing import Any, Final, final

__all__ = ["DEFAULT_BUDGET", "Work"]

DEFAULT_BUDGET: Final = 6_000_000

@final
class Work:
    budget: int
    left: int
    is_spent: bool
    memo: dict[Any, Any]
    def __init__(
        self, budget: int = ..., read: Callable[[Any], Mapping[str, Any]] | None = None
    ) -> None: ...
    def spend(self, units: int) -> bool: ...
    @property
    def reason(self) -> str: ...
