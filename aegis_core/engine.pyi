from collections.abc import Callable, Iterable, Mapping
from mmap import mmap
from typing import Any, final

from aegis_core.model import Condition, Decision, Policy

__all__ = ["Engine", "compile_policy"]

@final
class Engine:
    policy: Policy | None
    covered: dict[int, int]
    def __init__(
        self,
        block: bytes | bytearray | memoryview | mmap,
        *,
        condition: Callable[[Mapping[str, Any]], Condition | None],
        clock: Callable[[], float] = ...,
    ) -> None: ...
    @property
    def block(self) -> bytes: ...
    @property
    def block_bytes(self) -> int: ...
    def evaluate(
        self,
        action_type: str,
        target: str = "",
        agent: str = "",
        params: Mapping[str, Any] | None = None,
    ) -> Decision: ...
    def evaluate_many(
        self, actions: Iterable[tuple[str, str, str, Mapping[str, Any] | None]]
    ) -> list[Decision]: ...
    def evaluate_json(
        self,
        action_type: str,
        target: str = "",
        agent: str = "",
        params: Mapping[str, Any] | None = None,
    ) -> bytes: ...
    def evaluate_many_json(
        self,
        actions: Iterable[tuple[str, str, str, Any]],
        *,
        read: Callable[[Any], Mapping[str, Any]] | None = ...,
    ) -> bytes: ...
    def evaluate_object_json(self, item: object) -> bytes | None: ...
    def evaluate_objects_json(self, items: list[Any]) -> bytes | None: ...

def compile_policy(
    policy: Policy,
    *,
    condition: Callable[[Mapping[str, Any]], Condition | None],
    clock: Callable[[], float] = ...,
) -> Engine: ...
