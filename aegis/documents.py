"""Documents: YAML or JSON to plain values, and the line of each. The only YAML.

Only what policies and keys need of YAML is taken; of JSON, all of it is, and means what JSON means
by it.
"""

from __future__ import annotations

import json
import math
import re
import sys
from dataclasses import dataclass, field, replace
from datetime import date
from typing import Any, NoReturn

import yaml

from aegis.errors import PolicyError, Problem, Problems, named, shown

__all__ = [
    "HALF_A_PAIR",
    "NO_NUMBER",
    "Document",
    "Lines",
    "LookAlikes",
    "is_blank",
    "is_encodable",
    "is_number_of_json",
    "read_document",
]

MOST_EXPANDED_NODES = 100_000
"""How many nodes aliases may add to those that are written."""
DEEPEST_NESTING = 64
HALF_A_PAIR = "holds half of a surrogate pair, which is no character"
NO_NUMBER = f"is not a number that JSON has, of at most {sys.get_int_max_str_digits()} digits"

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
        lines: Where its parts stand; holds as long as `value` is kept.
        problems: What may not stand in it, though it could be read.
        look_alikes: Its scalars that are not what they look like; holds as long as `lines` does.
    """

    value: Any
    lines: Lines
    problems: Problems
    look_alikes: LookAlikes = field(default_factory=dict)


def read_document(source: str) -> Document:
    """Read a text.

    Args:
        source: JSON, where it is an object of valid JSON; YAML otherwise.

    Raises:
        PolicyError: It is no YAML, or cannot be read on.
    """
    if source.lstrip(" \t\r\n").startswith("{"):
        document = _read_line(source)
        if document is not None:
            return document
        if _is_json(source):
            return _JsonReader(source).read()
    return _YamlReader(source).read()


def is_blank(source: str) -> bool:
    """Whether there is nothing in a text but comments."""
    return all(not line.strip() or line.lstrip().startswith("#") for line in source.splitlines())


def is_number_of_json(value: object) -> bool:
    """Whether a value is a number that can be written as JSON and read again as it was."""
    if isinstance(value, float):
        return math.isfinite(value)
    if not isinstance(value, int):
        return False
    try:
        str(value)
    except ValueError:  # Python writes and reads integers of some thousand digits only
        return False
    return True


def is_encodable(text: str) -> bool:
    """Whether a text has only whole characters."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class _Reader:
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


# --- JSON ----------------------------------------------------------------------------------------

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\]\n]|[^\s{}\[\]:,"]+')
"""Strings, brackets, other scalars, and ends of lines; what stands between them says no more."""


def _is_json(source: str) -> bool:
    try:
        json.loads(source, parse_int=str)
    except (ValueError, RecursionError):
        return False
    return True


_HALF_OF_A_PAIR = re.compile(r"\\u[dD][89a-fA-F]")
"""What may be half of a pair, written as an escape."""


class _Doubtful(Exception):
    """Something that the reader of tokens has to look at."""


class _First(dict[Any, int]):
    """The lines of the parts of what stands in the first line."""

    def __missing__(self, _key: object) -> int:
        return 1


class _FirstLine(dict[int, dict[Any, int]]):
    """The lines of a text that has but one."""

    def __missing__(self, _key: object) -> dict[Any, int]:
        return _First()

    def get(self, _key: object, _default: object = None) -> Any:
        return _First()


def _read_line(source: str) -> Document | None:
    """Read JSON that stands in one line, as programs send it; None: it must be read with more care.

    Cost: a sixth of that of the reader of tokens.
    """
    if "\n" in source.rstrip() or _HALF_OF_A_PAIR.search(source):
        return None
    try:
        value = json.loads(
            source,
            object_pairs_hook=_members,
            parse_float=_float,
            parse_constant=_refuse,
        )
    except (ValueError, RecursionError, _Doubtful):
        return None
    return None if _is_deep(value) else Document(value, _FirstLine(), Problems())


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):  # a key stands twice
        raise _Doubtful
    return members


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise _Doubtful
    return value


def _refuse(_text: str) -> NoReturn:
    raise _Doubtful


def _is_deep(value: Any) -> bool:
    """Whether containers stand deeper in each other than they may."""
    level = [value]
    for _ in range(DEEPEST_NESTING):
        level = [
            member
            for container in level
            for member in (container.values() if isinstance(container, dict) else container)
            if isinstance(member, dict | list)
        ]
        if not level:
            return False
    return True


class _JsonReader(_Reader):
    """Builds plain values from the tokens of a text that is known to be JSON."""

    def __init__(self, source: str) -> None:
        super().__init__(source)
        self.root: Any = None

    def read(self) -> Document:
        line = 1
        for match in _TOKEN.finditer(self.source):
            token = match[0]
            if token == "\n":
                line += 1
            else:
                self._take(token, line)
        self._name_rules()
        return Document(self.root, self.lines, self.problems)

    def _take(self, token: str, line: int) -> None:
        if token in "}]":
            self.open.pop()
            self.keys.pop()
            self._go_on()
        elif token in "{[":
            container: Any = {} if token == "{" else []
            self._add(container, line)
            self.lines[id(container)] = {None: line}
            self.open.append(container)
            self.keys.append(None if token == "{" else 0)
            if len(self.open) > DEEPEST_NESTING:
                raise self._refused(f"nested deeper than {DEEPEST_NESTING} levels", line)
        elif token.startswith('"') and self._expects_key():
            self._take_key(self._scalar(token, line), line)
        else:
            self._add(self._scalar(token, line), line)
            self._go_on()

    def _expects_key(self) -> bool:
        return isinstance(self.open[-1], dict) and self.keys[-1] is None

    def _take_key(self, key: str, line: int) -> None:
        self.keys[-1] = key
        lines = self.lines[id(self.open[-1])]
        if key in lines:
            self._add_problem(_doubled(key, lines[key]), line)
        else:
            lines[key] = line

    def _add(self, value: Any, line: int) -> None:
        if not self.open:
            self.root = value
        elif isinstance(self.open[-1], list):
            self.lines[id(self.open[-1])][len(self.open[-1])] = line
            self.open[-1].append(value)
        else:
            self.open[-1].setdefault(self.keys[-1], value)

    def _go_on(self) -> None:
        """To the next member or item of what is open."""
        if self.open:
            self.keys[-1] = len(self.open[-1]) if isinstance(self.open[-1], list) else None

    def _scalar(self, token: str, line: int) -> Any:
        try:
            value = json.loads(token)
        except ValueError:  # an integer of thousands of digits
            value = math.inf
        if isinstance(value, str) and not is_encodable(value):
            self._add_problem(f"{shown(token)} {HALF_A_PAIR}", line)
            return ""
        if is_number_of_json(value) or not isinstance(value, int | float):
            return value
        self._add_problem(f"{shown(token)} {NO_NUMBER}", line)
        return 0


def _doubled(key: str, line: int) -> str:
    return f"key {shown(key)} stands twice; it was first written in line {line}"


# --- YAML ----------------------------------------------------------------------------------------

_Events: Any = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader


_Scalar, _MappingEnd = yaml.ScalarEvent, yaml.MappingEndEvent


class _YamlReader(_Reader):
    """Builds plain values from the parser's events: no tag is obeyed, nothing is constructed."""

    def __init__(self, source: str) -> None:
        super().__init__(source)
        # Each anchor's value, and how many nodes it stands for; None while it is being read.
        self.anchors: dict[str, tuple[Any, int] | None] = {}
        self.look_alikes: LookAlikes = {}
        self.look_alike_anchors: dict[str, str] = {}
        self.texts: set[str] = set()  # scalars without quotes that are texts: most stand often
        self.expanded = 0
        self.kept: list[Any] = []  # an `id` stays taken while `lines` speaks of it
        self.loader = _Events(source)

    def read(self) -> Document:
        try:
            document = self._document()
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line = mark.line + 1 if mark else None
            said = str(error.problem or error.context)
            if "maximum nesting depth" in said:  # the parser reads ahead, to a limit of its own
                raise self._refused(f"nested deeper than {DEEPEST_NESTING} levels", line) from None
            raise self._refused(f"not YAML: {self._advised(said, mark)}", line) from None
        except yaml.reader.ReaderError as error:
            raise self._refused(*self._unreadable(error)) from None
        except yaml.YAMLError as error:
            raise self._refused(f"not YAML: {error}", None) from None
        finally:
            self.loader.dispose()
        self._name_rules()
        return Document(document, self.lines, self.problems, self.look_alikes)

    def _advised(self, said: str, mark: Any) -> str:
        """What the parser says, and what would be right."""
        text = self.source.splitlines()[mark.line : mark.line + 1] if mark else []
        indentation = _INDENTATION.match(text[0]) if text else None
        if indentation is not None and "\t" in indentation[0]:
            return "a tab may not indent; use blanks"
        if "mapping values are not allowed" in said:
            return f"{said}; put texts that hold `: ` in quotes"
        if "alphabetic or numeric" in said or "cannot start any token" in said:
            return f"{said}; put texts that begin with a special character, as `*`, in quotes"
        return said

    def _unreadable(self, error: Any) -> tuple[str, int | None]:
        char = chr(error.character) if isinstance(error.character, int) else str(error.character)
        at = self.source.find(char)
        line = None if at < 0 else self.source.count("\n", 0, at) + 1
        return f"not YAML: the character {shown(char)} may not stand here as it is", line

    def _document(self) -> Any:
        self.loader.get_event()  # the start of the stream
        if self.loader.check_event(yaml.StreamEndEvent):
            return None
        self.loader.get_event()  # the start of the document
        document, _ = self._value(self.loader.get_event())
        self.loader.get_event()  # its end
        event = self.loader.get_event()
        if not isinstance(event, yaml.StreamEndEvent):
            self._problem("a second document; only one is taken", event)
        return document

    def _problem(self, message: str, event: Any) -> None:
        self._add_problem(message, event.start_mark.line + 1)

    def _value(self, event: Any) -> tuple[Any, int]:
        """A value, and how many nodes it is when its aliases are written out."""
        if type(event) is _Scalar and event.anchor is None and event.tag is None:  # most are
            return self._scalar(event), 1
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event)
        if event.anchor is not None:
            self.anchors[event.anchor] = None
            self.look_alike_anchors.pop(event.anchor, None)
        if event.tag is not None:
            self._problem(f"tag {shown(event.tag)}; tags are not taken", event)
        if isinstance(event, yaml.ScalarEvent):
            value, size = self._scalar(event), 1
        elif len(self.open) >= DEEPEST_NESTING:
            raise self._refused(
                f"nested deeper than {DEEPEST_NESTING} levels", event.start_mark.line + 1
            )
        elif isinstance(event, yaml.SequenceStartEvent):
            value, size = self._sequence(event)
        else:
            value, size = self._mapping(event)
        if event.anchor is not None:
            self.anchors[event.anchor] = value, size
        return value, size

    def _alias(self, event: Any) -> tuple[Any, int]:
        line = event.start_mark.line + 1
        if event.anchor not in self.anchors:
            raise self._refused(f"alias {shown(event.anchor)} has no anchor", line)
        known = self.anchors[event.anchor]
        if known is None:
            raise self._refused(f"alias {shown(event.anchor)} stands inside itself", line)
        self.expanded += known[1]
        if self.expanded > MOST_EXPANDED_NODES:
            raise self._refused(f"aliases expand to over {MOST_EXPANDED_NODES} nodes", line)
        if event.anchor in self.look_alike_anchors:
            self._note_look_alike(self.look_alike_anchors[event.anchor])
        return known

    def _sequence(self, start: Any) -> tuple[list[Any], int]:
        items: list[Any] = []
        lines = self._begin(items, start)
        size = 1
        while not isinstance(event := self.loader.get_event(), yaml.SequenceEndEvent):
            self.keys[-1] = len(items)
            lines[len(items)] = event.start_mark.line + 1
            item, nodes = self._value(event)
            items.append(item)
            size += nodes
        self._end()
        return items, size

    def _mapping(self, start: Any) -> tuple[dict[str, Any], int]:
        members: dict[str, Any] = {}
        merge: tuple[Any, Any] | None = None
        lines = self._begin(members, start)
        size = 1
        get_event, texts, keys = self.loader.get_event, self.texts, self.keys
        while type(event := get_event()) is not _MappingEnd:
            key: str | None
            is_merge = False
            if type(event) is _Scalar and event.value in texts and event.anchor is None:
                key = event.value
                if event.tag is not None:
                    self._key(event)
            else:
                is_merge = type(event) is _Scalar and event.implicit[0] and event.value == "<<"
                key = "<<" if is_merge else self._key(event)
            keys[-1] = key
            if is_merge and merge is not None:
                said = _doubled("<<", merge[0].start_mark.line + 1)
                self._problem(f"{said}; write `<<: [*a, *b]`", event)
            elif key in members and not is_merge:
                self._problem(_doubled(key, lines[key]), event)
            value, nodes = self._value(get_event())
            size += 1 + nodes
            if is_merge:
                merge = merge or (event, value)
            elif key is not None and key not in members:
                members[key] = value
                lines[key] = event.start_mark.line + 1
        if merge is not None:
            self.keys[-1] = "<<"
            self._merge(*merge, members, lines)
        self._end()
        return members, size

    def _merge(
        self, event: Any, value: Any, members: dict[str, Any], lines: dict[Any, int]
    ) -> None:
        # SOURCE: yaml.org/type/merge: what is written here, or merged earlier, stays.
        for part in value if isinstance(value, list) else [value]:
            if not isinstance(part, dict):
                self._problem(f"`<<` merges mappings, not {named(part)}", event)
                continue
            look_alikes = self.look_alikes.get(id(part), {})
            for key, member in part.items():
                if key not in members:
                    members[key] = member
                    lines[key] = self.lines[id(part)][key]
                    if key in look_alikes:
                        self.look_alikes.setdefault(id(members), {})[key] = look_alikes[key]

    def _key(self, event: Any) -> str | None:
        self.keys[-1] = event.value if isinstance(event, yaml.ScalarEvent) else None
        value, _ = self._value(event)
        if isinstance(value, str):
            return value
        written = shown(event.value) if isinstance(event, yaml.ScalarEvent) else named(value)
        self._problem(f"key {written} is not text; put it in quotes", event)
        return None

    def _begin(self, container: Any, start: Any) -> dict[Any, int]:
        """Open a container; its lines, to be filled."""
        self.kept.append(container)
        self.open.append(container)
        self.keys.append(None)
        lines: dict[Any, int] = {None: start.start_mark.line + 1}
        self.lines[id(container)] = lines
        return lines

    def _end(self) -> None:
        self.open.pop()
        self.keys.pop()

    def _scalar(self, event: Any) -> Any:
        text: str = event.value
        if not event.implicit[0] or text in self.texts:
            return text
        if _is_text(text):
            self.texts.add(text)
            return text
        try:
            tag = self.loader.resolve(yaml.ScalarNode, text, (True, False))
            value = self.loader.construct_object(yaml.ScalarNode(tag, text, event.start_mark))
        except (ValueError, OverflowError, yaml.YAMLError):
            self._problem(f"{shown(text)} has no value; put it in quotes if it is text", event)
            return ""
        if isinstance(value, date):
            self._problem(f"{shown(text)} is a date; put it in quotes", event)
            return text
        if value is not None and not isinstance(value, str | bool | int | float):
            self._problem(f"{shown(text)} is not text; put it in quotes", event)
            return text
        value = self._number(value, event)
        if (said := _look_alike(text, value)) is not None:
            self._note_look_alike(said)
            if event.anchor is not None:
                self.look_alike_anchors[event.anchor] = said
        return value

    def _note_look_alike(self, said: str) -> None:
        if self.open:
            self.look_alikes.setdefault(id(self.open[-1]), {})[self.keys[-1]] = said

    def _number(self, value: Any, event: Any) -> Any:
        if is_number_of_json(value) or not isinstance(value, int | float):
            return value
        self._problem(f"{shown(event.value)} {NO_NUMBER}", event)
        return 0


_INDENTATION = re.compile(r"[ \t]*")
_DECIMAL = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_LIKE_A_NUMBER = re.compile(
    r"[-+]?([0-9][0-9_]*\.?[0-9_]*|\.[0-9]+)([eE][-+]?[0-9]+)?|0o[0-7]+|[0-9]{1,3}(,[0-9]{3})+(\.[0-9]+)?"
)


_RESOLVERS: Any = yaml.SafeLoader.yaml_implicit_resolvers


def _is_text(text: str) -> bool:
    """Whether a scalar without quotes is a text, and looks like one."""
    return text != "" and not (
        any(pattern.match(text) for _, pattern in _RESOLVERS.get(text[0], ()))
        or _LIKE_A_NUMBER.fullmatch(text)
    )


def _look_alike(text: str, value: Any) -> str | None:
    """How YAML 1.1 reads a scalar without quotes, where people and other readers do otherwise."""
    match value:
        case bool() if text.lower() not in ("true", "false"):
            return f"{shown(text)} is read as `{json.dumps(value)}`; put it in quotes if it is text"
        case int() if not isinstance(value, bool) and _DECIMAL.fullmatch(text) is None:
            return f"{shown(text)} is read as the number {value}; write that, or put it in quotes"
        case float() if ":" in text or "_" in text:
            return f"{shown(text)} is read as the number {value}; write that, or put it in quotes"
        case str() if _LIKE_A_NUMBER.fullmatch(text) is not None:
            return f"{shown(text)} is read as text, not as a number; write its digits, or put it in quotes"
    return None
