"""What a server takes from its machine: an address, a database for itself, a word to systemd."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from aegis.config import beside
from aegis.errors import AegisError, ConfigError
from aegis.host.files import open_private, refuse_odd
from aegis.host.locks import hold_for_process, is_held_by_process, lock_at
from aegis.messages import quote

__all__ = ["Address", "free_address", "notify", "own_database"]

PATIENCE_S = 30.0
"""How long workers of a server that was killed may take to end: what they run comes to its end first."""


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
        raise ConfigError(f"host {quote(host)} is no address and no known name") from None
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
            return f"{quote(host)} is not an address of this machine"
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
        file = _lock(name, path)
    except OSError as error:
        raise ConfigError(f"cannot use {quote(path)}: {error.strerror}") from None
    try:
        # Workers inherit the file and hold it as well: none of them is left when it is free.
        yield
    except AegisError:
        if is_new:  # what was refused is perhaps no database, and stays alone
            os.unlink(name)
        raise
    finally:
        os.close(file)


def _lock(name: str, path: str) -> int:
    """The file by which there is one server, locked and with the number of this process."""

    def open_file(at: str) -> int:
        return open_private(at, path)

    def has_to_wait(file: int) -> bool:
        # A server that runs will go on; one that was killed has workers that end now.
        return not is_held_by_process(file)

    file = lock_at(name, open_file, PATIENCE_S, has_to_wait=has_to_wait)
    if file is None:
        raise ConfigError(
            f"process {_owner(name)} serves the database {quote(path)} already; stop"
            " it, or give another --audit-db"
        )
    hold_for_process(file)
    os.truncate(file, 0)
    os.pwrite(file, b"%d\n" % os.getpid(), 0)
    return file


def _owner(name: str) -> str:
    try:
        with open(name, "rb") as file:
            return file.read(20).decode(errors="replace").strip() or "unknown"
    except OSError:
        return "unknown"


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
