"""Files as Aegis makes them: for their owner only, allocated before they are mapped, never half there.

What is made for a database belongs to the user whose database it is, also where root makes it: the
service has to open it later.
"""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = [
    "allocate",
    "give",
    "keep_owner",
    "make_private",
    "open_private",
    "refuse_odd",
    "replacing",
    "sync_folder",
]

_ALONGSIDE = (
    "-wal",
    "-shm",
    "-journal",
    ".lock",
)  # what a database has next to it while it is made


def refuse_odd(path: str | Path) -> None:
    """See that a name is that of a usual file, or of none: a device or pipe is never replaced.

    Raises:
        OSError: It is something else's.
    """
    with suppress(FileNotFoundError):
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, "it is a folder; name a file", str(path))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "it is a device or a pipe; name a file", str(path))


def open_private(path: str, like: str) -> int:
    """Open a file to read and write, made for its owner only where there is none.

    Args:
        path: The file; a link is not followed, as anyone could have put it there.
        like: Whose owner it gets where it is made.

    Returns:
        Its descriptor.

    Raises:
        OSError: It cannot be opened or made.
    """
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
    while True:
        with suppress(FileNotFoundError):
            return os.open(path, flags)
        with suppress(FileExistsError):
            file = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600)
            keep_owner(file, like)
            return file


def make_private(path: str) -> None:
    """Make an empty file for its owner only; one that is there is not touched.

    Raises:
        OSError: It cannot be made.
    """
    # Only a new one is opened: to close a database's file drops the locks that SQLite has on it.
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))


def keep_owner(file: int, like: str) -> None:
    """Give a file that was just made to the owner of another one; only root can, and has to.

    Args:
        file: Its descriptor.
        like: The other one; where there is none, nothing is done.
    """
    if os.geteuid() == 0:
        with suppress(FileNotFoundError):
            kept = os.stat(like)
            os.fchown(file, kept.st_uid, kept.st_gid)


def give(path: str, *, like: str) -> None:
    """As `keep_owner`, for a file that is there."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        keep_owner(file, like)
    finally:
        os.close(file)


def allocate(file: int, size: int) -> None:
    """See that a file has this many bytes on its disk, so that they can be mapped and written.

    Where a file has holes, a full disk ends a process that writes to its memory by SIGBUS.

    Raises:
        OSError: There is no room.
    """
    try:
        os.posix_fallocate(file, 0, size)
    except OSError as error:
        # SOURCE: posix_fallocate(3): some file systems know no way but to write.
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise
        held = os.fstat(file).st_size
        os.pwrite(file, bytes(max(0, size - held)), held)


@contextmanager
def replacing(path: str | Path, *, like: str) -> Iterator[str]:
    """Write a file under another name, which becomes its own when all of it is on the disk.

    Args:
        path: The file to make, or to replace as a whole.
        like: Whose owner it gets.

    Returns:
        The name to write to: an empty file for its owner only, or with the mode of the one that it
        replaces. It is gone where that fails.

    Raises:
        OSError: It cannot be made.
    """
    path = Path(path)
    refuse_odd(path)
    if str(path.absolute()) in {f"{Path(like).absolute()}{ending}" for ending in _ALONGSIDE}:
        raise OSError(
            errno.EINVAL, "the database uses this name itself; give another one", str(path)
        )
    file, name = tempfile.mkstemp(".partial", f"{path.name}.", path.parent)
    try:
        try:
            keep_owner(file, like)
            with suppress(FileNotFoundError):
                os.fchmod(file, os.stat(path).st_mode & 0o777)
        finally:
            os.close(file)
        yield name
        _sync(name)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
    finally:
        for ending in _ALONGSIDE:
            Path(f"{name}{ending}").unlink(missing_ok=True)
    sync_folder(path)


def sync_folder(path: str | Path) -> None:
    """See that a file that was made or renamed is found under its name after a loss of power."""
    _sync(Path(path).absolute().parent)


def _sync(path: str | Path) -> None:
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)
