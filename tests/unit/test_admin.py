"""Changes of the policy that wait keep nothing else waiting."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from aegis.errors import NotFound, NotReady
from aegis.server.api.operators import MAX_CHANGES, Admin
from aegis.server.http.messages import Request


class Blocked:
    """Changes that wait for a process that does not answer."""

    def __init__(self) -> None:
        self.over = threading.Event()

    def reload(self) -> Any:
        self.over.wait(10)
        raise NotFound("no file")

    def put(self, text: object, change: object) -> Any:
        return self.reload()

    def rollback(self, version: int, change: object) -> Any:
        return self.reload()


class History:
    def page(self, **_: int) -> list[Any]:
        return []


class Snapshot:
    version = 1


class NoHeaders:
    def get_all(self, _name: str, /) -> list[str]:
        return []

    def __contains__(self, _name: str, /) -> bool:
        return False


def test_changes_that_wait_leave_other_threads_free_and_are_not_without_end() -> None:
    changes = Blocked()
    request = Request("reload", b"", NoHeaders())
    admin = Admin(deepest=64, snapshot=Snapshot, history=History, changes=changes)  # type: ignore[arg-type]

    async def scenario() -> None:
        waiting = [asyncio.ensure_future(admin.reload(request)) for _ in range(MAX_CHANGES)]
        await asyncio.sleep(0)
        with pytest.raises(NotReady, match="wait already"):
            await admin.reload(request)
        async with asyncio.timeout(5):
            assert await asyncio.to_thread(int) == 0
            assert (await admin.versions(request)).body == b"[]"
        changes.over.set()
        ended = await asyncio.gather(*waiting, return_exceptions=True)
        assert {type(one) for one in ended} == {NotFound}

    asyncio.run(scenario())
    admin.close()
