"""Policy versions: which one is in force, and how every process over one database switches to it.

A change is prepared before it takes place: the compiled policy is put into a file, every process that
decides maps it and says so, the version is committed, and then one shared word is raised. That is the
moment: whoever decides after it decides by the new version, on any process, since each request
compares the version that it has with the word. A process that was not ready in time gets ready then,
and answers 503 rather than deciding by an older policy where it cannot.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from aegis.errors import NotReady, PreconditionFailed, StoreError
from aegis.host.workers import Workers
from aegis.policy.compile_process import compile_source
from aegis.policy.compiled_cache import CompiledFiles, CompiledPolicy, PolicyText
from aegis.policy.decision_point import Snapshot
from aegis.policy.follower import Follower
from aegis.policy.history import Journal, PolicyHistory, PolicyVersion
from aegis.store.database import Store
from aegis.timestamps import now_us

__all__ = ["InForce", "PolicyVersions"]

_log = logging.getLogger("aegis.policy")

_REPLACED = (
    "the policy file has changed: it replaces version %d, which was put meanwhile and stays in the"
    " history"
)
READY_TIMEOUT_S = 5.0
"""How long a change waits for processes that live and do not get ready for it."""
_EXPRESSION_S = 0.005
"""So much longer for each regular expression that they have to compile."""
_KEPT_VERSIONS = 2
"""So many versions have files of their own: a process may still be about to load the last but one."""


@dataclass(frozen=True, slots=True)
class InForce:
    """A policy that every process decides by.

    Attributes:
        snapshot: The policy.
        workers: How many processes have it at hand.
        is_changed: Whether it is a new version: not the one that was in force already.
    """

    snapshot: Snapshot
    workers: int
    is_changed: bool


class PolicyVersions:
    """The versions of one database.

    Invariant: `newest` is at least the version that any `put` of any process has returned, so a
    request that compares its snapshot with it is never decided by an older policy.

    Args:
        store: Where the versions are.
        journal: Records changes of them in the audit.

    Attributes:
        history: The versions as the database has them.

    Raises:
        StoreError: The shared file cannot be made.
    """

    def __init__(self, store: Store, journal: Journal) -> None:
        self._store = store
        self._files = CompiledFiles(store.path)
        self._workers = Workers(None if store.is_memory else store.path)
        self._prepared: CompiledPolicy | None = None
        self._follower: Follower | None = None
        self._watches = False
        self.history = PolicyHistory(store, journal)

    @property
    def newest(self) -> memoryview:
        """One word: the number of the newest version that anyone has put into force."""
        return self._workers.newest

    def renew(self) -> memoryview:
        """`newest`, once it is seen that it is still the word of all processes.

        Raises:
            NotReady: It is not; what this process needs to know is about to be made anew.
        """
        if not (self._workers.is_in_place() and self._workers.is_up_to_date):
            self._workers.wake()
            raise NotReady(
                "a file beside the database was removed or replaced, by which processes agree on the"
                " policy; it is made anew"
            )
        return self._workers.newest

    def move(self) -> None:
        """Agree by the file that is in place now with all others, where it is another one.

        Raises:
            StoreError: There is none, and none can be made; or the database cannot be read.
        """
        with self._changing():
            pass

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Be the only one who changes the policy, by the file that is in place."""
        with self._workers.changing():
            if not self._workers.is_up_to_date:
                # Only a change makes the database newer than the word, and there is none now.
                newest = self.history.newest()
                if newest is not None and self.newest[0] != newest.version:
                    self._workers.raise_newest(newest.version)
                self._workers.is_up_to_date = True
            yield

    @contextmanager
    def _announced(self) -> Iterator[None]:
        """Be the only one who changes the policy; the change holds everywhere afterwards."""
        with self._changing():
            yield
        while True:
            self._workers.wait_until_settled()
            if self._workers.is_in_place():
                return
            self.move()  # which raises the word of the other file as well

    def close(self) -> None:
        """Follow changes no more, and let go of the shared file."""
        if self._follower is None or self._follower.stop():
            self._workers.close()

    # --- the start -------------------------------------------------------------------------------

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
        if file is None and newest is not None and newest.version == self.newest[0]:
            return self._loaded(newest)
        with self._announced():
            self._workers.forget_failures()
            newest = self.history.newest()
            if newest is None:
                self._workers.say_settled()
            text = self._chosen(file, newest, reset=reset)
            if text is not None:
                return self._put(text, "file").snapshot
            if newest is None:
                return self._put(self._files.load(""), "file").snapshot
            if file is not None and file.sha256 == newest.sha256:
                snapshot = Snapshot(self._kept(file.compiled), newest)
            else:
                snapshot = self._loaded(newest)
            # As the database has it: the word may be of a process that was killed in between.
            if self.newest[0] != newest.version:
                self._workers.raise_newest(newest.version)
            return snapshot

    def _chosen(
        self, file: PolicyText | None, newest: PolicyVersion | None, *, reset: bool
    ) -> PolicyText | None:
        """The file, where it is to be a new version."""
        if file is None:
            return None
        last = self.history.newest("file")
        if newest is None or last is None or last.sha256 != file.sha256:
            if newest is not None and newest.origin != "file":
                _log.warning(_REPLACED, newest.version)
            return file
        if newest.origin == "file":
            return None
        if reset:
            return file
        _log.warning(
            "the policy file is unchanged and version %d, which was put later, stays in force;"
            " --reset-policy goes back to the file",
            newest.version,
        )
        return None

    # --- changes ---------------------------------------------------------------------------------

    def put(
        self,
        text: PolicyText,
        origin: str = "put",
        *,
        key_name: str | None = None,
        note: str | None = None,
        is_expected: Callable[[int], bool] = lambda _: True,
    ) -> InForce:
        """Store a policy as the newest version and put it into force everywhere.

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

        Cost: waits for other changes, for every process to get ready, and for the disk.
        """
        with self._announced():
            return self._put(text, origin, key_name, note, is_expected)

    def rollback(
        self,
        version: int,
        *,
        key_name: str | None = None,
        note: str | None = None,
        is_expected: Callable[[int], bool] = lambda _: True,
    ) -> InForce:
        """Put an earlier version into force again, as the newest one.

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
        stored = self.history.find(version)
        text = self.text_of(self.history.source(version), stored.sha256)
        said = f"back to version {version}" if note is None else note
        return self.put(text, "rollback", key_name=key_name, note=said, is_expected=is_expected)

    # --- the policy file -------------------------------------------------------------------------

    def is_file(self, sha256: str) -> bool:
        """Whether this is the text that was last loaded from the policy file."""
        last = self.history.newest("file")
        return last is not None and last.sha256 == sha256

    def file_source(self) -> str:
        """The text that was last loaded from the policy file; "": none was."""
        last = self.history.newest("file")
        return "" if last is None else self.history.source(last.version)

    def text_of(self, source: str, sha256: str) -> PolicyText:
        """A text and what is compiled of it, now or before.

        Raises:
            PolicyError: The policy is refused.
        """
        return PolicyText(source, self._files.find(sha256) or compile_source(source))

    def put_file(self, text: PolicyText) -> InForce:
        """Put the policy file into force, unless another process has just done that.

        Raises:
            StoreError: It could not be stored; nothing has changed then.
        """
        in_force = None
        with self._announced():
            if not self.is_file(text.sha256):
                newest = self.history.newest()
                if newest is not None and newest.origin != "file":
                    _log.warning(_REPLACED, newest.version)
                in_force = self._put(text, "file")
        return in_force or self.in_force()

    def in_force(self) -> InForce:
        """The policy in force, without a change."""
        snapshot = self.compile_newest()
        workers = self._workers.versions().count(snapshot.version)
        return InForce(snapshot, max(workers, 1), is_changed=False)

    def say_file_failed(self, why: str | None) -> None:
        """Tell all processes why the policy file could not be loaded; None: it was."""
        self._workers.say_file_failed(why)

    def file_failures(self) -> tuple[int, str | None]:
        """How often that was, and why it is so now."""
        return self._workers.file_failures()

    def is_first_to_watch(self) -> bool:
        """Whether it is this process that reloads a file that several watch."""
        return self._workers.is_first_to_watch()

    def _put(
        self,
        text: PolicyText,
        origin: str,
        key_name: str | None = None,
        note: str | None = None,
        is_expected: Callable[[int], bool] = lambda _: True,
    ) -> InForce:
        newest = self.history.newest()
        number = 0 if newest is None else newest.version
        if not is_expected(number):  # seen before anybody is asked to get ready
            raise PreconditionFailed(f"version {number} is in force; look at it first")
        compiled = self._prepared = self._kept(text.compiled)
        ticket = self._workers.ask(text.sha256)
        timeout_s = READY_TIMEOUT_S + _EXPRESSION_S * compiled.expressions
        ready = self._workers.wait_until_ready(ticket, timeout_s)
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
        self._workers.raise_newest(version.version)
        self._files.remove_others(self._needed())
        is_changed = version.version != number
        return InForce(Snapshot(compiled, version), max(ready, 1), is_changed)

    # --- following -------------------------------------------------------------------------------

    def follow(
        self, snapshot: Snapshot, switch: Callable[[Snapshot], object], *, watches: bool = False
    ) -> None:
        """Be one of the processes that get ready for changes and switch by themselves.

        Args:
            snapshot: What this process decides by.
            switch: Called with each newer policy, in a thread.
            watches: Whether this process watches the policy file.

        Raises:
            StoreError: Another process does not end its write.
        """
        self._prepared = snapshot.compiled
        self._watches = watches
        self._join()
        self._follower = Follower(self, self._workers, snapshot.version, switch)

    def _join(self) -> None:
        with self._store.turn():
            self._workers.join()
            if self._watches:
                self._workers.watches_file()

    def join_again(self, version: int) -> None:
        """Go on by another file where the one of before was removed or replaced.

        Args:
            version: What this process decides by.

        Raises:
            StoreError: It cannot be known what is in force.
        """
        if not (self._workers.is_in_place() and self._workers.is_up_to_date):
            self.move()
        if self._workers.has_lost_slot:
            self._join()
            self._workers.say_version(version)
            _log.warning(
                "the file by which processes agree on the policy was removed or replaced; all go on by"
                " another one"
            )

    def load_newest(self) -> Snapshot:
        """The newest version, of what is at hand: called where a request must not wait.

        Raises:
            NotReady: It has to be compiled first.
            StoreError: It cannot be read.
        """
        newest = self._newest()
        compiled = self._at_hand(newest.sha256, at_once=True)
        if compiled is None:
            raise NotReady(f"version {newest.version} of the policy is being loaded")
        return Snapshot(compiled, newest)

    def compile_newest(self) -> Snapshot:
        """The newest version, compiled where it has to be.

        Raises:
            StoreError: It cannot be read.
            PolicyError: This release refuses it.
        """
        return self._loaded(self._newest())

    def prepare(self, sha256: str) -> bool:
        """Get ready for a policy; whether it is at hand now."""
        return self._at_hand(sha256) is not None

    def _newest(self) -> PolicyVersion:
        newest = self.history.newest()
        if newest is None:
            raise StoreError("the database has lost its policy versions")
        return newest

    def _at_hand(self, sha256: str, *, at_once: bool = False) -> CompiledPolicy | None:
        prepared = self._prepared
        if prepared is not None and prepared.sha256 == sha256:
            return prepared
        found = self._files.find(sha256, at_once=at_once)
        if found is not None:
            self._prepared = found
        return found

    def _loaded(self, version: PolicyVersion) -> Snapshot:
        compiled = self._at_hand(version.sha256)
        if compiled is None:
            source = self.history.source(version.version)
            compiled = self._files.keep(compile_source(source))
        return Snapshot(compiled, version)

    def _kept(self, compiled: CompiledPolicy) -> CompiledPolicy:
        return self._files.find(compiled.sha256) or self._files.keep(compiled)

    def _needed(self) -> set[str]:
        """Digests of the policies that a process may load next: the last ones, and the file's."""
        recent = self.history.page(limit=_KEPT_VERSIONS)
        file = self.history.newest("file")
        return {version.sha256 for version in (*recent, *([file] if file else ()))}
