"""Searches by regular expressions, and by several of them at once. The only RE2.

The rules of a policy often search one parameter by an expression each. A short text takes about as
long to be searched by all of them at once as by one, so the first that is asked answers for all.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import Any

import re2

from aegis.messages import quote

__all__ = [
    "MAX_PROGRAM", "MAX_PROGRAMS", "MAX_SET", "SHORT_TEXT", "Search", "Searches",
]  # fmt: skip

MAX_PROGRAM = 5_000
"""The largest RE2 program, in instructions: what a search can cost for each byte."""

MEMORY_BYTES = 1024 * 1024
"""What RE2 may use for an expression. It compiles none that needs more, so that it does not spend
long on one that is too large in the end. And its automaton, which takes a nanosecond a byte, is
given up soon where a text makes it outgrow its memory: RE2 then simulates the expression."""

_SEARCH_UNITS = 8
_SIMULATED_PER_UNIT = 16
"""So many instructions are simulated for a unit: what a search costs at the worst, measured."""
_MORE_INSTRUCTIONS = 10
"""What each byte costs besides those of the expression."""

MAX_PROGRAMS = 20_000_000
"""The largest programs of all expressions of a policy together: every process compiles them, a million
instructions in about half a second."""

_REFUSED = 16_384
"""What an expression counts that is refused for its size: RE2 gave up after so many instructions."""

MAX_SET = 1_000
"""The largest program of expressions that are searched for at once, for the same reason."""

SHORT_TEXT = 256
"""The longest text, in characters, that is searched by several expressions at once.

A search by one skips what cannot begin a match, and ends with it; a search by several goes on to
the end of the text.
"""


@dataclass(frozen=True, slots=True)
class Search:
    """A search by one expression.

    Attributes:
        found_in: Whether it is found in a text.
        size: The instructions of its program.
    """

    found_in: Callable[[str], bool]
    size: int

    def units(self, size: int) -> int:
        """The work that a search takes at the worst.

        Args:
            size: Of the text, in bytes.
        """
        return _SEARCH_UNITS + size * (self.size + _MORE_INSTRUCTIONS) // _SIMULATED_PER_UNIT


class Searches:
    """The regular expressions of one policy, by the parameter that they are to search.

    Args:
        largest: The largest programs that they may have together.

    Attributes:
        instructions: Of all their programs.
        is_over: Whether that is more than they may have: those that came then are not compiled.
    """

    def __init__(self, largest: int = MAX_PROGRAMS) -> None:
        self._groups: dict[str, _Group] = {}  # the one of each parameter that still takes more
        self._all: list[_Group] = []
        self._largest = largest
        self.instructions = 0
        self.is_over = False

    def add(self, parameter: str, pattern: str) -> Search:
        """Compile an expression.

        Args:
            parameter: The parameter whose value is going to be searched.
            pattern: The expression, in RE2's syntax.

        Returns:
            What searches by it.

        Raises:
            ValueError: With what is wrong with it.
        """
        compiled = self._compiled(pattern)
        alone = compiled.search
        size = compiled.programsize
        if size > MAX_SET:
            return Search(lambda text: alone(text.encode()) is not None, size)
        group = self._groups.get(parameter)
        if group is None or not group.takes(size):
            group = self._groups[parameter] = _Group()
            self._all.append(group)
        number = group.add(pattern, size)

        def search(text: str) -> bool:
            # Only of a plain text is it known that equal ones are found the same in.
            if type(text) is str and len(text) <= SHORT_TEXT:
                found = group.found(text)
                if found is not None:
                    return number in found
            return alone(text.encode()) is not None

        return Search(search, size)

    def compile(self) -> None:
        """Compile what searches by several at once, too: nothing is left to the first search."""
        for group in self._all:
            group.compile()

    def _compiled(self, pattern: str) -> Any:
        if not self.is_over:
            try:
                compiled = _compiled(pattern)
            except ValueError:
                self.instructions += _REFUSED
                self.is_over = self.instructions > self._largest
                raise
            self.instructions += compiled.programsize
            self.is_over = self.instructions > self._largest
            if not self.is_over:
                return compiled
        raise ValueError(
            f"the regular expressions of the policy are over {self._largest} instructions together;"
            " make their repetitions smaller"
        )


class _Group:
    """Expressions that are searched for at once.

    Invariant: the last text and what was found in it are kept, as one value that is replaced whole,
    so that threads may share a group. An answer depends on the text alone.
    """

    __slots__ = ("_last", "_patterns", "_set", "_size")

    def __init__(self) -> None:
        self._patterns: list[str] = [""]  # found in every text: where it is not, the search failed
        self._size = 0
        self._set: Any = None
        self._last: tuple[str | None, Container[int]] = (None, ())

    def takes(self, size: int) -> bool:
        """Whether there is room for an expression of this size."""
        return self._set is None and self._size + size <= MAX_SET

    def add(self, pattern: str, size: int) -> int:
        self._patterns.append(pattern)
        self._size += size
        return len(self._patterns) - 1

    def found(self, text: str) -> Container[int] | None:
        """The numbers of those that are found; None: they have to be searched for one by one."""
        last, found = self._last
        if last == text:
            return found
        self.compile()
        if not self._set:
            return None
        # RE2 runs out of memory silently: it then finds nothing, not even what is everywhere.
        numbers = self._set.Match(text.encode())
        if not numbers or 0 not in numbers:
            return None
        found = frozenset(numbers)
        self._last = (text, found)
        return found

    def compile(self) -> None:
        if self._set is None:
            self._set = self._made()

    def _made(self) -> Any:
        """The set that RE2 makes of them; False where there is nothing to be gained or it refuses."""
        if len(self._patterns) <= 2:
            return False
        try:
            made = re2.Set.SearchSet(_options())
            for pattern in self._patterns:
                made.Add(pattern)
            made.Compile()
        except re2.error:
            return False
        return made


def _options() -> Any:
    options = re2.Options()
    options.log_errors = False
    options.never_capture = True
    return options


def _options_alone() -> Any:
    options = _options()
    options.max_mem = MEMORY_BYTES
    return options


def _compiled(pattern: str) -> Any:
    try:
        compiled = re2.compile(pattern, _options_alone())
    except re2.error as error:
        said = error.args[0]
        text = said.decode(errors="replace") if isinstance(said, bytes) else str(said)
        raise ValueError(
            f"{quote(pattern)} is not a regular expression of RE2: {text}{_lack(text)}"
        ) from None
    except UnicodeEncodeError:
        raise ValueError("holds half of a surrogate pair, which is not a character") from None
    if compiled.programsize > MAX_PROGRAM:
        raise ValueError(f"{quote(pattern)} is too large; make its repetitions smaller")
    return compiled


def _lack(error: str) -> str:
    if "(?=" in error or "(?!" in error or "(?<" in error:
        return " (RE2 has no lookaround)"
    if re.search(r"escape sequence: \\[1-9]", error):
        return " (RE2 has no backreference)"
    return ""
