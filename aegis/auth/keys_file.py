"""The keys file: reading it, and editing it without touching the rest of its text."""

from __future__ import annotations

import os
import re
import secrets
import stat
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from aegis import timestamps
from aegis.auth.keys import ADMIN_KEY, API_KEY, Key, digest_of
from aegis.auth.roles import PERMISSIONS, Permission, Role
from aegis.codec import dumps
from aegis.documents import Lines, read_document
from aegis.errors import ConfigError, PolicyError, Problem, Problems
from aegis.host.locks import lock_file
from aegis.messages import json_type, quote, suggest

__all__ = ["add_key", "change_keys", "parse_keys", "read_keys", "read_text", "remove_key"]

MAX_KEYS_BYTES = 1024 * 1024

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")
_NO_KEYS = re.compile(r"keys:\s*(\[\s*\]|null|~)?\s*")
_BLANK_OR_COMMENT = re.compile(r"\s*(#.*)?")
_FIELDS = ("name", "role", "sha256", "agents", "expires")
_TOP_FIELDS = ("keys",)


def read_keys(path: str) -> list[Key]:
    """The keys of a file.

    Raises:
        ConfigError: It cannot be read, or what is wrong with it, each with its line.
    """
    return parse_keys(read_text(path), path)


def read_text(path: str) -> str:
    """The text of a keys file.

    Raises:
        ConfigError: It cannot be read, or others may write it.
    """
    what = f"the keys file {quote(path)}"
    try:
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode):
            raise ConfigError(f"{what} is no regular file; it is read again and again")
        if mode & stat.S_IWOTH:
            raise ConfigError(f"{what} can be written by everyone; take that away: chmod o-w")
        with Path(path).open("rb") as file:
            data = file.read(MAX_KEYS_BYTES + 1)
        if len(data) > MAX_KEYS_BYTES:
            raise ConfigError(f"{what} is over {MAX_KEYS_BYTES} bytes")
        return data.decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"cannot read {what}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{what} is not UTF-8; save it as UTF-8") from None


def parse_keys(source: str, path: str) -> list[Key]:
    """The keys of a file's text.

    Args:
        source: YAML or JSON.
        path: What the file is called, for messages.

    Raises:
        ConfigError: What is wrong with it, each with its line.
    """
    try:
        document = read_document(source)
        reader = _Reader(document.lines, document.problems)
        keys = reader.keys(document.value)
        if reader.problems:
            raise PolicyError(reader.problems.all())
    except PolicyError as error:
        said = [f"{path}:{problem.line or 1}: {problem}" for problem in error.problems[:5]]
        more = len(error.problems) - len(said)
        raise ConfigError("; ".join(said) + (f"; and {more} more" if more else "")) from None
    return keys


class _Reader:
    """Checks a document and builds its keys; collects every problem on the way."""

    def __init__(self, lines: Lines, problems: Problems) -> None:
        self.lines = lines
        self.problems = problems
        self._names: set[str] = set()
        self._digests: set[bytes] = set()

    def keys(self, document: object) -> list[Key]:
        if document is None:
            return []
        top = self._members(document, _TOP_FIELDS, "a keys file")
        listed = top and top.get("keys")
        if top is None or listed is None:
            return []
        if not isinstance(listed, list):
            self._problem(f"`keys` must be a list, not {json_type(listed)}", top, "keys")
            return []
        read = [self._key(listed, index) for index in range(len(listed))]
        return [key for key in read if key is not None]

    def _key(self, listed: list[Any], index: int) -> Key | None:
        before = len(self.problems)
        key = self._members(listed[index], _FIELDS, "a key", listed, index)
        if key is None:
            return None
        name = self._name(key)
        role = self._role(key)
        digest = self._digest(key)
        agents = self._agents(key, role)
        expires = self._expires(key)
        if len(self.problems) > before or role is None:
            return None
        return Key(name, digest, PERMISSIONS[role], role, agents, expires)

    def _name(self, key: Mapping[str, Any]) -> str:
        name = self._text(key, "name", "what audit records are to call it")
        if name and not _NAME.fullmatch(name):
            said = f"name {quote(name)} must be letters, digits, `.`, `_` and `-`, at most 64"
            self._problem(said, key, "name")
        if name in (API_KEY, ADMIN_KEY):
            self._problem(f"name {quote(name)} stands for the environment's key", key, "name")
        if name in self._names:
            self._problem(f"name {quote(name)} stands twice; names are unique", key, "name")
        self._names.add(name)
        return name

    def _role(self, key: Mapping[str, Any]) -> Role | None:
        text = self._text(key, "role", "agent, auditor, operator or admin")
        try:
            return Role(text) if text else None
        except ValueError:
            self._problem(f"unknown role {quote(text)}{suggest(text, list(Role))}", key, "role")
            return None

    def _digest(self, key: Mapping[str, Any]) -> bytes:
        text = self._text(key, "sha256", "the SHA-256 of the key; `aegis keys new` writes it")
        if not text:
            return b""
        if not _SHA256.fullmatch(text):
            # Not shown: someone may have written the key itself here.
            self._problem("sha256 must be 64 hexadecimal digits, in quotes", key, "sha256")
            return b""
        digest = bytes.fromhex(text)
        if digest in self._digests:
            self._problem("the same sha256 stands twice; give each key a name", key, "sha256")
        self._digests.add(digest)
        return digest

    def _agents(self, key: Mapping[str, Any], role: Role | None) -> tuple[str, ...]:
        if "agents" not in key:
            return ()
        agents = key["agents"]
        if not isinstance(agents, list) or not agents:
            said = "agents must be a list of patterns; leave it out for any agent"
        elif any(not isinstance(agent, str) or not agent for agent in agents):
            said = "agents must be texts that are not empty"
        elif role is not None and Permission.DECIDE not in PERMISSIONS[role]:
            said = f"agents is for keys that decide; the role {role} speaks for nobody"
        else:
            return tuple(agents)
        self._problem(said, key, "agents")
        return ()

    def _expires(self, key: Mapping[str, Any]) -> float | None:
        if "expires" not in key:
            return None
        text = key["expires"]
        try:
            return timestamps.parse_rfc3339(text) // 1_000 / 1_000
        except (TypeError, ValueError):
            said = f"expires must be as in `2027-01-31T00:00:00Z`, in quotes, not {quote(text)}"
            self._problem(said, key, "expires")
            return None

    def _members(
        self,
        value: object,
        known: Sequence[str],
        what: str,
        parent: object = None,
        place: object = None,
    ) -> Mapping[str, Any] | None:
        if not isinstance(value, dict):
            self._problem(
                f"{what} must be a mapping, not {json_type(value)}", parent or value, place
            )
            return None
        for member in value:
            if member not in known:
                self._problem(
                    f"unknown member {quote(member)}{suggest(member, known)}", value, member
                )
        return value

    def _text(self, key: Mapping[str, Any], member: str, what: str) -> str:
        text = key.get(member)
        if isinstance(text, str) and text:
            return text
        said = (
            "is missing" if text is None or text == "" else f"must be text, not {json_type(text)}"
        )
        self._problem(f"{member} {said}: {what}", key, member)
        return ""

    def _problem(self, message: str, container: object, member: object) -> None:
        lines = self.lines.get(id(container), {})
        self.problems.append(Problem(message, lines.get(member, lines.get(None))))


# --- changes of the file -------------------------------------------------------------------------


_CHANGE_TIMEOUT_S = 10.0


def change_keys(path: str, change: Callable[[str], str]) -> None:
    """Change the file as a whole, one process after the other.

    Args:
        path: The file; made where there is none.
        change: Makes the new text of the old one.

    Raises:
        ConfigError: It cannot be read or written, or what `change` raises; nothing has changed then.
    """
    target = Path(path).resolve()  # of a link, what it points to is replaced
    try:
        folder = os.open(target.parent, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError(f"cannot open {quote(str(target.parent))}: {error.strerror}") from None
    try:
        if not lock_file(folder, _CHANGE_TIMEOUT_S):
            raise ConfigError(
                f"another process does not end its change of {quote(path)}; try again"
            )
        _replace(target, change(read_text(path) if target.exists() else ""))
        os.fsync(folder)
    finally:
        os.close(folder)


def _replace(target: Path, source: str) -> None:
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
    try:
        # Digests only, but nobody else has to know who there is; what an operator chose stays.
        mode = target.stat().st_mode & 0o777 if target.exists() else 0o600
        file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        try:
            os.fchmod(file, mode)
            if target.exists():
                _keep_owner(file, target)
            with os.fdopen(file, "wb", closefd=False) as writer:
                writer.write(source.encode())
            os.fsync(file)
        finally:
            os.close(file)
        temporary.replace(target)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise ConfigError(f"cannot write {quote(str(target))}: {error.strerror}") from None


def _keep_owner(file: int, target: Path) -> None:
    owner = target.stat()
    if (owner.st_uid, owner.st_gid) != (os.geteuid(), os.getegid()):
        os.fchown(file, owner.st_uid, owner.st_gid)


def add_key(
    source: str, path: str, name: str, role: Role, secret: str, agents: Sequence[str], expires: str
) -> str:
    """The text of a keys file with one key more; what stands in it stays as it is.

    Args:
        source: The file's text; may be empty.
        path: What it is called, for messages.
        name: The key's name.
        role: Its role.
        secret: The key itself; only its digest is written.
        agents: Patterns; none: any agent.
        expires: RFC 3339; "": never.

    Raises:
        ConfigError: The file or the key is refused, or the file is not written as a block list.
    """
    before = parse_keys(source, path)
    if any(key.name == name for key in before):
        raise ConfigError(f"there is a key {quote(name)} already; revoke it first")
    digest = digest_of(secret.encode())
    entry = [f"- name: {_quoted(name)}", f"  role: {role}", f'  sha256: "{digest.hex()}"']
    if agents:
        entry.append(f"  agents: [{', '.join(map(_quoted, agents))}]")
    if expires:
        entry.append(f"  expires: {_quoted(expires)}")
    lines = source.rstrip().split("\n") if source.strip() else []
    if before:
        first = lines[_lines_of_keys(source)[0] - 1]
        indent = first[: len(first) - len(first.lstrip())]
    else:
        indent = "  "
        lines = [line for line in lines if not _NO_KEYS.fullmatch(line)] + ["keys:"]
    made = "\n".join([*lines, *(indent + line for line in entry), ""])
    after = _parsed_again(made, path)
    if after[:-1] != before or after[-1].digest != digest:
        raise _not_by_itself(path)
    return made


def remove_key(source: str, path: str, name: str) -> str:
    """The text of a keys file without one key; the rest stays as it is.

    Raises:
        ConfigError: The file is refused, has no such key, or is not written as a block list.
    """
    before = parse_keys(source, path)
    names = [key.name for key in before]
    if name not in names:
        hint = suggest(name, names) if names else ""
        raise ConfigError(f"there is no key {quote(name)} in {quote(path)}{hint}")
    lines = source.rstrip().split("\n")
    starts = [number - 1 for number in _lines_of_keys(source)] + [len(lines)]
    start, end = (starts[index] for index in (names.index(name), names.index(name) + 1))
    if not lines[start].lstrip().startswith("-"):
        raise _not_by_itself(path)
    while end > start + 1 and _BLANK_OR_COMMENT.fullmatch(lines[end - 1]):
        end -= 1  # a comment above the next key is that one's
    made = "\n".join([*lines[:start], *lines[end:], ""])
    if _parsed_again(made, path) != [key for key in before if key.name != name]:
        raise _not_by_itself(path)
    return made


def _lines_of_keys(source: str) -> list[int]:
    document = read_document(source)
    listed = document.value["keys"]
    lines = document.lines.get(id(listed), {})  # there are none where all stands in one
    return [lines.get(index, 1) for index in range(len(listed))]


def _quoted(text: str) -> str:
    return dumps(text).decode()  # a string of JSON is one of YAML


def _parsed_again(source: str, path: str) -> list[Key]:
    try:
        return parse_keys(source, path)
    except ConfigError as error:
        raise ConfigError(f"the change would not be taken: {error}") from None


def _not_by_itself(path: str) -> ConfigError:
    return ConfigError(
        f"{quote(path)} is not written as a list of `- name: …`, one key after the other; change it"
        " by hand"
    )
