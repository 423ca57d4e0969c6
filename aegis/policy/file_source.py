"""The policy file of a running server: read again when it is asked to be, or when it changes."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import stat
import threading
import time
from collections.abc import Sequence
from typing import Self

from aegis.documents import is_blank
from aegis.errors import AegisError, NotReady, PolicyError, Problem
from aegis.host.watched import Look, Settling, look_at
from aegis.messages import quote
from aegis.policy.loader import MAX_POLICY_BYTES, decoded_policy
from aegis.policy.rollout import InForce, PolicyVersions

__all__ = ["PolicyFile", "log_oddities"]

_log = logging.getLogger("aegis.policy")

LOOK_S = 0.25
"""How often a file that is watched is looked at. What it is asked for is a `stat`, which finds every
kind of change: editors that write a new file, links that are changed, on any file system."""
MISSING_LOOKS = 8
"""A file that is being replaced may be gone for fewer looks than these."""
_MAX_LOGGED = 20
_END_S = 2.0
_EMPTY = "the file is empty and had a policy before; write `rules: []` for one without rules"


def log_oddities(path: str, oddities: Sequence[Problem]) -> None:
    """Log what is odd about a policy file that loads, as far as anyone reads on."""
    for odd in oddities[:_MAX_LOGGED]:
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
            source = decoded_policy(_read(self._path))
        except OSError as error:
            self._versions.say_file_failed("the policy file cannot be read")
            raise NotReady(
                f"cannot read the policy {quote(self._shown)}: {error.strerror}"
            ) from None
        except PolicyError as error:
            self._refused(error)
            raise
        digest = hashlib.sha256(source.encode()).hexdigest()
        if self._versions.is_file(digest):
            in_force = self._versions.in_force()
        else:
            try:
                if is_blank(source) and not is_blank(self._versions.file_source()):
                    # More likely cut than meant: without rules everything is decided by the defaults.
                    raise PolicyError([Problem(_EMPTY, 1)])
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
        for problem in error.problems[:_MAX_LOGGED]:
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
        loaded: Look = None  # how it looked when it was last loaded
        last: Look = None
        missing = 0
        settling = Settling(self._path, time.monotonic)
        while not self._over.wait(LOOK_S):
            if not self._versions.is_first_to_watch():
                loaded = None  # who becomes the first later looks at it afresh
                continue
            now = look_at(self._path)
            missing = 0 if now is not None else missing + 1
            is_new = now is not None and now == last != loaded
            last = now
            if missing == MISSING_LOOKS or (is_new and self._is_whole(settling, now)):
                loaded = now
                self.reload_and_log()

    def _is_whole(self, settling: Settling, look: Look) -> bool:
        """Whether a file that has changed is not written any more, as far as can be known."""
        try:
            size_before = len(self._versions.file_source().encode())
        except AegisError:
            size_before = 0  # to load it fails as well, and says why
        return settling.is_whole(look, size_before) and settling.is_written(look)

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


def _read(path: str) -> bytes:
    """The bytes of the file, at most one more than may be loaded, without waiting for any.

    Raises:
        OSError: It cannot be read, or is a pipe or the like, which would keep its reader waiting.
    """
    with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "it is no regular file")
        return file.read(MAX_POLICY_BYTES + 1)
