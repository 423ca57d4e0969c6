"""What an option takes: each type reads one value, text or Python's own, or says what is wrong with it.

The command line, the environment and `create_app` all read their values here, so that they take the
same ones. What is wrong is a ValueError whose text follows the option's name in a message.
"""

from __future__ import annotations

import errno
import math
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable
from contextlib import suppress
from enum import StrEnum
from typing import ClassVar, Generic, TypeVar

from aegis.errors import ConfigError
from aegis.hosts import allowed_hosts_of
from aegis.messages import quote

__all__ = [
    "DASH",
    "MAX_INTEGER",
    "Choice",
    "File",
    "Flag",
    "Hosts",
    "Integer",
    "KeysFile",
    "Names",
    "Number",
    "OptionType",
    "Processes",
    "SecretKey",
    "Text",
]

DASH = "-"
"""What is written for standard input, or output, where a file could be."""
MAX_INTEGER = 2**63 - 1
"""What the database can hold."""

_Value = TypeVar("_Value")
_Kind = TypeVar("_Kind", bound=StrEnum)

_INTEGER = re.compile(r"[+-]?[0-9]{1,19}")
_TRUE = frozenset(("1", "true", "yes", "on", "t", "y"))
_FALSE = frozenset(("0", "false", "no", "off", "f", "n"))


class OptionType(ABC, Generic[_Value]):
    """The values that an option takes.

    Attributes:
        name: What help calls a value.
        limits: Which values, in a few words; empty: any.
        choices: All values, where they are few.
        is_list: Whether the option can be given several times.
        guards_access: Whether a blank value could open the server, and is therefore a mistake rather than
            the same as none.
    """

    name: ClassVar[str]
    limits: str = ""
    choices: tuple[str, ...] = ()
    is_list: ClassVar[bool] = False
    guards_access: ClassVar[bool] = False

    @abstractmethod
    def parse(self, value: object) -> _Value:
        """The value, checked.

        Args:
            value: Text, or what this has returned before.

        Raises:
            ValueError: It is not one; the text says what is wrong and what would be right.
        """


class Text(OptionType[str]):
    """Text of Unicode, in UTF-8 whatever the locale is."""

    name = "text"

    def parse(self, value: object) -> str:  # noqa: D102 - inherited
        text = str(value)
        if not _is_unicode(text):  # bytes that the locale cannot read
            try:
                return os.fsencode(text).decode()
            except UnicodeError:
                raise ValueError(f"{quote(text)} is not UTF-8") from None
        return text


class File(OptionType[str]):
    """The name of a file; any bytes but the one that ends it.

    Args:
        takes_dash: Whether `-` is one, and means standard input or output.
    """

    name = "file"

    def __init__(self, *, takes_dash: bool = False) -> None:
        self._takes_dash = takes_dash

    def parse(self, value: object) -> str:  # noqa: D102 - inherited
        path = str(value)
        if not path:
            raise ValueError("`` is not the name of a file")
        if path == DASH and not self._takes_dash:
            raise ValueError("`-` must be a file here; write `./-` for one of that name")
        try:
            os.lstat(path)
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                raise ValueError(f"{quote(path)} is too long for the name of a file") from None
        except ValueError:  # NUL, or letters that the locale cannot write
            raise ValueError(f"{quote(path)} cannot be the name of a file") from None
        return path


class KeysFile(File):
    """The file that holds the keys."""

    guards_access = True

    def parse(self, value: object) -> str:  # noqa: D102 - inherited
        if not str(value).strip():
            raise ValueError("is set but empty; unset it to serve without keys")
        return super().parse(value)


class SecretKey(OptionType[str]):
    """A key that callers can send: without the blanks around it, which a header's value loses."""

    name = "key"
    guards_access = True

    def parse(self, value: object) -> str:  # noqa: D102 - inherited
        key = str(value).strip()
        if not key:
            raise ValueError("is set but empty; unset it to serve without keys")
        # SOURCE: RFC 6750 section 2.1 has no blanks in a token; servers keep other bytes to themselves.
        if not all("!" <= char <= "~" for char in key):
            raise ValueError("must be visible ASCII characters without blanks; make another key")
        return key


class Integer(OptionType[int]):
    """An integer from `minimum` to `maximum`, both included."""

    name = "integer"

    def __init__(self, minimum: int, maximum: int = MAX_INTEGER) -> None:
        self._range = range(minimum, maximum + 1)
        is_open = maximum == MAX_INTEGER
        self.limits = f"of at least {minimum}" if is_open else f"from {minimum} to {maximum}"

    def parse(self, value: object) -> int:  # noqa: D102 - inherited
        number = value
        if isinstance(value, str) and _INTEGER.fullmatch(text := value.strip()):
            number = int(text)
        if type(number) is not int or number not in self._range:
            raise ValueError(f"{quote(value)} must be an integer {self.limits}")
        return number


class Processes(Integer):
    """A number of processes; `auto` is one for each core."""

    def __init__(self, minimum: int, maximum: int) -> None:
        super().__init__(minimum, maximum)
        self._maximum = maximum
        self.limits += ", or `auto`"

    def parse(self, value: object) -> int:  # noqa: D102 - inherited
        if value == "auto":
            return min(len(os.sched_getaffinity(0)), self._maximum)
        return super().parse(value)


class Number(OptionType[float]):
    """A number from `minimum`, which may be excluded, to `maximum`."""

    name = "number"

    def __init__(self, minimum: float, maximum: float, *, excludes_minimum: bool = False) -> None:
        self._minimum, self._maximum = minimum, maximum
        self._excluded = minimum if excludes_minimum else None
        least = f"above {minimum:g}, up" if excludes_minimum else f"from {minimum:g}"
        self.limits = f"{least} to {maximum:.15g}"

    def parse(self, value: object) -> float:  # noqa: D102 - inherited
        number = math.nan
        if isinstance(value, int | float) and not isinstance(value, bool):
            number = value
        # Python would also take `1_0`, and digits of other scripts.
        elif isinstance(value, str) and value.isascii() and "_" not in value:
            with suppress(ValueError):
                number = float(value)
        # nan is neither below nor above anything.
        if not self._minimum <= number <= self._maximum or number == self._excluded:
            raise ValueError(f"{quote(value)} must be a number {self.limits}")
        return float(number)


class Flag(OptionType[bool]):
    """Yes or no."""

    name = "flag"
    choices = ("true", "false")
    limits = "`true` or `false`"

    def parse(self, value: object) -> bool:  # noqa: D102 - inherited
        if isinstance(value, bool):
            return value
        text = str(value).strip().lower()
        if text not in _TRUE | _FALSE:
            raise ValueError(f"{quote(value)} must be {self.limits}")
        return text in _TRUE


class Choice(OptionType[_Kind]):
    """One of the members of an enumeration."""

    name = "choice"

    def __init__(self, kinds: type[_Kind]) -> None:
        self._kinds = kinds
        self.choices = tuple(kind.value for kind in kinds)
        self.limits = ", ".join(f"`{choice}`" for choice in self.choices)

    def parse(self, value: object) -> _Kind:  # noqa: D102 - inherited
        try:
            return self._kinds(str(value))
        except ValueError:
            known = ", ".join(self.choices)
            raise ValueError(f"{quote(value)} is unknown; known: {known}") from None


class Names(OptionType[frozenset[str]]):
    """Names, in one text with commas or blanks between them, or one by one."""

    name = "names"
    is_list = True

    def parse(self, value: object) -> frozenset[str]:  # noqa: D102 - inherited
        return frozenset(filter(None, _names_in(value)))


class Hosts(Names):
    """Names of hosts, as `aegis.hosts` checks them."""

    name = "hosts"

    def parse(self, value: object) -> frozenset[str]:  # noqa: D102 - inherited
        try:
            return allowed_hosts_of(_names_in(value) or [""] * isinstance(value, str))
        except ConfigError as error:
            raise ValueError(str(error)) from None


def _names_in(value: object) -> list[str]:
    if isinstance(value, str):
        return value.replace(",", " ").split()
    names = []
    for name in value if isinstance(value, Iterable) else [value]:
        if not isinstance(name, str):
            raise ValueError(f"{quote(name)} must be a name")
        names.append(name)
    return names


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
