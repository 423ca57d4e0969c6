"""Compiled policies: made once, kept in files beside the database, read by every process.

The files are a cache. They hold nothing that the policy's text does not say, so they may be deleted
at any time, and one that is damaged, of another release or of another user is not used.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import mmap
import os
import re
import stat
import struct
import tempfile
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from io import FileIO
from pathlib import Path
from typing import Any

from aegis import codec
from aegis._version import __version__
from aegis.config import beside
from aegis.errors import Problem
from aegis.host.files import keep_owner
from aegis.messages import quote
from aegis.policy.conditions import compile_conditions, compiler
from aegis.policy.loader import LoadedPolicy, Policy, decoded_policy, load_text
from aegis.policy.regexes import Searches
from aegis_core import Engine, Work

__all__ = [
    "Buffer",
    "CompiledFiles",
    "CompiledPolicy",
    "PolicyText",
    "compile_policy",
    "pack",
    "unpack",
]

_log = logging.getLogger("aegis.policy")

_MAGIC = b"AEGISCP1"
_HEAD = struct.Struct(
    "<8s32sQQQ"
)  # magic, digest, sizes of what is said, of the members, of the image
_IMAGE_HEAD_BYTES = 4096
"""So much of an image is covered by the file's digest: its own is in there and covers the rest."""
_NESTING = 64
_NAMED_BY = 32
"""Characters of the digest that name a file; the whole of it stands inside."""
_QUICK_CONDITIONS = 500
"""So many rules with conditions are compiled within some milliseconds, where none has an expression."""
_EXPRESSION, _CONDITIONS = b'"param_matches":', b'"conditions":{"'
_UNFINISHED_S = 60.0
"""A file that is written for longer than this was given up by a process that was killed."""

Buffer = bytes | memoryview | mmap.mmap


@dataclass(frozen=True, slots=True)
class CompiledPolicy:
    """A policy that is ready to decide.

    Attributes:
        sha256: Of the text that it was made from, in hexadecimal.
        rule_count: How many rules it has.
        warnings: What is odd about it.
        members: Its defaults and rules as members of a JSON object, without the braces.
        engine: What decides.
        packed: All of it, where it was made from that.
    """

    sha256: str
    rule_count: int
    warnings: tuple[Problem, ...]
    members: Buffer
    engine: Engine
    packed: bytes | None = None

    @property
    def expressions(self) -> int:
        """How many of its rules have regular expressions, at most."""
        return _count(self.members, _EXPRESSION)


def _count(members: Buffer, part: bytes) -> int:
    return bytes(members).count(part)


@dataclass(frozen=True, slots=True)
class PolicyText:
    """A policy's text that is known to load, and what was made of it."""

    source: str
    compiled: CompiledPolicy

    @property
    def sha256(self) -> str:
        """Of the text, in hexadecimal."""
        return self.compiled.sha256


def compile_policy(loaded: LoadedPolicy) -> CompiledPolicy:
    """Compile a policy in this process.

    Cost: some 10 ms for a thousand rules.
    """
    policy = loaded.policy
    return CompiledPolicy(
        loaded.sha256, len(policy.rules), loaded.warnings, _members(policy), policy.engine
    )


def _members(policy: Policy) -> bytes:
    """Defaults and rules as `GET /api/v1/policy` answers them."""
    members = {
        "default_risk_level": policy.default_risk_level.name,
        "default_approval": policy.default_approval.value,
        "rules": [
            {
                "name": rule.name,
                "match_type": rule.match_type,
                "match_target": rule.match_target,
                "match_agent": rule.match_agent,
                "risk_level": rule.risk_level.name,
                "approval": rule.approval.value,
                "conditions": rule.conditions,
            }
            for rule in policy.rules
        ],
    }
    return codec.dumps(members)[1:-1]


# --- as it lies in a file ------------------------------------------------------------------------


def pack(policy: CompiledPolicy) -> bytes:
    """A compiled policy as bytes, from which `unpack` makes an equal one anywhere on this machine.

    Raises:
        ValueError: Its conditions are no JSON.
    """
    if policy.packed is not None:
        return policy.packed
    said = codec.dumps(
        {
            "release": __version__,
            "sha256": policy.sha256,
            "rule_count": policy.rule_count,
            "warnings": [[odd.message, odd.line, odd.rule, odd.key] for odd in policy.warnings],
        }
    )
    members = bytes(policy.members)
    # The image begins a page, as it does in memory.
    said += b" " * (-(_HEAD.size + len(said) + len(members)) % mmap.ALLOCATIONGRANULARITY)
    image = policy.engine.image
    digest = _digest(said, members, image)
    head = _HEAD.pack(_MAGIC, digest, len(said), len(members), len(image))
    return b"".join((head, said, members, image))


def unpack(data: bytes, sha256: str | None = None) -> CompiledPolicy:
    """The compiled policy of some bytes.

    Conditions are compiled when they are first asked: `CompiledFiles.keep` gives one that is ready.

    Args:
        data: What `pack` gave.
        sha256: Of the text that it must have been made from; None: any.

    Raises:
        ValueError: They are damaged, or were made by another release or from another text.

    Cost: reads them once, to see that they are whole.
    """
    start = _start_of_block(data, len(data))
    opened = _opened(memoryview(data)[:start], data[start:], sha256, is_ready=False)
    return replace(opened, packed=data)


def _start_of_block(head: bytes, size: int) -> int:
    if len(head) < _HEAD.size:
        raise ValueError("it is cut off")
    magic, _, *sizes = _HEAD.unpack_from(head)
    if magic != _MAGIC or size != _HEAD.size + sum(sizes):
        raise ValueError("it is no compiled policy of this release")
    return _HEAD.size + int(sizes[0]) + int(sizes[1])


def _ready(policy: CompiledPolicy) -> CompiledPolicy:
    """The same policy, with nothing left to compile when it first decides."""
    data = policy.packed
    if data is None:
        return policy
    start = _start_of_block(data, len(data))
    opened = _opened(memoryview(data)[:start], data[start:], policy.sha256)
    return replace(opened, packed=data)


class _NotAtOnce(Exception):
    """To get a policy ready takes longer than the event loop may be held."""


def _opened(
    before: memoryview,
    image: Buffer,
    sha256: str | None,
    *,
    is_ready: bool = True,
    at_once: bool = False,
) -> CompiledPolicy:
    """The policy of an image and of what stands before it, neither of which is copied."""
    _, digest, size, _, _ = _HEAD.unpack_from(before)
    said, members = before[_HEAD.size : _HEAD.size + size], before[_HEAD.size + size :]
    if _digest(said, members, image) != digest:
        raise ValueError("it is damaged")
    known: Any = codec.loads(bytes(said), _NESTING)
    if known["release"] != __version__:
        raise ValueError("it was made by another release")
    if sha256 not in (None, known["sha256"]):
        raise ValueError("it was made from another text")
    warnings = tuple(Problem(*odd) for odd in known["warnings"])
    # The image is no part of a view: one that is still used cannot be cleared with other garbage.
    if at_once and (
        _count(members, _EXPRESSION) or _count(members, _CONDITIONS) > _QUICK_CONDITIONS
    ):
        raise _NotAtOnce
    searches = Searches()
    engine = Engine(image, condition=compiler(searches) if is_ready else _Deferred)
    searches.compile()
    return CompiledPolicy(known["sha256"], known["rule_count"], warnings, members, engine)


def _digest(said: Buffer, members: Buffer, image: Buffer) -> bytes:
    hashed = hashlib.sha256(struct.pack("<QQ", len(memoryview(said)), len(memoryview(members))))
    hashed.update(said)
    hashed.update(members)
    hashed.update(memoryview(image)[:_IMAGE_HEAD_BYTES])
    return hashed.digest()


class _Deferred:
    """Conditions that are compiled when they are first asked: a policy may never decide here."""

    __slots__ = ("_compiled", "_written")

    def __init__(self, written: Mapping[str, Any]) -> None:
        self._written: Mapping[str, Any] | None = written
        self._compiled: Any = None

    def __call__(self, params: Mapping[str, Any], now: float, work: Work) -> bool | str:
        holds = self._compiled
        if holds is None:
            written = self._written
            # Threads may come here together; each then compiles what is equal.
            holds = compile_conditions(written) if written is not None else self._compiled
            self._compiled = holds
            self._written = None
        return holds(params, now, work)  # type: ignore[no-any-return]


# --- the files -----------------------------------------------------------------------------------


class CompiledFiles:
    """The compiled policies beside a database.

    Args:
        database: The database's path; `:memory:` has no files, and nothing is kept.
    """

    def __init__(self, database: str) -> None:
        self._database = database
        self._prefix = None if database == ":memory:" else beside(database, ".policy-")

    def load(self, text: str | bytes) -> PolicyText:
        """A policy from its text, which is only parsed where no file has what was made of it.

        Raises:
            PolicyError: With every problem of the text, each with its line.
        """
        source = decoded_policy(text)
        found = self.find(hashlib.sha256(source.encode()).hexdigest())
        return PolicyText(source, found or compile_policy(load_text(source)))

    def find(self, sha256: str, *, at_once: bool = False) -> CompiledPolicy | None:
        """The policy that was compiled from a text; None where no file has it.

        Args:
            sha256: The text's digest, in hexadecimal.
            at_once: None, too, where it takes more than some milliseconds to get it ready.

        Cost: reads the file once; compiles conditions, of which regular expressions take
            a millisecond each, at the most.
        """
        if self._prefix is None:
            return None
        path = self._path(self._prefix, sha256)
        try:
            return _read(path, sha256, at_once=at_once)
        except (FileNotFoundError, _NotAtOnce):
            return None
        except (OSError, ValueError) as error:
            # It is made anew from the text, which the database has.
            _log.info("the compiled policy %s is not used: %s", quote(path), error)
            return None

    def keep(self, policy: CompiledPolicy) -> CompiledPolicy:
        """Keep a policy in a file for all others.

        Returns:
            The policy as the file has it, or the same one where it could not be written: a full
            disk only costs every process the time to compile it for itself.
        """
        if self._prefix is None:
            return _ready(policy)
        try:
            path = Path(self._path(self._prefix, policy.sha256))
            _write(path, pack(policy), like=self._database)
        except (OSError, ValueError) as error:
            _log.warning("the compiled policy cannot be kept for other processes: %s", error)
            return _ready(policy)
        return self.find(policy.sha256) or _ready(policy)

    def remove_others(self, kept: Collection[str]) -> None:
        """Remove the files of all policies but those with these digests."""
        if self._prefix is None:
            return
        prefix = Path(self._prefix)
        ours = re.compile(re.escape(prefix.name) + r"([0-9a-f]{32})(\.\w+\.part)?")
        names = {sha256[:_NAMED_BY] for sha256 in kept}
        with contextlib.suppress(OSError):
            for entry in os.scandir(prefix.parent):
                match = ours.fullmatch(entry.name)
                if match is None or (match[2] is None and match[1] in names):
                    continue
                with contextlib.suppress(OSError):
                    if match[2] is None or time.time() - entry.stat().st_mtime > _UNFINISHED_S:
                        os.unlink(entry.path)

    @staticmethod
    def _path(prefix: str, sha256: str) -> str:
        return f"{prefix}{sha256[:_NAMED_BY]}"


def _read(path: str, sha256: str, *, at_once: bool = False) -> CompiledPolicy:
    """The policy of a file of ours, in memory of this process alone.

    A file that is mapped and cut ends every process that looks at what is missing, and one that is
    written changes what they decide; what is read once does neither.

    Raises:
        OSError: There is none, or it cannot be read.
        ValueError: Others could have written it, or it is damaged.
    """
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    with open(file, "rb", buffering=0) as reader:
        found = os.fstat(file)
        if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise ValueError("others than this user may have written it")
        start = _start_of_block(os.pread(file, _HEAD.size, 0), found.st_size)
        if start % mmap.ALLOCATIONGRANULARITY or start >= found.st_size:
            raise ValueError("it is damaged")
        before = _filled(reader, start)
        image = _filled(reader, found.st_size - start)
    return _opened(memoryview(before), image, sha256, at_once=at_once)


def _filled(reader: FileIO, size: int) -> mmap.mmap:
    """So many bytes as they come, in memory that the system has back when nobody needs it."""
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with memoryview(memory) as rest:
        done = 0
        while done < size:
            count = reader.readinto(rest[done:])
            if not count:
                raise ValueError("it is cut off")
            done += count
    return memory


def _write(path: Path, data: bytes, *, like: str) -> None:
    """Put a file in its place as a whole; who reads an older one reads all of that."""
    file, temporary = tempfile.mkstemp(".part", f"{path.name}.", path.parent)
    try:
        with os.fdopen(file, "wb") as writing:  # readable and writable by this user only
            keep_owner(file, like)
            writing.write(data)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
