"""What a server takes from its machine: an address, a database for itself, a word to systemd."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from aegis.config import beside
from aegis.errors import AegisError, ConfigError, shown
from aegis.host.files import open_private, refuse_odd

__all__ = ["Address", "free_address", "notify", "own_database"]

PATIENCE_S = 3.0
"""How long a server that was killed may take to let go of its database: its workers end after it."""
_PAUSE_S = 0.02


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen.

    Attributes:
        host: As the operator wrote it.
        ip: The address that it stands for.
        port: The port.
    """

    host: str
    ip: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"


def free_address(host: str, port: int) -> Address:
    """The address to listen on, seen to be free.

    granian shares ports (SO_REUSEPORT), so a second server would start beside the first one and
    take a part of its requests; a socket that does not share finds out.

    Raises:
        ConfigError: It is none, or somebody else's.
    """
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError):
        raise ConfigError(f"host {shown(host)} is no address and no known name") from None
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(place)
        except OSError as error:
            raise ConfigError(_cannot_bind(error, host, port)) from None
        return Address(host, str(place[0]), probe.getsockname()[1])


def _cannot_bind(error: OSError, host: str, port: int) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return f"port {port} of {host} is in use; stop what uses it, or choose another --port"
        case errno.EACCES:
            return f"port {port} needs privileges; choose one from 1024 up"
        case errno.EADDRNOTAVAIL:
            return f"{shown(host)} is not an address of this machine"
        case _:
            return f"cannot listen on port {port} of {host}: {error.strerror}"


@contextmanager
def own_database(path: str) -> Iterator[None]:
    """Be the only server of a database, until the end of this process and of its workers.

    Other processes may still use it, as applications under a server of another kind do.

    Raises:
        ConfigError: There is another server.
    """
    if path == ":memory:":
        yield
        return
    name = beside(path, ".server")
    is_new = not os.path.lexists(name)
    try:
        refuse_odd(path)
        file = _locked(name, path)
    except OSError as error:
        raise ConfigError(f"cannot use {shown(path)}: {error.strerror}") from None
    try:
        # Workers inherit the file and hold it as well: none of them is left when it is free.
        yield
    except AegisError:
        if is_new:  # what was refused is perhaps no database, and stays alone
            os.unlink(name)
        raise
    finally:
        os.close(file)


def _locked(name: str, path: str) -> int:
    """The file by which there is one server, locked and with the number of this process."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        file = open_private(name, path)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(name, file):  # not one that was removed meanwhile
                os.truncate(file, 0)
                os.pwrite(file, b"%d\n" % os.getpid(), 0)
                return file
        except BlockingIOError:
            owner = os.pread(file, 20, 0).decode(errors="replace").strip()
            # One that runs will go on; one that was killed has workers that end now.
            if _is_running(owner) or time.monotonic() > deadline:
                os.close(file)
                raise ConfigError(
                    f"process {owner or 'unknown'} serves the database {shown(path)} already; stop"
                    " it, or give another --audit-db"
                ) from None
        except OSError:
            os.close(file)
            raise
        os.close(file)
        time.sleep(_PAUSE_S)


def _is_at(name: str, file: int) -> bool:
    try:
        return os.path.samestat(os.stat(name), os.fstat(file))
    except FileNotFoundError:
        return False


def _is_running(pid: str) -> bool:
    if not pid.isdecimal():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        pass
    return True


def notify(state: str) -> None:
    """Tell systemd, or whoever has set NOTIFY_SOCKET, what this service does now.

    Args:
        state: As in `READY=1`.

    Source: sd_notify(3).
    """
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path.startswith(("/", "@")):
        return
    address = f"\0{path[1:]}" if path.startswith("@") else path
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sending:
            sending.connect(address)
            sending.sendall(state.encode())
    except OSError:
        pass  # nobody listens, and a service does not fail for that
