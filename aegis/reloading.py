"""The policy file of a running server: read again when it is asked to be, or when it changes."""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from collections.abc import Sequence
from typing import Self

from aegis.errors import AegisError, NotReady, PolicyError, Problem, shown
from aegis.policies import decoded_policy, read_policy
from aegis.sharing import InForce, PolicyVersions

__all__ = ["PolicyFile", "log_oddities"]

_log = logging.getLogger("aegis.policy")

LOOK_S = 0.25
"""How often a file that is watched is looked at. What it is asked for is a `stat`, which finds every
kind of change: editors that write a new file, links that are changed, on any file system."""
MISSING_LOOKS = 8
"""A file that is being replaced may be gone for fewer looks than these."""
_MOST_LOGGED = 20
_END_S = 2.0

_Look = tuple[int, int, int, int] | None


def log_oddities(path: str, oddities: Sequence[Problem]) -> None:
    """Log what is odd about a policy file that loads, as far as anyone reads on."""
    for odd in oddities[:_MOST_LOGGED]:
        _log.warning("%s: %s", path if odd.line is None else f"{path}:{odd.line}", odd)


class PolicyFile:
    """A policy file, and what becomes of its changes.

    A valid change becomes a version, an invalid one is logged, counted and told by `/health/ready`, and
    the policy in force stays.

    Args:
        path: The file.
        versions: Where versions are made.
    """

    def __init__(self, path: str, versions: PolicyVersions) -> None:
        self._path = os.path.abspath(path)
        self._shown = path
        self._versions = versions
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def reload(self) -> InForce:
        """Put the file into force, where it is another one than was last loaded.

        Returns:
            The policy in force then.

        Raises:
            PolicyError: The file is refused.
            NotReady: It cannot be read.
            StoreError: It could not be stored.
        """
        try:
            source = decoded_policy(read_policy(self._path))
        except OSError as error:
            self._versions.say_file_failed("the policy file cannot be read")
            raise NotReady(
                f"cannot read the policy {shown(self._shown)}: {error.strerror}"
            ) from None
        except PolicyError as error:
            self._refused(error)
            raise
        digest = hashlib.sha256(source.encode()).hexdigest()
        if self._versions.is_file(digest):
            in_force = self._versions.in_force()
        else:
            try:
                in_force = self._versions.put_file(self._versions.text_of(source, digest))
            except PolicyError as error:
                self._refused(error)
                raise
        self._versions.say_file_failed(None)
        return in_force

    def _refused(self, error: PolicyError) -> None:
        count = len(error.problems)
        line = error.problems[0].line
        # Anyone may ask whether the server is ready, so nothing of the policy is told there.
        self._versions.say_file_failed(
            f"the policy file is refused: {count} problem{'s' * (count > 1)}"
            f"{f', the first in line {line}' if line else ''}; the log has more"
        )
        for problem in error.problems[:_MOST_LOGGED]:
            place = self._shown if problem.line is None else f"{self._shown}:{problem.line}"
            _log.error("the policy in force stays: %s: %s", place, problem)

    # --- watching --------------------------------------------------------------------------------

    def watch(self) -> Self:
        """Watch the file in a thread; of all processes that do, the first one reloads it."""
        self._thread = threading.Thread(target=self._watch, name="policy file", daemon=True)
        self._thread.start()
        return self

    def stop(self) -> None:
        """Watch it no more."""
        self._over.set()
        if self._thread is not None:
            self._thread.join(_END_S)

    def _watch(self) -> None:
        loaded: _Look = None  # how it looked when it was last loaded
        last: _Look = None
        missing = 0
        while not self._over.wait(LOOK_S):
            if not self._versions.is_first_to_watch():
                loaded = None  # who becomes the first later looks at it afresh
                continue
            now = _look(self._path)
            missing = 0 if now is not None else missing + 1
            # What is still being written is left to settle.
            is_new = now is not None and now == last != loaded
            last = now
            if missing == MISSING_LOOKS:
                loaded = None
                self.reload_and_log()
            elif is_new:
                loaded = now
                self.reload_and_log()

    def reload_and_log(self) -> None:
        """Put the file into force where nobody waits for an answer: the log has what becomes of it."""
        try:
            before = self._versions.newest[0]
            snapshot = self.reload().snapshot
            if snapshot.version > before:
                _log.warning(
                    "the policy file has changed: version %d is in force", snapshot.version
                )
                log_oddities(self._shown, snapshot.compiled.warnings)
        except PolicyError:
            pass  # it is said already
        except AegisError as error:
            _log.error("the policy in force stays: %s", error)
        except Exception:  # noqa: BLE001 - the edge: whoever calls must go on
            _log.exception("the policy file could not be loaded by a defect")


def _look(path: str) -> _Look:
    """What changes about a file when anything about it changes; None: there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
