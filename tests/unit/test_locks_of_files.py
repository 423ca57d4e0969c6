"""Looking at connections leaves the locks alone that SQLite has on its files."""

from __future__ import annotations

import fcntl
import os
import socket
from pathlib import Path

from aegis.server.http import connections


def test_looking_at_sockets_drops_no_lock_of_a_file(tmp_path: Path) -> None:
    with (tmp_path / "locked").open("w") as file, socket.create_server(("127.0.0.1", 0)) as server:
        fcntl.lockf(file, fcntl.LOCK_EX)
        found = list(connections._sockets(server.getsockname()[1]))  # noqa: SLF001
        for each in found:
            each.close()
        assert found
        pid = os.fork()
        if pid == 0:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os._exit(0)
            os._exit(1)
        assert os.waitpid(pid, 0)[1] == 0
