"""A disk that can lose its power: it tells what was written to each file, and what of that was synced."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import apsw

__all__ = ["Disk", "Image", "recorded_disk"]

_SYSTEM = "unix"

Image = Mapping[str, bytes]
"""The files that are left, by their names without a folder, and what is in them."""


@dataclass
class _Content:
    """A file: what a loss of power leaves of it, and what was written since the last sync."""

    synced: bytearray = field(default_factory=bytearray)
    written: list[tuple[int, bytes | None]] = field(default_factory=list)
    """Places and what was written there; None: it was cut off there."""

    def sync(self) -> None:
        for write in self.written:
            _apply(self.synced, *write)
        self.written.clear()


def _apply(content: bytearray, at: int, data: bytes | None) -> None:
    if data is None:
        del content[at:]
        return
    if len(content) < at:
        content.extend(bytes(at - len(content)))
    content[at : at + len(data)] = data


class Disk:
    """What SQLite has written and synced.

    That a file was made or removed counts at once: SQLite syncs the folder with the first sync of a
    log that it has made.

    Args:
        folder: Where its files are; others are not on it.

    Attributes:
        syncs: How many there were.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, _Content] = {}
        self._lock = threading.Lock()
        self.syncs = 0

    def write(self, path: Path, at: int, data: bytes | None) -> None:
        if path.parent == self._folder:
            with self._lock:
                self._content(path.name).written.append((at, data))

    def sync(self, path: Path) -> None:
        if path.parent == self._folder:
            with self._lock:
                self._content(path.name).sync()
                self.syncs += 1

    def remove(self, path: Path) -> None:
        if path.parent == self._folder:
            with self._lock:
                self._files.pop(path.name, None)

    def cut(self, torn: Random | None = None) -> Image:
        """What there would be had the power been lost right now.

        Args:
            torn: Chooses writes that have reached the disk though nobody had synced them, as the
                system may do in any order; None: none have.
        """
        image = {}
        with self._lock:
            for name, content in self._files.items():
                left = bytearray(content.synced)
                for write in content.written:
                    if torn is not None and torn.random() < 0.5:
                        _apply(left, *write)
                image[name] = bytes(left)
        return image

    def _content(self, name: str) -> _Content:
        return self._files.setdefault(name, _Content())


class _File(apsw.VFSFile):
    def __init__(self, disk: Disk, name: str | apsw.URIFilename | None, flags: list[int]) -> None:
        super().__init__(_SYSTEM, name, flags)
        self._disk = disk
        path = name.filename() if isinstance(name, apsw.URIFilename) else name
        self._path = Path(path or "")

    def xWrite(self, data: bytes, offset: int) -> None:
        super().xWrite(data, offset)
        self._disk.write(self._path, offset, bytes(data))

    def xTruncate(self, newsize: int) -> None:
        super().xTruncate(newsize)
        self._disk.write(self._path, newsize, None)

    def xSync(self, flags: int) -> None:
        super().xSync(flags)
        self._disk.sync(self._path)


class _System(apsw.VFS):
    def __init__(self, disk: Disk) -> None:
        super().__init__("recorded", _SYSTEM, makedefault=True)
        self._disk = disk

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> apsw.VFSFile:
        return _File(self._disk, name, flags)

    def xDelete(self, filename: str, syncdir: bool) -> None:
        super().xDelete(filename, syncdir)
        self._disk.remove(Path(filename))


@contextmanager
def recorded_disk(folder: Path) -> Iterator[Disk]:
    """The databases of a folder that are opened and closed inside are on this disk."""
    disk = Disk(folder)
    system = _System(disk)
    try:
        yield disk
    finally:
        system.unregister()
