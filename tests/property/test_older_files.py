"""Files of older releases: read and verified as they are, and after they were brought up to date."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given

from aegis.audit import AuditLog, AuditRecord
from aegis.audit.entries import GENESIS
from aegis.audit.members import COLUMNS
from aegis.audit.verify import verify
from aegis.errors import InvalidTrail, StoreError
from aegis.store.database import Store
from aegis.store.schema import APPLICATION_ID, MIGRATIONS
from tests.property.test_chain import (
    FEW,
    RECORD,
    Link,
    exported,
    fault,
    folder,
    forge,
    reading,
    rows,
    trails,
)
from tests.unit.test_store import statements_of

NEW = ("call_id", "request_id", "trace_id", "kind", "payload")
TEXT = "rules: []"


def written_by(version: int, path: Path, trail: list[Link]) -> None:
    """A database of a schema that had a chain, with a policy version."""
    names = COLUMNS.partition("(")[2].rstrip(")").split(", ")
    words = {word for link in trail for word in link.words() if word is not None}
    numbers: dict[str | None, int | None] = {None: None}
    numbers |= {word: number for number, word in enumerate(sorted(words), 1)}
    with closing(sqlite3.connect(path)) as connection, connection:
        for script in MIGRATIONS[:version]:
            for statement in statements_of(script):
                connection.execute(statement)
            if not script.rstrip().endswith(";"):
                connection.execute(script)
        connection.execute("DROP TABLE unchained_record")
        connection.executemany(
            "INSERT INTO word (text, id) VALUES (?, ?)", list(numbers.items())[1:]
        )
        previous = GENESIS
        for number, link in enumerate(trail, 1):
            previous, row = link.hash_and_row(number, previous, numbers)
            here = {name: value for name, value in zip(names, row, strict=True) if name not in NEW}
            connection.execute(
                f"INSERT INTO record ({', '.join(here)}) VALUES ({', '.join('?' * len(here))})",
                list(here.values()),
            )
        connection.execute(
            "INSERT INTO policy_version (version, sha256, origin, created_us, source)"
            " VALUES (1, ?, 'file', 7, ?)",
            (sha256(TEXT.encode()).hexdigest(), TEXT),
        )
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {version}")


def without_ids(trail: list[Link]) -> list[Link]:
    for link in trail:
        if isinstance(link, AuditRecord):
            link.call_id = link.request_id = link.trace_id = None
    return trail


@FEW
@given(trails())
def test_older_file_is_read_as_it_is_and_goes_on_when_it_is_written(trail: list[Link]) -> None:
    trail = without_ids(trail)
    for version in (3, 4):
        with folder() as here:
            path = here / "audit.db"
            written_by(version, path, trail)
            content = path.read_bytes()
            with reading(path) as store:
                assert verify(store).count == len(trail)
            before, chain = rows(path), exported(path)
            assert path.read_bytes() == content
            store = Store(path)
            AuditLog(store, most_queued=1, timeout_s=1).close()
            store.end_log()
            store.close()
            with reading(path) as store:
                verified = verify(store)
            first = 1 if trail else 0
            assert (verified.first, verified.last) == (first, verified.last)
            after = exported(path)
            assert after.split(b"\n")[1 : len(trail) + 1] == chain.split(b"\n")[1:-1]
            assert b' ["policy",' in after
            # What has not ended is interrupted by whoever opens the file next.
            ended = [row for row in before if row["result_status"] != "started"]
            assert [row for row in rows(path) if row in ended] == ended


@pytest.mark.parametrize("version", [3, 4])
def test_changed_record_of_an_older_file_is_found(tmp_path: Path, version: int) -> None:
    path = tmp_path / "audit.db"
    written_by(version, path, [RECORD, RECORD])
    forge(path, "UPDATE record SET action_target = 'x' WHERE id = 2")
    assert fault(path) == 2


def test_foreign_index_of_an_older_file_is_found(tmp_path: Path) -> None:
    path = tmp_path / "audit.db"
    written_by(4, path, [RECORD])
    forge(path, "CREATE INDEX odd ON record (timestamp_us)")
    with (
        pytest.raises(InvalidTrail, match="`odd` on `record` is not of Aegis"),
        reading(path) as store,
    ):
        verify(store)


def test_file_from_before_the_chain_has_to_be_brought_up_to_date(tmp_path: Path) -> None:
    path = tmp_path / "audit.db"
    with closing(sqlite3.connect(path)) as connection, connection:
        for statement in statements_of(MIGRATIONS[0]):
            connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute("PRAGMA user_version = 1")
    with pytest.raises(StoreError, match="serve it once"):
        Store(path, read_only=True)
