from collections.abc import Callable, Iterable, Mapping
from mmap import mmap
from typing import Any, Generic, TypeVar, final

from typing_extensions import disjoint_base

from aegis_core.model import Condition, Policy
from aegis_core.values import Action, Decision, PolicyDecision
from aegis_core.work import Work

__all__ = ["Batch", "Engine", "Evaluator", "compile_policy"]

_Result = TypeVar("_Result")

_Rows = Iterable[tuple[str, str, str, Any]]

@final
class Batch(Generic[_Result]):
    result: _Result
    def proceed(self, seconds: float, units: int = -1) -> bool: ...

@final
class Engine:
    policy: Policy | None
    covered: dict[int, int]
    def __init__(
        self,
        image: bytes | bytearray | memoryview | mmap,
        *,
        condition: Callable[[Mapping[str, Any]], Condition | None],
        clock: Callable[[], float] = ...,
    ) -> None: ...
    @property
    def image(self) -> bytes: ...
    @property
    def has_conditions(self) -> bool: ...
    @property
    def image_bytes(self) -> int: ...
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
    def evaluate_object_json(
        self, item: object, text: bytes | None = None, budget: int = ...
    ) -> bytes | None: ...
    def evaluate_objects_json(self, items: list[Any]) -> bytes | None: ...
    def begin(self, actions: _Rows, work: Work | None = None) -> Batch[list[Decision]]: ...
    def begin_json(self, actions: _Rows, work: Work | None = None) -> Batch[bytes]: ...
    def begin_objects_json(
        self, items: list[Any], work: Work | None = None
    ) -> Batch[bytes | None]: ...

@disjoint_base
class Evaluator:
    @property
    def engine(self) -> Engine: ...
    def evaluate(self, action: Action) -> PolicyDecision: ...
    def evaluate_many(self, actions: Iterable[Action]) -> list[PolicyDecision]: ...

def compile_policy(
    policy: Policy,
    *,
    condition: Callable[[Mapping[str, Any]], Condition | None],
    clock: Callable[[], float] = ...,
) -> Engine: ...
