"""Policy versions: which one is in force, and how every process over one database learns of it.

The database holds the versions. A small mapped file beside it holds the number of the newest one,
so that a request costs one comparison to know whether another process has put a newer policy.
"""

from __future__ import annotations

import logging
import mmap
import os
from collections.abc import Callable

from aegis.audit import now_us
from aegis.compiled import CompiledFiles, CompiledPolicy, PolicyText
from aegis.decisions import Snapshot
from aegis.errors import StoreError, shown
from aegis.store import Store
from aegis.versions import PolicyHistory, PolicyVersion

__all__ = ["PolicyVersions"]

_log = logging.getLogger("aegis.policy")

_KEPT_VERSIONS = 2
"""So many versions have files of their own: a process may still be about to load the last but one."""


class PolicyVersions:
    """The versions of one database.

    Invariant: `newest` is at least the version that any `put` of any process has returned, so a
    request that compares its snapshot with it is never decided by an older policy.

    Args:
        store: Where the versions are.

    Attributes:
        history: The versions as the database has them.
        newest: One word: the number of the newest version that anyone has put into force.

    Raises:
        StoreError: The shared file cannot be made.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._files = CompiledFiles(store.path)
        self.history = PolicyHistory(store)
        self._map: mmap.mmap | None = None
        self.newest = memoryview(bytearray(8)).cast("Q")
        if not store.is_memory:
            path = f"{store.path}.version"
            try:
                file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                try:
                    os.ftruncate(file, 8)
                    self._map = mmap.mmap(file, 8)
                finally:
                    os.close(file)
            except OSError as error:
                raise StoreError(f"cannot use {shown(path)}: {error}") from error
            self.newest = memoryview(self._map).cast("Q")

    def start(self, file: PolicyText | None, *, reset: bool = False) -> Snapshot:
        """Choose the policy to start with: the newest intent wins.

        Args:
            file: The policy file; None: whatever is in force already, or else nothing but the
                defaults.
            reset: Go back to the file even where a newer policy was put.

        Returns:
            The compiled policy in force.

        Raises:
            StoreError: The database cannot be read or written.
            PolicyError: The stored policy cannot be loaded by this release.
        """
        newest = self.history.newest()
        if file is None:
            if newest is not None:
                return self.announce(self._compiled(newest))
            file = self._files.load("")
        last = self.history.newest("file")
        if newest is None or last is None or last.sha256 != file.sha256:
            if newest is not None and newest.origin != "file":
                _log.warning(
                    "the policy file has changed: it replaces version %d, which was put meanwhile"
                    " and stays in the history",
                    newest.version,
                )
            return self.announce(self.put(file, "file"))
        if newest.origin == "file":
            return self.announce(Snapshot(self._kept(file.compiled), newest))
        if reset:
            return self.announce(self.put(file, "file"))
        _log.warning(
            "the policy file is unchanged and version %d, which was put later, stays in force;"
            " --reset-policy goes back to the file",
            newest.version,
        )
        return self.announce(self._compiled(newest))

    def put(
        self,
        text: PolicyText,
        origin: str = "put",
        *,
        key_name: str | None = None,
        note: str | None = None,
        is_expected: Callable[[int], bool] = lambda _: True,
    ) -> Snapshot:
        """Store a policy as the newest version; nobody knows of it before `announce`.

        The text that is in force already makes no new version, unless it comes from the file.

        Args:
            text: The policy.
            origin: Where it comes from: `file`, `put` or `rollback`.
            key_name: Whose key put it.
            note: What is said about it.
            is_expected: Says whether it may follow the version that is the newest now.

        Raises:
            StoreError: It could not be stored; nothing has changed then.
            PreconditionFailed: It may not follow; nothing has changed then.

        Cost: waits for the disk.
        """
        compiled = self._kept(text.compiled)  # before anyone can see the version
        version = self.history.add(
            text.sha256,
            origin,
            now_us(),
            text.source,
            key_name=key_name,
            note=note,
            is_expected=is_expected,
            may_repeat=origin == "file",
        )
        self._files.remove_others(self._needed())
        return Snapshot(compiled, version)

    def rollback(
        self,
        version: int,
        *,
        key_name: str | None = None,
        note: str | None = None,
        is_expected: Callable[[int], bool] = lambda _: True,
    ) -> Snapshot:
        """Store an earlier version as the newest one; nobody knows of it before `announce`.

        Args:
            version: The earlier one.
            key_name: Whose key asked for it.
            note: What is said about it.
            is_expected: Says whether it may follow the version that is the newest now.

        Raises:
            NotFound: There is no such version.
            StoreError: It could not be stored; nothing has changed then.
            PreconditionFailed: It may not follow; nothing has changed then.
            PolicyError: This release refuses what an older one took.
        """
        return self.put(
            self._files.load(self.history.source(version)),
            "rollback",
            key_name=key_name,
            note=f"back to version {version}" if note is None else note,
            is_expected=is_expected,
        )

    def announce(self, snapshot: Snapshot) -> Snapshot:
        """Tell every process that there is a version as new as this one."""
        if snapshot.version != self.newest[0]:
            # INVARIANT: the word is the newest version of the database, so its writers take turns;
            # readers need not, since an aligned word is written at once.
            with self._store.turn():
                newest = self.history.newest()
                self.newest[0] = snapshot.version if newest is None else newest.version
        return snapshot

    def load_newest(self) -> Snapshot:
        """The newest version, compiled.

        Raises:
            StoreError: It cannot be read.
        """
        newest = self.history.newest()
        if newest is None:
            raise StoreError("the database has lost its policy versions")
        return self.announce(self._compiled(newest))

    def close(self) -> None:
        """Let go of the shared file."""
        self.newest.release()
        if self._map is not None:
            self._map.close()

    def _compiled(self, version: PolicyVersion) -> Snapshot:
        compiled = self._files.find(version.sha256)
        if compiled is None:
            text = self._files.load(self.history.source(version.version))
            compiled = self._files.keep(text.compiled)
        return Snapshot(compiled, version)

    def _kept(self, compiled: CompiledPolicy) -> CompiledPolicy:
        return self._files.find(compiled.sha256) or self._files.keep(compiled)

    def _needed(self) -> set[str]:
        """Digests of the policies that a process may load next: the last ones, and the file's."""
        recent = self.history.page(limit=_KEPT_VERSIONS)
        file = self.history.newest("file")
        return {version.sha256 for version in (*recent, *([file] if file else ()))}
