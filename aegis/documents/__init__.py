"""Documents: YAML or JSON to plain values, and the line of each.

Only what policies and keys need of YAML is taken; of JSON, all of it is, and means what JSON means
by it.
"""

from __future__ import annotations

from aegis.documents.json_reader import read_json
from aegis.documents.reader import Document, Lines, LookAlikes
from aegis.documents.values import HALF_A_PAIR, check_value, is_encodable
from aegis.documents.yaml_reader import read_yaml

__all__ = [
    "HALF_A_PAIR",
    "Document",
    "Lines",
    "LookAlikes",
    "check_value",
    "is_blank",
    "is_encodable",
    "read_document",
]


def read_document(source: str) -> Document:
    """Read a text.

    Args:
        source: JSON, if it is a valid JSON object; YAML otherwise.

    Raises:
        PolicyError: It is not YAML, or cannot be read on.
    """
    document = None
    if source.lstrip(" \t\r\n").startswith("{"):
        document = read_json(source)
    return read_yaml(source) if document is None else document


def is_blank(source: str) -> bool:
    """Whether there is nothing in a text but comments."""
    return all(not line.strip() or line.lstrip().startswith("#") for line in source.splitlines())
