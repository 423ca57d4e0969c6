"""What documents show: their fenced blocks, and the commands and answers in these."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").glob("*.md")]
)

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"# ([\w/]+\.(?:py|yaml))\n")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        line: Where it begins.
        language: What stands behind the fence.
        text: What stands inside.
    """

    line: int
    language: str
    text: str

    @property
    def file(self) -> str | None:
        """The file that its first line names; None: it names none."""
        named = _FILE.match(self.text)
        return None if named is None else named[1]

    def commands(self) -> Iterator[tuple[str, str]]:
        """The commands of a console, and what each of them shows."""
        for part in re.split(r"^\$ ", self.text, flags=re.MULTILINE)[1:]:
            command, _, shown = part.partition("\n")
            yield command, shown


def blocks(document: Path) -> list[Block]:
    """The blocks of a document, in their order."""
    text = document.read_text(encoding="utf-8")
    return [
        Block(text.count("\n", 0, found.start()) + 1, found[1], found[2])
        for found in _FENCE.finditer(text)
    ]


def rows(document: str, heading: str) -> list[list[str]]:
    """The cells of the first table behind a heading, without its head; code marks taken away."""
    text = (ROOT / document).read_text(encoding="utf-8")
    found = re.search(rf"^#+ {re.escape(heading)}$(.*?)(?=^#+ |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found is not None, f"{document} has no heading {heading}"
    lines = [line for line in found[1].splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[2:]]


def words(cell: str) -> list[str]:
    """What stands in code marks in a cell."""
    return re.findall(r"`([^`]*)`", cell)


def agrees(found: str, shown: str) -> bool:
    """Whether an output is the one that is shown; `…` stands for anything."""
    if shown.startswith(("{", "[")):
        return _matches(json.loads(found), json.loads(shown))
    pattern = ".*".join(map(re.escape, shown.strip().split("…")))
    return re.fullmatch(pattern, found.strip(), re.DOTALL) is not None


def _matches(found: object, shown: object) -> bool:
    if shown == "…":
        return True
    if isinstance(shown, dict) and isinstance(found, dict):
        return list(found) == list(shown) and all(_matches(found[key], shown[key]) for key in shown)
    if isinstance(shown, list) and isinstance(found, list):
        return len(found) == len(shown) and all(map(_matches, found, shown))
    return found == shown
