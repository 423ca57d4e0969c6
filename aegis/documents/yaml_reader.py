"""YAML to plain values, and the line of each; only what policies and keys need of it. The only YAML."""

from __future__ import annotations

import json
import re
from datetime import date
from typing import Any

import yaml

from aegis.documents.reader import Document, LookAlikes, Reader, repeated_key
from aegis.documents.values import (
    MAX_EXPANDED_NODES,
    MAX_NESTING,
    NO_NUMBER,
    TOO_DEEP,
    is_number_of_json,
)
from aegis.messages import json_type, quote

__all__ = ["read_yaml"]

_Events: Any = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader


_Scalar, _MappingEnd = yaml.ScalarEvent, yaml.MappingEndEvent


def read_yaml(source: str) -> Document:
    """Read a text as YAML.

    Raises:
        PolicyError: It is not YAML, or cannot be read on.
    """
    return _YamlReader(source).read()


class _YamlReader(Reader):
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
                raise self._refused(TOO_DEEP, line) from None
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
        return f"not YAML: the character {quote(char)} may not stand here as it is", line

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
            self._problem(f"tag {quote(event.tag)}; tags are not taken", event)
        if isinstance(event, yaml.ScalarEvent):
            value, size = self._scalar(event), 1
        elif len(self.open) >= MAX_NESTING:
            raise self._refused(TOO_DEEP, event.start_mark.line + 1)
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
            raise self._refused(f"alias {quote(event.anchor)} has no anchor", line)
        known = self.anchors[event.anchor]
        if known is None:
            raise self._refused(f"alias {quote(event.anchor)} stands inside itself", line)
        self.expanded += known[1]
        if self.expanded > MAX_EXPANDED_NODES:
            raise self._refused(f"aliases expand to over {MAX_EXPANDED_NODES} nodes", line)
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
                said = repeated_key("<<", merge[0].start_mark.line + 1)
                self._problem(f"{said}; write `<<: [*a, *b]`", event)
            elif key in members and not is_merge:
                self._problem(repeated_key(key, lines[key]), event)
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
                self._problem(f"`<<` merges mappings, not {json_type(part)}", event)
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
        written = quote(event.value) if isinstance(event, yaml.ScalarEvent) else json_type(value)
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
            self._problem(f"{quote(text)} has no value; put it in quotes if it is text", event)
            return ""
        if isinstance(value, date):
            self._problem(f"{quote(text)} is a date; put it in quotes", event)
            return text
        if value is not None and not isinstance(value, str | bool | int | float):
            self._problem(f"{quote(text)} is not text; put it in quotes", event)
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
        self._problem(f"{quote(event.value)} {NO_NUMBER}", event)
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
            return f"{quote(text)} is read as `{json.dumps(value)}`; put it in quotes if it is text"
        case int() if not isinstance(value, bool) and _DECIMAL.fullmatch(text) is None:
            return f"{quote(text)} is read as the number {value}; write that, or put it in quotes"
        case float() if ":" in text or "_" in text:
            return f"{quote(text)} is read as the number {value}; write that, or put it in quotes"
        case str() if _LIKE_A_NUMBER.fullmatch(text) is not None:
            return f"{quote(text)} is read as text, not as a number; write its digits, or put it in quotes"
    return None
