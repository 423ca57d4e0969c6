"""The key ring: the keys that are known now, those of the environment and those of the keys file."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from hmac import compare_digest
from typing import Self

from aegis.auth.keys import Key, digest_of
from aegis.auth.keys_file import parse_keys, read_text
from aegis.auth.roles import PERMISSIONS, Role
from aegis.codec import dumps, loads_own
from aegis.documents import is_blank
from aegis.errors import ConfigError
from aegis.host.memory import SharedBytes
from aegis.host.watched import Look, Settling, look_at
from aegis.messages import quote

__all__ = ["LOOK_AGAIN_S", "MAX_SHARED_BYTES", "KeyRing"]

_log = logging.getLogger("aegis.keys")

MAX_SHARED_BYTES = 16 * 1024 * 1024
LOOK_AGAIN_S = 0.25
"""How old the knowledge of the file may be: a revoked key is unknown after this long."""

_NOBODY = Key("", bytes(32), frozenset())


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
                _log.warning("%s was read again: %d keys", quote(path), len(after.keys))
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
            source = read_text(path)
            refused = "the keys file is refused; the log says why"
            keys = parse_keys(source, path)
            if known.keys and not keys and is_blank(source):
                raise ConfigError(
                    f"the keys file {quote(path)} is empty; write `keys: []` to take all keys away"
                )
            after = replace(known, is_read=True, look=look, keys=tuple(keys), refused=None)
            if len(after.as_bytes()) > MAX_SHARED_BYTES:
                raise ConfigError(f"the keys file {quote(path)} is too large once it is read")
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
                name, bytes.fromhex(digest), PERMISSIONS[Role(role)], Role(role), tuple(agents),
                expires_s,
            )
            for name, digest, role, agents, expires_s in written
        )  # fmt: skip
        return cls(is_read, None if look is None else tuple(look), keys, refused, failures)
