"""The public iterator over the audit's entries: their canonical bytes, bounded, and to be resumed."""

from __future__ import annotations

import asyncio
import json
from hashlib import sha256
from pathlib import Path

import pytest

from aegis.audit import ChainEntry, Outcome, ResultStatus, export, read_entries
from aegis.audit.archive import archive
from aegis.errors import StoreError
from tests.unit.test_audit import opened, record

COUNT = 30


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """An audit of records, of which the last one has an outcome of its own."""
    path = tmp_path / "audit.db"
    with opened(path) as (log, _):
        records = [record(number) for number in range(1, COUNT)]
        asyncio.run(log.append([*records[:-1]]))
        asyncio.run(log.append([record("last", result_status=ResultStatus.STARTED)]))
        asyncio.run(log.append([Outcome(1, COUNT - 1, ResultStatus.SUCCESS, None, None)]))
    return path


def test_bytes_of_the_entries_hash_to_the_chain(database: Path) -> None:
    with opened(database) as (log, _):
        head = log.reader.read_head()
    previous = bytes(32)
    entries = list(read_entries(database))
    for number, entry in enumerate(entries, 1):
        assert entry.id == number
        assert entry.previous_hash == previous
        assert sha256(previous + entry.canonical).digest() == entry.hash
        assert json.loads(entry.canonical)[:2] == [
            "outcome" if number == COUNT else "record",
            number,
        ]
        previous = entry.hash
    assert (entries[-1].id, entries[-1].hash.hex()) == (head["id"], head["hash"])


def test_entries_go_on_from_any_number(database: Path) -> None:
    entries = list(read_entries(database))
    for after in (0, 1, 17, COUNT - 1, COUNT):
        assert list(read_entries(database, after=after)) == entries[after:]


def test_entry_that_comes_later_is_read_by_going_on(database: Path) -> None:
    first = list(read_entries(database))
    with opened(database) as (log, _):
        asyncio.run(log.append([record("new")]))
        (entry,) = read_entries(database, after=first[-1].id)
    assert entry.previous_hash == first[-1].hash
    assert b'"new"' in entry.canonical


def test_no_more_than_a_part_of_the_entries_is_read_at_once(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = list(read_entries(database))
    parts: list[int] = []
    some = export._some  # noqa: SLF001 - how much is in memory has no door

    def counted(rows: object) -> list[tuple[int, bytes, bytes]]:
        part = some(rows)  # type: ignore[arg-type]
        parts.append(len(part))
        return part

    monkeypatch.setattr(export, "_MAX_BYTES_READ", 1_000)
    monkeypatch.setattr(export, "_some", counted)
    assert list(read_entries(database)) == whole
    assert max(parts) <= 1_000 // min(len(entry.canonical) for entry in whole) + 1
    assert len(parts) > 1


def test_number_that_is_not_there_is_refused(database: Path) -> None:
    with pytest.raises(StoreError, match=f"there is no entry {COUNT + 1}"):
        list(read_entries(database, after=COUNT + 1))
    with pytest.raises(StoreError, match="cannot open"):
        list(read_entries(database.with_name("missing.db")))


def test_what_was_archived_is_said_and_the_rest_goes_on_from_it(
    database: Path, tmp_path: Path
) -> None:
    with opened(database) as (log, store):
        asyncio.run(log.append([record("kept", timestamp_us=2**50)]))
        whole = list(read_entries(database))
        done = archive(store, 2**50, tmp_path / "old.db")
    with pytest.raises(StoreError, match=f"entries up to {done.last} were archived"):
        list(read_entries(database, after=1))
    entries = list(read_entries(database, after=done.last))
    assert entries == list(read_entries(database))
    assert entries[0].previous_hash == done.hash
    assert entries[0] == whole[done.last]
    assert list(read_entries(tmp_path / "old.db")) == whole[: done.last]


def test_entry_that_is_missing_ends_the_reading(database: Path) -> None:
    with opened(database) as (_, store), store.transaction() as connection:
        for (trigger,) in connection.execute(
            "SELECT name FROM sqlite_schema WHERE type = 'trigger'"
        ).fetchall():
            connection.execute(f"DROP TRIGGER {trigger}")
        connection.execute("DELETE FROM record WHERE id = 9")
    entries: list[ChainEntry] = []
    with pytest.raises(StoreError, match=r"entry 9 of .* is missing"):
        entries.extend(read_entries(database))
    assert len(entries) == 8
