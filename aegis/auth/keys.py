"""The keys: who may call and what each may do; the file that holds them, and changes of it.

Only digests of keys are ever kept. A key has over 128 random bits, so a plain SHA-256 of it gives
nothing away; a word that a person chose would need a slow hash, and is no key.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import re
import secrets
import stat
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from fnmatch import translate
from hmac import compare_digest
from pathlib import Path
from typing import Any, Self

from aegis import timestamps
from aegis.codec import dumps, loads_own
from aegis.documents import Lines, is_blank, read_document
from aegis.errors import (
    ConfigError,
    PolicyError,
    Problem,
    Problems,
    did_you_mean,
    named,
    shown,
)
from aegis.host.memory import SharedBytes
from aegis.host.watched import Look, Settling, look_at

__all__ = [
    "Key",
    "KeyRing",
    "Permission",
    "Role",
    "add_key",
    "change_keys",
    "digest_of",
    "environment_keys",
    "new_secret",
    "parse_keys",
    "read_keys",
    "remove_key",
]

_log = logging.getLogger("aegis.keys")

LARGEST_KEYS_BYTES = 1024 * 1024
MAX_SHARED_BYTES = 16 * 1024 * 1024
LOOK_AGAIN_S = 0.25
"""How old the knowledge of the file may be: a revoked key is unknown after this long."""

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")
_WILD = re.compile(r"[*?\[]")
_NO_KEYS = re.compile(r"keys:\s*(\[\s*\]|null|~)?\s*")
_BLANK_OR_COMMENT = re.compile(r"\s*(#.*)?")
_FIELDS = ("name", "role", "sha256", "agents", "expires")
_TOP_FIELDS = ("keys",)
_API_KEY, _ADMIN_KEY = "AEGIS_API_KEY", "AEGIS_ADMIN_KEY"


class Permission(StrEnum):
    """What a route asks of a key."""

    DESCRIBE = "describe"
    DECIDE = "decide"
    READ = "read"
    CHANGE_POLICY = "change_policy"


class Role(StrEnum):
    """What a key is for."""

    AGENT = "agent"
    AUDITOR = "auditor"
    OPERATOR = "operator"
    ADMIN = "admin"


_PERMISSIONS = {
    Role.AGENT: frozenset((Permission.DESCRIBE, Permission.DECIDE)),
    Role.AUDITOR: frozenset((Permission.DESCRIBE, Permission.READ)),
    Role.OPERATOR: frozenset((Permission.DESCRIBE, Permission.READ, Permission.CHANGE_POLICY)),
    Role.ADMIN: frozenset(Permission),
}
_API_PERMISSIONS = frozenset(Permission) - {Permission.CHANGE_POLICY}


@dataclass(frozen=True, slots=True)
class Key:
    """A key, without what it takes to use it.

    Attributes:
        name: What audit records and policy versions call it.
        digest: SHA-256 of the key, 32 bytes.
        permissions: What it may do.
        role: Where that comes from; None for the API key of the environment.
        agents: Patterns of the agents that it may speak for; empty: any.
        expires_s: From when on it is no key any more, in seconds since the epoch; None: never.
    """

    name: str
    digest: bytes = field(repr=False)
    permissions: frozenset[Permission]
    role: Role | None = None
    agents: tuple[str, ...] = ()
    expires_s: float | None = None
    _matches: Callable[[str], object] | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        pattern = "|".join(translate(agent) for agent in self.agents)
        object.__setattr__(self, "_matches", re.compile(pattern).match if self.agents else None)

    def is_expired(self, now_s: float) -> bool:
        """Whether it is no key any more."""
        return self.expires_s is not None and now_s >= self.expires_s

    def agent_for(self, agent_id: str) -> str | None:
        """The agent that an action of this key is by.

        Args:
            agent_id: As the action has it; "" where it has none.

        Returns:
            It, or the only agent that the key may speak for; None where it may not speak for it.
        """
        if self._matches is None:
            return agent_id
        if not agent_id and len(self.agents) == 1 and not _WILD.search(self.agents[0]):
            return self.agents[0]
        return agent_id if self._matches(agent_id) else None


_NOBODY = Key("", bytes(32), frozenset())


def digest_of(secret: bytes) -> bytes:
    """What is kept of a key."""
    return hashlib.sha256(secret).digest()


def new_secret() -> str:
    """A new key: 256 random bits, recognisable where it should not be."""
    return f"aegis_{secrets.token_urlsafe(32)}"


def environment_keys(api_key: str | None, admin_key: str | None) -> list[Key]:
    """The two keys of the environment. Without an admin key, the API key is one."""
    keys = []
    if api_key is not None:
        may = _API_PERMISSIONS if admin_key is not None else frozenset(Permission)
        keys.append(Key(_API_KEY, digest_of(api_key.encode()), may))
    if admin_key is not None:
        digest = digest_of(admin_key.encode())
        keys.append(Key(_ADMIN_KEY, digest, frozenset(Permission), Role.ADMIN))
    return keys


class KeyRing:
    """The keys that are known now; those of a file are read again when it changes.

    Invariant: what is known of the file is never older than `LOOK_AGAIN_S`, besides the time that a
    file which is being written takes to be whole. A file that is refused leaves the keys before it in
    force, loudly: taking all of them away would stop every agent for a mistyped line. These belong to
    all processes of a server together, so that one that is started meanwhile knows them too.

    Args:
        fixed: Keys that do not change.
        path: The keys file; None: there is none.
        clock: Seconds, monotonic.
        shared: What the processes of a server know of the file; None: this one is on its own.
    """

    def __init__(
        self,
        fixed: Iterable[Key],
        path: str | None = None,
        clock: Callable[[], float] = time.monotonic,
        *,
        shared: SharedBytes | None = None,
    ) -> None:
        self._fixed = {key.digest: key for key in fixed}
        self._keys = self._fixed
        self._good: dict[bytes, Key] = {}  # at most as many as there are keys
        self._path = path
        self._clock = clock
        self._look_at = clock() + LOOK_AGAIN_S
        self._shared = shared
        self._version = 0  # of what is shared
        self._known = _KnownFile()
        if path is not None:
            self._shared = shared or SharedBytes(MAX_SHARED_BYTES)
            self._settling = Settling(path, clock)
            self._look(path, self._shared)

    def find(self, secret: bytes) -> Key | None:
        """The key that a caller presents; None: it is unknown. It may have expired."""
        if self._path is not None and self._clock() >= self._look_at:
            self.look()
        # A digest costs more than a decision, so good keys are remembered as they were sent. No step
        # tells how much of a wrong key is right: a dict hashes with a secret of the process's own
        # and compares nothing unless the whole hash is equal, and of two keys that differ in one
        # letter the digests have nothing in common.
        found = self._good.get(secret)
        if found is not None:
            return found
        digest = digest_of(secret)
        key = self._keys.get(digest, _NOBODY)
        if not compare_digest(digest, key.digest):
            return None
        self._good[secret] = key
        return key

    def look(self) -> None:
        """See whether the file has changed."""
        if self._path is not None and self._shared is not None:
            self._look_at = self._clock() + LOOK_AGAIN_S
            self._look(self._path, self._shared)

    def failures(self) -> tuple[int, str | None]:
        """How often the file was refused, and why it is now, without a name or a line of it."""
        self.look()
        return self._known.failures, self._known.refused

    def _look(self, path: str, shared: SharedBytes) -> None:
        self._adopt(shared)
        if not self._has_changed(look_at(path)):
            return
        with shared.turn() as is_ours:
            if not is_ours:
                return  # who has the turn tells us what came of it
            self._adopt(shared)
            look = look_at(path)  # before it is read: what changes later is seen later
            if not self._has_changed(look):
                return
            after = self._read(path, look)
            if after.refused is None and not self._is_whole(look):
                return
            if after.refused is None and self._known.is_read:
                _log.warning("%s was read again: %d keys", shown(path), len(after.keys))
            shared.replace(after.as_bytes())
            self._adopt(shared)

    def _has_changed(self, look: Look) -> bool:
        """Whether the file is another one than was read last, and nobody writes it now."""
        known = self._known
        is_known = known.is_read and look == known.look
        return not is_known and self._settling.is_written(look)

    def _is_whole(self, look: Look) -> bool:
        before = self._known.look
        # Another file in its place, as `aegis keys` makes it, is whole: what it revokes is gone now.
        is_other = look is None or before is None or look[:2] != before[:2]
        return is_other or before is None or self._settling.is_whole(look, before[2])

    def _read(self, path: str, look: Look) -> _KnownFile:
        """What is known of the file once it is read; says why it is refused."""
        known = self._known
        refused = "the keys file cannot be read; the log says why"
        try:
            source = _read(path)
            refused = "the keys file is refused; the log says why"
            keys = parse_keys(source, path)
            if known.keys and not keys and is_blank(source):
                raise ConfigError(
                    f"the keys file {shown(path)} is empty; write `keys: []` to take all keys away"
                )
            after = replace(known, is_read=True, look=look, keys=tuple(keys), refused=None)
            if len(after.as_bytes()) > MAX_SHARED_BYTES:
                raise ConfigError(f"the keys file {shown(path)} is too large once it is read")
        except ConfigError as error:
            _log.error("%s; the keys that were read before stay in force", error)
            return replace(
                known, is_read=True, look=look, refused=refused, failures=known.failures + 1
            )
        return after

    def _adopt(self, shared: SharedBytes) -> None:
        """Know what all processes know."""
        if shared.version == self._version:
            return
        self._version, data = shared.read()
        self._known = _KnownFile.of_bytes(data)
        self._keys = {key.digest: key for key in self._known.keys} | self._fixed
        self._good = {}


@dataclass(frozen=True, slots=True)
class _KnownFile:
    """What is known of the keys file.

    Attributes:
        is_read: Whether it was ever read.
        look: What it looked like then.
        keys: The last good ones.
        refused: Why they are not those of the file.
        failures: How often it was refused.
    """

    is_read: bool = False
    look: Look = None
    keys: tuple[Key, ...] = ()
    refused: str | None = None
    failures: int = 0

    def as_bytes(self) -> bytes:
        """All of it, in which a key is its digest."""
        keys = [
            [key.name, key.digest.hex(), key.role, key.agents, key.expires_s] for key in self.keys
        ]
        return dumps([self.is_read, self.look, keys, self.refused, self.failures])

    @classmethod
    def of_bytes(cls, data: bytes) -> Self:
        """What `as_bytes` has written."""
        is_read, look, written, refused, failures = loads_own(data.decode())
        keys = tuple(
            Key(
                name, bytes.fromhex(digest), _PERMISSIONS[Role(role)], Role(role), tuple(agents),
                expires_s,
            )
            for name, digest, role, agents, expires_s in written
        )  # fmt: skip
        return cls(is_read, None if look is None else tuple(look), keys, refused, failures)


# --- the file ------------------------------------------------------------------------------------


def read_keys(path: str) -> list[Key]:
    """The keys of a file.

    Raises:
        ConfigError: It cannot be read, or what is wrong with it, each with its line.
    """
    return parse_keys(_read(path), path)


def _read(path: str) -> str:
    what = f"the keys file {shown(path)}"
    try:
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode):
            raise ConfigError(f"{what} is no regular file; it is read again and again")
        if mode & stat.S_IWOTH:
            raise ConfigError(f"{what} can be written by everyone; take that away: chmod o-w")
        with Path(path).open("rb") as file:
            data = file.read(LARGEST_KEYS_BYTES + 1)
        if len(data) > LARGEST_KEYS_BYTES:
            raise ConfigError(f"{what} is over {LARGEST_KEYS_BYTES} bytes")
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
            self._problem(f"`keys` must be a list, not {named(listed)}", top, "keys")
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
        return Key(name, digest, _PERMISSIONS[role], role, agents, expires)

    def _name(self, key: Mapping[str, Any]) -> str:
        name = self._text(key, "name", "what audit records are to call it")
        if name and not _NAME.fullmatch(name):
            said = f"name {shown(name)} must be letters, digits, `.`, `_` and `-`, at most 64"
            self._problem(said, key, "name")
        if name in (_API_KEY, _ADMIN_KEY):
            self._problem(f"name {shown(name)} stands for the environment's key", key, "name")
        if name in self._names:
            self._problem(f"name {shown(name)} stands twice; names are unique", key, "name")
        self._names.add(name)
        return name

    def _role(self, key: Mapping[str, Any]) -> Role | None:
        text = self._text(key, "role", "agent, auditor, operator or admin")
        try:
            return Role(text) if text else None
        except ValueError:
            self._problem(
                f"unknown role {shown(text)}{did_you_mean(text, list(Role))}", key, "role"
            )
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
        elif role is not None and Permission.DECIDE not in _PERMISSIONS[role]:
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
            said = f"expires must be as in `2027-01-31T00:00:00Z`, in quotes, not {shown(text)}"
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
            self._problem(f"{what} must be a mapping, not {named(value)}", parent or value, place)
            return None
        for member in value:
            if member not in known:
                self._problem(
                    f"unknown member {shown(member)}{did_you_mean(member, known)}", value, member
                )
        return value

    def _text(self, key: Mapping[str, Any], member: str, what: str) -> str:
        text = key.get(member)
        if isinstance(text, str) and text:
            return text
        said = "is missing" if text is None or text == "" else f"must be text, not {named(text)}"
        self._problem(f"{member} {said}: {what}", key, member)
        return ""

    def _problem(self, message: str, container: object, member: object) -> None:
        lines = self.lines.get(id(container), {})
        self.problems.append(Problem(message, lines.get(member, lines.get(None))))


# --- changes of the file -------------------------------------------------------------------------


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
        raise ConfigError(f"cannot open {shown(str(target.parent))}: {error.strerror}") from None
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        _replace(target, change(_read(path) if target.exists() else ""))
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
        raise ConfigError(f"cannot write {shown(str(target))}: {error.strerror}") from None


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
        raise ConfigError(f"there is a key {shown(name)} already; revoke it first")
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
        hint = did_you_mean(name, names) if names else ""
        raise ConfigError(f"there is no key {shown(name)} in {shown(path)}{hint}")
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
        f"{shown(path)} is not written as a list of `- name: …`, one key after the other; change it"
        " by hand"
    )
