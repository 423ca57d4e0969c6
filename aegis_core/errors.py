"""The errors of the engine: the root of the tree, and a policy that cannot be loaded."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["AegisError", "PolicyError", "Problem"]

MAX_IN_A_TEXT = 10
"""How many problems an error's text names; all of them are in its `problems`."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with, or odd about, a policy.

    Attributes:
        message: What is wrong and what would be right: one line, lower case.
        line: Line in the source text, from 1; None where there is no text.
        rule: Name of the rule it is about; None where it is about no rule.
        key: Where in the document, as in `rules[3].match.typ`; "" for the whole.
    """

    message: str
    line: int | None = None
    rule: str | None = None
    key: str = ""

    def __str__(self) -> str:
        rule = f"rule `{_printable(self.rule)}`: " if self.rule else ""
        key = f"{_printable(self.key)}: " if self.key else ""
        return f"{rule}{key}{self.message}"


def _printable(text: str) -> str:
    return text if text.isprintable() else text.encode("unicode_escape").decode()


class AegisError(Exception):
    """Everything that this project raises on purpose.

    Attributes:
        code: Stable word for programs; never changes once released.
        status: HTTP status that a request ends with.
        exit_code: Exit code that a command ends with.
    """

    code = "internal_error"
    status = 500
    exit_code = 2


class PolicyError(AegisError, ValueError):
    """A policy that is refused, with every problem that it has.

    Attributes:
        problems: All that is wrong, in the order of the text; never empty.
    """

    code = "invalid_policy"
    status = 400
    exit_code = 1

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        said = [str(problem) for problem in self.problems[:MAX_IN_A_TEXT]]
        if len(self.problems) > MAX_IN_A_TEXT:
            said.append(f"and {len(self.problems) - MAX_IN_A_TEXT} more")
        super().__init__("; ".join(said))
