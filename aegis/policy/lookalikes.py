"""Texts in a policy that say something else than their author is likely to mean.

They are warned about, and never refused: each could be meant as it is written.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

from aegis.messages import quote
from aegis_core import PolicyRule

__all__ = [
    "is_ordinary",
    "odd_bound",
    "odd_expression",
    "odd_parameter",
    "odd_pattern",
    "odd_text",
]

_ORDINARY = re.compile(r"[A-Za-z0-9_.:/*?-]*")
_QUOTES = "\"'`\u201c\u201d\u201e\u2018\u2019\u00ab\u00bb"
_ALTERNATIVES = re.compile(r"\{[^{}]*,[^{}]*\}")
_LISTED_SET = re.compile(r"\[[^\[\]]*\w[,\s]+\w[^\[\]]*\]")
_SET = re.compile(r"\[[^\]]+\]")
_LIST = re.compile(r"[^\[][|,]|^[|,]")  # `[|]` says that the character is meant
_REPETITION = re.compile(r"(?<!\\)\{,[0-9]+\}")
_NUMBER = re.compile(r"\s*[-+]?[0-9]+(\.[0-9]+)?\s*")
_CONFUSED_SCRIPTS = ("CYRILLIC", "GREEK")


def is_ordinary(rule: PolicyRule) -> bool:
    """Whether nothing can be odd about the patterns of a rule."""
    return bool(_ORDINARY.fullmatch(rule.match_type + rule.match_target + rule.match_agent))


def odd_pattern(pattern: str) -> Iterator[str]:
    """What is odd about a pattern, as far as it reads like another notation's."""
    if (found := _ALTERNATIVES.search(pattern)) is not None:
        yield f"{quote(found[0])} is matched as it stands: write a rule for each alternative"
    elif (found := _LISTED_SET.search(pattern)) is not None:
        yield f"{quote(found[0])} matches one character of these, not one of several words: write a rule for each"
    elif _LIST.search(pattern) is not None:
        yield f"{quote(pattern)} is one pattern, not a list of them: write a rule for each"
    if pattern.startswith("^") or (len(pattern) > 1 and pattern.endswith("$")):
        yield f"{quote(pattern)} is not a regular expression: a pattern is a glob, and matches the whole text"
    if pattern.startswith("!"):
        yield f"{quote(pattern)} begins with `!` itself: no pattern says not"
    if "[^" in pattern:
        yield "`[^…]` matches `^` too: one character that is none of them is `[!…]`"
    if pattern != pattern.strip():
        yield f"{quote(pattern)} begins or ends with a blank or a line's end, which is matched too"
    elif len(pattern) > 1 and pattern[0] in _QUOTES and pattern[-1] in _QUOTES:
        yield f"{quote(pattern)} holds its quotes, which are matched too"
    yield from _unseen(_SET.sub("", pattern.strip()))  # a set of them says that they are meant
    yield from _mixed_scripts(pattern)


def odd_text(text: str) -> Iterator[str]:
    """What is odd about a text that a condition compares with or searches for."""
    if "\b" in text:
        yield "holds a backspace, as `\\b` in double quotes is: put regular expressions in single quotes"
    else:
        yield from _unseen(text)
    if len(text) > 1 and text.endswith("\n"):
        yield "ends with a line's end, which counts: write it in the line of its key, or below `|-`"
    if len(text) > 1 and text[0] in _QUOTES[3:] and text[-1] in _QUOTES[3:]:
        yield f"{quote(text)} holds its quotes, which count"
    yield from _mixed_scripts(text)


def odd_expression(expression: str) -> Iterator[str]:
    """What is odd about a regular expression that is one of RE2's."""
    if (found := _REPETITION.search(expression)) is not None:
        yield f"{quote(found[0])} repeats nothing, it is matched as it stands: write `{{0{found[0][1:]}`"


def odd_bound(bound: str) -> Iterator[str]:
    """What is odd about a text that a parameter must be greater or less than."""
    if _NUMBER.fullmatch(bound) is not None:
        yield f"{quote(bound)} is text, which no number can be compared with: write it without quotes"


def odd_parameter(name: str) -> Iterator[str]:
    """What is odd about the name of a parameter."""
    if "." in name or "[" in name:
        yield f"{quote(name)} is one parameter of that name: no condition reaches into nested values"


def _unseen(text: str) -> Iterator[str]:
    if not text.isprintable():
        for char in text:
            if not char.isprintable() and char not in "\t\n\r":
                yield f"holds {quote(char)}, which cannot be seen"
                return


def _mixed_scripts(text: str) -> Iterator[str]:
    if text.isascii() or not re.search("[A-Za-z]", text):
        return
    for char in text:
        name = unicodedata.name(char, "")
        if char.isalpha() and name.startswith(_CONFUSED_SCRIPTS):
            yield f"mixes Latin letters with {quote(char)}, {name.lower()}"
            return
