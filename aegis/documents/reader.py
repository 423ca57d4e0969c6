"""What the readers of JSON and of YAML share: a document, its lines, and its problems."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from aegis.errors import PolicyError, Problem, Problems
from aegis.messages import quote

__all__ = [
    "Document",
    "Lines",
    "LookAlikes",
    "Reader",
    "repeated_key",
]

Lines = dict[int, dict[Any, int]]
"""Of each mapping and list, by its `id`: the line of each key or index; of itself, under None."""

LookAlikes = dict[int, dict[Any, str]]
"""Of a mapping or list, by its `id`: the keys or indexes of scalars that YAML reads as something
else than they look like, and how it reads them."""


@dataclass(slots=True)
class Document:
    """A text, read.

    Attributes:
        value: Made of dict, list, str, int, float, bool and None only.
        lines: Of its parts; valid as long as `value` is kept.
        problems: What is not allowed in it, though it could be read.
        look_alikes: Its scalars that are not what they look like; valid as long as `lines`.
    """

    value: Any
    lines: Lines
    problems: Problems
    look_alikes: LookAlikes = field(default_factory=dict)


class Reader:
    """What is being read of a text, and where its problems are.

    Args:
        source: The text.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self.lines: Lines = {}
        self.problems = Problems()
        # The containers that are open, and the key or index in each that is being read.
        self.open: list[Any] = []
        self.keys: list[Any] = []
        self._faulty_rules: dict[str, Any] = {}

    def _add_problem(self, message: str, line: int | None) -> None:
        rule = None
        if len(self.keys) > 1 and self.keys[0] == "rules" and isinstance(self.keys[1], int):
            rule = f"rule_{self.keys[1]}"
            self._faulty_rules[rule] = self.open[2] if len(self.open) > 2 else None
        self.problems.append(Problem(message, line, rule, self._path()))

    def _path(self) -> str:
        steps = (f"[{key}]" if isinstance(key, int) else f".{key}" for key in self.keys)
        return "".join(step for step in steps if step != ".None").removeprefix(".")

    def _refused(self, message: str, line: int | None) -> PolicyError:
        self._add_problem(" ".join(message.split()), line)
        self._name_rules()
        return PolicyError(self.problems.all())

    def _name_rules(self) -> None:
        """Call the rules of problems by their names, which may be written below the problem."""
        for index, problem in enumerate(self.problems):
            rule = self._faulty_rules.get(problem.rule or "")
            name = rule.get("name") if isinstance(rule, dict) else None
            if isinstance(name, str) and name:
                self.problems[index] = replace(problem, rule=name)


def repeated_key(key: str, line: int) -> str:
    """The message about a key that a mapping has already.

    Args:
        key: The key.
        line: Where it was first written.
    """
    return f"key {quote(key)} stands twice; it was first written in line {line}"
