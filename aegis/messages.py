"""What messages are made of: quoted values, the names of types, hints for misspelt words."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from reprlib import Repr

__all__ = ["json_type", "quote", "suggest"]

_MAX_QUOTED = 80
_ENCODER = json.JSONEncoder(ensure_ascii=False)
_CONTAINERS = (list, tuple, dict, set, frozenset)
_REPR = Repr()
_REPR.maxlevel = 2

_NO_SYNONYMS: Mapping[str, str] = {}
_NEAR = 0.65  # of two words' likeness, from 0 to 1: at 0.62 `action` is like `conditions`


def suggest(word: str, known: Iterable[str], synonyms: Mapping[str, str] = _NO_SYNONYMS) -> str:
    """The hint behind an unknown word: `; did you mean ...`, or else what is known.

    Args:
        word: What was written.
        known: What could have been.
        synonyms: What the word is called elsewhere, to the known word that means it.
    """
    words = sorted(known)
    folded = word.lower()
    having = [known_word for known_word in words if folded in known_word.split("_")]
    if folded in synonyms:
        meant = synonyms[folded]
    elif near := get_close_matches(folded, words, n=1, cutoff=_NEAR):
        meant = near[0]
    elif len(having) == 1:
        meant = having[0]
    else:
        return f"; known here: {', '.join(words)}"
    return f"; did you mean `{meant}`?"


def quote(value: object) -> str:
    """A value as a message shows it: in backticks, on one line, not endless."""
    text = value if isinstance(value, str) else _json(value)
    if not text.isprintable():
        text = text.encode("unicode_escape", "backslashreplace").decode()
    return f"`{text[:_MAX_QUOTED]}…`" if len(text) > _MAX_QUOTED else f"`{text}`"


def _json(value: object) -> str:
    text = ""
    try:
        # Piece by piece, since a value that is used many times, or holds itself, has no end.
        for piece in _ENCODER.iterencode(value):
            text += piece
            if len(text) > _MAX_QUOTED:
                break
        return text
    except (TypeError, ValueError, RecursionError):
        pass
    try:
        return _REPR.repr(value) if isinstance(value, _CONTAINERS) else repr(value)
    except ValueError:  # Python writes integers of some thousand digits only
        return f"an integer of {value.bit_length()} bits" if isinstance(value, int) else "…"


def json_type(value: object) -> str:
    """A value's JSON type, for messages: `a number`, `text`, `an object` and so on."""
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case str():
            return "text"
        case list() | tuple():
            return "a list"
        case dict():
            return "an object"
        case _:
            return f"a {type(value).__name__}"
