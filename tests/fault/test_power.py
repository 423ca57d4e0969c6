"""Loss of power: what was acknowledged had been synced, and what is left of the files is whole."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

import pytest

from aegis import Action, Executor, Result, ResultStatus
from aegis.audit import AuditFilter, AuditLog, AuditReader
from aegis.audit.archive import archive
from aegis.audit.verify import verify
from aegis.store.database import Store
from aegis.timestamps import now_us
from tests.contract.client import EVALUATE, EXECUTE, POLICY_PATH, Client, app_of, served
from tests.fault.power import Disk, Image, recorded_disk
from tests.unit.test_audit import record

DATABASE = "audit.db"
CLIENTS = 4
LARGE = "x" * 40_000
"""So that the write-ahead log begins anew now and then."""


class Notes(Executor):
    """Its effects are what it remembers; at each of them it takes an image of the disk."""

    def __init__(self, disk: Disk) -> None:
        self.disk = disk
        self.begun: list[tuple[str, Image]] = []

    async def execute(self, action: Action) -> Result:
        self.begun.append((action.target, self.disk.cut()))
        return Result(action, ResultStatus.SUCCESS, {"did": action.target})


@dataclass
class Machine:
    """A server on a disk whose power can be lost."""

    disk: Disk
    executor: Notes
    client: Client


@contextmanager
def machine(folder: Path, **options: Any) -> Iterator[Machine]:
    """A server whose database is in a folder."""
    with recorded_disk(folder) as disk:
        executor = Notes(disk)
        app = app_of(audit_db_path=folder / DATABASE, executor=executor, **options)
        with served(app) as client:
            yield Machine(disk, executor, client)


@pytest.fixture
def left(tmp_path: Path) -> Path:
    """A folder for what a loss of power has left."""
    folder = tmp_path / "left"
    folder.mkdir()
    return folder


def restored(folder: Path, image: Image, name: str = DATABASE) -> list[dict[str, Any]]:
    """The records that an image holds; its chain is whole."""
    for file in folder.iterdir():
        file.unlink()
    for file_name, content in image.items():
        (folder / file_name).write_bytes(content)
    store = Store(folder / name)
    reader = AuditReader(store)
    try:
        verify(store)
        return [row for page in reader.read(AuditFilter()) for row in page]
    finally:
        reader.close()
        store.close()


def targets(records: list[dict[str, Any]], *statuses: str) -> set[str]:
    return {row["action_target"] for row in records if row["result_status"] in statuses}


# --- what is acknowledged ------------------------------------------------------------------------


def test_answer_comes_after_the_sync_of_its_outcome(tmp_path: Path, left: Path) -> None:
    with machine(tmp_path) as on:
        for number in range(12):
            target = str(number)
            kind = "delete" if number % 3 == 2 else "read"
            on.client.post(EXECUTE, {"type": kind, "target": target})
            found = restored(left, on.disk.cut())
            assert target in targets(found, "blocked" if kind == "delete" else "success")


def test_intent_is_synced_before_its_effect(tmp_path: Path, left: Path) -> None:
    with machine(tmp_path) as on:
        on.client.post(EXECUTE, [{"type": "read", "target": str(n)} for n in range(8)])
        begun = on.executor.begun
    assert [target for target, _ in begun] == [str(n) for n in range(8)]
    for target, image in begun:
        assert target in targets(restored(left, image), "started")


def test_recorded_decision_is_synced_before_its_answer(tmp_path: Path, left: Path) -> None:
    with machine(tmp_path, audit_decisions="all") as on:
        for number in range(5):
            on.client.post(EVALUATE, [{"type": "read", "target": str(number)}])
            assert str(number) in targets(restored(left, on.disk.cut()), "decided")


def test_policy_is_synced_before_its_answer(tmp_path: Path, left: Path) -> None:
    with machine(tmp_path) as on:
        for version in range(2, 5):
            reply = on.client.put(POLICY_PATH, {"rules": [{"name": f"r{version}"}]})
            assert reply.json["version"] == version
            restored(left, on.disk.cut())
            with closing(sqlite3.connect(left / DATABASE)) as connection:
                newest = connection.execute("SELECT max(version) FROM policy_version").fetchone()
            assert newest == (version,)


def test_used_key_is_synced_before_its_answer(tmp_path: Path, left: Path) -> None:
    with machine(tmp_path) as on:
        action = {"type": "read", "target": "once"}
        on.client.post(EXECUTE, action, headers={"idempotency-key": "k"})
        restored(left, on.disk.cut())
    with served(app_of(audit_db_path=left / DATABASE)) as client:
        again = client.post(EXECUTE, action, headers={"idempotency-key": "k"}).json
        assert (again["status"], again["data"]) == ("success", {"did": "once"})


@pytest.mark.parametrize("seed", range(3))
def test_power_may_be_lost_at_any_moment_under_load(tmp_path: Path, left: Path, seed: int) -> None:
    random = Random(seed)
    cuts: list[tuple[set[str], Image]] = []

    async def load(on: Machine) -> None:
        acknowledged: set[str] = set()
        numbers = count()

        async def ask() -> None:
            while (number := next(numbers)) < 160:
                asked = {"type": "read", "target": str(number), "params": {"large": LARGE}}
                reply = await on.client.request("POST", EXECUTE, asked)
                assert reply.status == 200
                acknowledged.add(str(number))
                if random.random() < 0.1:
                    # What is acknowledged first: more may be synced in between.
                    cuts.append((set(acknowledged), on.disk.cut(random)))

        await asyncio.gather(*[ask() for _ in range(CLIENTS)])

    with machine(tmp_path) as on:
        on.client.run(load(on))
    assert len(cuts) > 5
    for acknowledged, image in cuts:
        found = restored(left, image)
        assert acknowledged <= targets(found, "success")


# --- what is not promised ------------------------------------------------------------------------


def test_durability_of_the_process_does_not_wait_for_the_disk(tmp_path: Path, left: Path) -> None:
    with machine(tmp_path, audit_durability="process") as on:
        before = on.disk.syncs
        for number in range(20):
            reply = on.client.post(EXECUTE, {"type": "read", "target": str(number)})
            assert reply.json["status"] == "success"
        assert on.disk.syncs == before
        assert len(restored(left, on.disk.cut())) < 20
        assert len(on.client.records()) == 20


@pytest.mark.parametrize("seed", range(3))
def test_durability_of_the_process_loses_only_the_newest_records(
    tmp_path: Path, left: Path, seed: int
) -> None:
    with machine(tmp_path, audit_durability="process") as on:
        for number in range(60):
            asked = {"type": "read", "target": str(number), "params": {"large": LARGE}}
            on.client.post(EXECUTE, asked)
        image = on.disk.cut(Random(seed))
    found = [row["action_target"] for row in restored(left, image)]
    assert found == [str(number) for number in range(len(found))]


# --- archives ------------------------------------------------------------------------------------


def test_power_lost_while_it_archives_leaves_every_link_somewhere(
    tmp_path: Path, left: Path
) -> None:
    images: list[Image] = []
    with recorded_disk(tmp_path) as disk:
        store = Store(tmp_path / DATABASE)
        log = AuditLog(store, most_queued=10_000, timeout_s=10)
        try:
            asyncio.run(log.append([record(n) for n in range(300)]))
            synced = disk.sync

            def sync(path: Path) -> None:
                synced(path)
                images.append(disk.cut())

            disk.sync = sync  # type: ignore[method-assign]  # to see each moment
            archive(store, now_us(), tmp_path / "archived.db")
            images.append(disk.cut())
        finally:
            log.close()
            store.close()
    kept = [len(restored(left, image)) for image in images]
    assert (kept[0], kept[-1]) == (300, 0)
    for image, count_of_kept in zip(images, kept, strict=True):
        if count_of_kept == 300:
            continue
        archived = {
            DATABASE + name.partition(".partial")[2]: content
            for name, content in image.items()
            if name.startswith("archived.db.")
        }
        assert len(restored(left, archived)) == 300
