"""The chain: it verifies as it was written, and nothing about it can be changed without being found."""

from __future__ import annotations

import asyncio
import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aegis.audit import (
    AuditFilter,
    AuditLog,
    AuditReader,
    AuditRecord,
    Operation,
    Outcome,
    PayloadEntry,
    ResultStatus,
)
from aegis.audit.archive import archive
from aegis.audit.entries import GENESIS
from aegis.audit.export import exported_entries
from aegis.audit.journal import Journal
from aegis.audit.members import CANONICAL
from aegis.audit.verify import Pin, verify, verify_export
from aegis.errors import AegisError, InvalidTrail
from aegis.policy.history import PolicyHistory
from aegis.store.database import Store
from aegis_core import Approval, RiskLevel

Link = AuditRecord | Outcome

ALL = AuditFilter()
FEW = settings(max_examples=settings().max_examples // 4, suppress_health_check=[*HealthCheck])
LARGEST = 2**63 - 1
MEMORY = "/dev/shm"

texts = st.text(max_size=8) | st.sampled_from(
    [
        "",
        "\0",
        "a\0b",
        '"\\/',
        "\b\t\n\f\r\x1b\x7f\x80\x9f",
        "\u2028\u2029",
        "\ufffe\U0010ffff",
        "é",
        "😀",
    ]
)
words = texts | st.sampled_from(["s", "t", "read", "<default>"])
maybe_texts = st.none() | texts
maybe_words = st.none() | words
numbers = st.sampled_from([0, 1, -1, LARGEST, -LARGEST - 1]) | st.integers(-LARGEST - 1, LARGEST)
times = st.integers(0, 2_000_000_000_000_000)
ENDS = [status for status in ResultStatus if status is not ResultStatus.STARTED]

records = st.builds(
    AuditRecord,
    timestamp_us=times,
    session_id=words,
    action_type=words,
    action_target=texts,
    action_params=texts,
    action_desc=maybe_texts,
    risk_level=st.sampled_from(RiskLevel),
    approval=st.sampled_from(Approval),
    matched_rule=words,
    human_decision=maybe_words,
    result_status=st.sampled_from(ResultStatus),
    result_data=maybe_texts,
    result_error=maybe_texts,
    agent_id=maybe_words,
    parent_agent_id=maybe_words,
    chain_id=maybe_words,
    chain_depth=numbers,
    policy_version=numbers,
    key_name=maybe_words,
    operation=st.sampled_from(Operation),
    worker=st.none() | numbers,
    call_id=st.none() | texts,
    request_id=st.none() | texts,
    trace_id=st.none() | texts,
)


BOOLEANS: st.SearchStrategy[Any] = st.booleans()


@st.composite
def trails(draw: st.DrawFn, least: int = 0, most: int = 8) -> list[Link]:
    """Records, and outcomes of those that had begun."""
    trail: list[Link] = []
    begun: list[int] = []
    for number in range(1, draw(st.integers(least, most)) + 1):
        if begun and draw(BOOLEANS):
            first = begun.pop(draw(st.integers(0, len(begun) - 1)))
            status = draw(st.sampled_from(ENDS))
            trail.append(Outcome(draw(times), first, status, draw(maybe_texts), draw(maybe_texts)))
            continue
        record = draw(records)
        # Whose worker is gone would be interrupted by whoever opens the file next.
        if record.result_status is ResultStatus.STARTED:
            begun.append(number)
        trail.append(record)
    return trail


def written(path: Path, trail: list[Link]) -> None:
    """A database of a trail, all of it in one file."""
    store = Store(path)
    log = AuditLog(store, most_queued=10_000, timeout_s=30)
    try:
        asyncio.run(log.append(trail))
    finally:
        log.close()
        store.end_log()
        store.close()


@contextmanager
def reading(path: Path) -> Iterator[Store]:
    store = Store(path, read_only=True)
    try:
        yield store
    finally:
        store.close()


@contextmanager
def folder() -> Iterator[Path]:
    # Where there is one, of memory: what a disk does of its own is not asked for here.
    with TemporaryDirectory(dir=MEMORY if os.path.isdir(MEMORY) else None) as name:
        yield Path(name)


def rows(path: Path, wanted: AuditFilter = ALL) -> list[dict[str, Any]]:
    """The records that a filter finds."""
    with reading(path) as store:
        reader = AuditReader(store)
        try:
            return [row for page in reader.read(wanted) for row in page]
        finally:
            reader.close()


def exported(path: Path) -> bytes:
    with reading(path) as store:
        return b"".join(exported_entries(store))


def fault(path: Path, pin: Pin | None = None) -> int | None:
    """The entry that verification names; None: there is none."""
    with reading(path) as store:
        try:
            verify(store, pin=pin)
        except InvalidTrail as error:
            return error.number
    return None


def forge(path: Path, *statements: str | tuple[str, tuple[Any, ...]]) -> None:
    """Change a database as someone does who has its file and knows SQLite."""
    with closing(sqlite3.connect(path)) as connection, connection:
        triggers = connection.execute(
            "SELECT name, sql FROM sqlite_schema WHERE type = 'trigger'"
        ).fetchall()
        for name, _ in triggers:
            connection.execute(f"DROP TRIGGER {name}")
        connection.execute("PRAGMA ignore_check_constraints = ON")
        for statement in statements:
            if isinstance(statement, str):
                connection.execute(statement)
            else:
                connection.execute(*statement)
        for _, sql in triggers:
            connection.execute(sql)


# --- what was written ----------------------------------------------------------------------------


@FEW
@given(trails())
def test_trail_verifies_as_it_was_written(trail: list[Link]) -> None:
    with folder() as here:
        path = here / "audit.db"
        written(path, trail)
        with reading(path) as store:
            verified = verify(store)
            assert (verified.first, verified.last, verified.count) == (1, len(trail), len(trail))
            pinned = verify(store, pin=Pin(verified.hash, verified.last or None))
            assert pinned.pinned == verified.last


@FEW
@given(trails())
def test_canonical_form_of_the_database_is_the_one_that_was_hashed(trail: list[Link]) -> None:
    with folder() as here:
        path = here / "audit.db"
        written(path, trail)
        with closing(sqlite3.connect(path)) as connection:
            stored = connection.execute(f"{CANONICAL} ORDER BY r.id").fetchall()
            known = dict(connection.execute("SELECT text, id FROM word"))
    previous = GENESIS
    for number, (entry, row) in enumerate(zip(trail, stored, strict=True), 1):
        previous_of_this = previous
        previous, _ = entry.hash_and_row(number, previous, {None: None, **known})
        assert (row[0], row[1]) == (number, previous)
        assert sha256(previous_of_this + row[2]).digest() == previous


# --- the database, changed -----------------------------------------------------------------------

COLUMNS: dict[str, Any] = {
    "hash": "randomblob(32)",
    "timestamp_us": "timestamp_us + 1",
    "result_status": "result_status % 8 + 1",
    "result_data": "ifnull(result_data, '') || 'x'",
    "result_error": "CASE WHEN result_error IS NULL THEN '' ELSE NULL END",
    "operation": "operation % 3 + 1",
    "session": "(SELECT id FROM word WHERE id <> session LIMIT 1)",
    "action_type": "(SELECT id FROM word WHERE id <> action_type LIMIT 1)",
    "action_target": "action_target || char(0)",
    "action_params": "'{}' || action_params",
    "action_desc": "CASE WHEN action_desc IS NULL THEN '' ELSE NULL END",
    "risk_level": "risk_level % 4 + 1",
    "approval": "approval % 3 + 1",
    "matched_rule": "(SELECT id FROM word WHERE id <> matched_rule LIMIT 1)",
    "human_decision": "(SELECT id FROM word WHERE id IS NOT human_decision LIMIT 1)",
    "agent": "(SELECT id FROM word WHERE id IS NOT agent LIMIT 1)",
    "parent_agent": "(SELECT id FROM word WHERE id IS NOT parent_agent LIMIT 1)",
    "chain": "(SELECT id FROM word WHERE id IS NOT chain LIMIT 1)",
    "chain_depth": "CASE chain_depth WHEN 5 THEN 6 ELSE 5 END",
    "policy_version": "CASE policy_version WHEN 5 THEN 6 ELSE 5 END",
    "key_name": "(SELECT id FROM word WHERE id IS NOT key_name LIMIT 1)",
    "worker": "CASE WHEN worker IS NULL THEN 1 ELSE NULL END",
    "call_id": "CASE WHEN call_id IS NULL THEN '' ELSE NULL END",
    "request_id": "CASE WHEN request_id IS NULL THEN '' ELSE NULL END",
    "trace_id": "CASE WHEN trace_id IS NULL THEN '' ELSE NULL END",
}
OF_OUTCOMES = ["hash", "timestamp_us", "result_status", "result_data", "result_error"]


@FEW
@given(trails(least=1), st.data())
def test_changed_column_is_found_at_its_link(trail: list[Link], data: st.DataObject) -> None:
    number = data.draw(st.integers(1, len(trail)))
    is_record = isinstance(trail[number - 1], AuditRecord)
    column = data.draw(st.sampled_from(list(COLUMNS) if is_record else OF_OUTCOMES))
    with folder() as here:
        path = here / "audit.db"
        written(path, trail)
        forge(
            path,
            "INSERT INTO word (text) VALUES ('another one'), ('and one more')",
            f"UPDATE record SET {column} = {COLUMNS[column]} WHERE id = {number}",
        )
        assert fault(path) == number


@FEW
@given(trails(least=1), st.data())
def test_changed_word_is_found_at_the_first_link_that_has_it(
    trail: list[Link], data: st.DataObject
) -> None:
    used = sorted({word for entry in trail for word in entry.words() if word is not None})
    word = data.draw(st.sampled_from(used))
    first = next(number for number, entry in enumerate(trail, 1) if word in entry.words())
    with folder() as here:
        path = here / "audit.db"
        written(path, trail)
        forge(path, ("UPDATE word SET text = 'a new text' WHERE text = ?", (word,)))
        assert fault(path) == first


@FEW
@given(trails(least=1), st.data())
def test_removed_word_is_found_at_the_first_link_that_has_it(
    trail: list[Link], data: st.DataObject
) -> None:
    used = sorted({word for entry in trail for word in entry.words() if word is not None})
    word = data.draw(st.sampled_from(used))
    first = next(number for number, entry in enumerate(trail, 1) if word in entry.words())
    with folder() as here:
        path = here / "audit.db"
        written(path, trail)
        forge(path, ("DELETE FROM word WHERE text = ?", (word,)))
        assert fault(path) == first


@FEW
@given(trails(least=2), st.data())
def test_removed_link_is_missing(trail: list[Link], data: st.DataObject) -> None:
    number = data.draw(st.integers(1, len(trail) - 1))
    with folder() as here:
        path = here / "audit.db"
        written(path, trail)
        forge(path, f"DELETE FROM record WHERE id = {number}")
        assert fault(path) == number


@FEW
@given(trails(least=2), st.data())
def test_removed_link_is_found_where_the_rest_moved_up(
    trail: list[Link], data: st.DataObject
) -> None:
    number = data.draw(st.integers(1, len(trail) - 1))
    with folder() as here:
        path = here / "audit.db"
        written(path, trail)
        forge(
            path,
            f"DELETE FROM record WHERE id = {number}",
            f"UPDATE record SET id = -id WHERE id > {number}",
            "UPDATE record SET id = -id - 1 WHERE id < 0",
        )
        assert fault(path) == number


@FEW
@given(trails(least=1), st.data())
def test_inserted_link_is_found_where_it_stands(trail: list[Link], data: st.DataObject) -> None:
    copied = data.draw(st.integers(1, len(trail)))
    number = data.draw(st.integers(1, len(trail)))
    with folder() as here:
        path = here / "audit.db"
        written(path, trail)
        forge(
            path,
            "DROP INDEX outcome",
            "CREATE TEMP TABLE copied AS SELECT * FROM record WHERE id = " + str(copied),
            f"UPDATE record SET id = -id WHERE id >= {number}",
            "UPDATE record SET id = -id + 1 WHERE id < 0",
            f"UPDATE copied SET id = {number}",
            "INSERT INTO record SELECT * FROM copied",
        )
        # A copy of the very entry that stood there is only found by the one that stands there twice.
        assert fault(path) in ({number, number + 1} if copied == number else {number})


@FEW
@given(trails(least=2), st.data())
def test_swapped_links_are_found_at_the_first_of_them(
    trail: list[Link], data: st.DataObject
) -> None:
    one, other = sorted(data.draw(st.sets(st.integers(1, len(trail)), min_size=2, max_size=2)))
    with folder() as here:
        path = here / "audit.db"
        written(path, trail)
        forge(
            path,
            f"UPDATE record SET id = -1 WHERE id = {one}",
            f"UPDATE record SET id = {one} WHERE id = {other}",
            f"UPDATE record SET id = {other} WHERE id = -1",
        )
        assert fault(path) == one


@FEW
@given(trails(least=1), st.data(), st.booleans())
def test_cut_tail_is_found_against_a_pinned_head(
    trail: list[Link], data: st.DataObject, knows_number: bool
) -> None:
    left = data.draw(st.integers(0, len(trail) - 1))
    with folder() as here:
        path = here / "audit.db"
        written(path, trail)
        with reading(path) as store:
            head = verify(store)
        pin = Pin(head.hash, head.last if knows_number else None)
        assert fault(path, pin) is None
        forge(path, f"DELETE FROM record WHERE id > {left}")
        assert fault(path) is None
        assert fault(path, pin) == left + 1


@FEW
@given(trails(least=1), st.data(), st.booleans())
def test_chain_that_was_made_anew_is_found_against_a_pinned_head(
    trail: list[Link], data: st.DataObject, knows_number: bool
) -> None:
    number = data.draw(st.integers(1, len(trail)))
    with folder() as here:
        written(here / "audit.db", trail)
        with reading(here / "audit.db") as store:
            head = verify(store)
        forged = list(trail)
        entry = forged[number - 1]
        forged[number - 1] = replace(entry, timestamp_us=entry.timestamp_us + 1)
        written(here / "forged.db", forged)
        pin = Pin(head.hash, head.last if knows_number else None)
        assert fault(here / "forged.db") is None
        found = fault(here / "forged.db", pin)
        assert found == (len(trail) if knows_number else len(trail) + 1)


@FEW
@given(trails(least=1), st.data())
def test_flipped_bit_of_the_file_is_found_or_changes_nothing_that_is_said(
    trail: list[Link], data: st.DataObject
) -> None:
    with folder() as here:
        path = here / "audit.db"
        written(path, trail)
        chain, before = exported(path), rows(path)
        content = bytearray(path.read_bytes())
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] ^= 1 << data.draw(st.integers(0, 7))
        path.write_bytes(content)
        with suppress(AegisError), reading(path) as store:
            verified = verify(store)
            # Free space, or what nothing that is said depends on.
            assert verified.count == len(trail)
            assert b"".join(exported_entries(store)) == chain
            assert rows(path) == before
            for word in {row["session_id"] for row in before}:
                wanted = AuditFilter(session_id=word)
                assert rows(path, wanted) == [row for row in before if row["session_id"] == word]


@pytest.mark.parametrize("what", ["one large target", "session of all", "a rule of one"])
def test_every_byte_of_a_record_or_word_counts(tmp_path: Path, what: str) -> None:
    path = tmp_path / "audit.db"
    trail = [replace(RECORD, action_target=f"target {number}") for number in range(3)]
    trail[0] = replace(RECORD, action_target="one large target")
    trail[1] = replace(trail[1], matched_rule="a rule of one")
    written(path, [replace(record, session_id="session of all") for record in trail])
    content = path.read_bytes()
    places = [match.start() for match in re.finditer(what.encode(), content)]
    assert places
    for at in [place + offset for place in places for offset in range(len(what))]:
        changed = bytearray(content)
        changed[at] ^= 1 << at % 8
        path.write_bytes(changed)
        with pytest.raises(AegisError), reading(path) as store:
            verify(store)


RECORD = AuditRecord(
    timestamp_us=1,
    session_id="s",
    action_type="read",
    action_target="t",
    action_params="{}",
    action_desc=None,
    risk_level=RiskLevel.LOW,
    approval=Approval.AUTO,
    matched_rule="reads",
    human_decision=None,
    result_status=ResultStatus.SUCCESS,
    result_data=None,
    result_error=None,
    agent_id=None,
    parent_agent_id=None,
    chain_id=None,
    chain_depth=0,
    policy_version=1,
)


# By a hash alone, nobody can tell that an entry which is said to be elsewhere had another number.
@pytest.mark.parametrize(
    ("number", "knows_number"), [(0, True), (0, False), (-5, True), (-5, False), (2, True)]
)
def test_archive_that_is_only_said_to_be_does_not_stand_for_a_pinned_head(
    tmp_path: Path, number: int, knows_number: bool
) -> None:
    path = tmp_path / "audit.db"
    written(path, [RECORD] * 4)
    with reading(path) as store:
        head = verify(store)
    said = ("INSERT INTO archive VALUES (?, ?, 1, 'old.db', 1)", (number, head.hash))
    forge(path, "DELETE FROM record WHERE id > 2", said)
    assert fault(path, Pin(head.hash, head.last if knows_number else None)) == 3


def test_archive_that_no_entry_tells_of_is_found(tmp_path: Path) -> None:
    path = tmp_path / "audit.db"
    written(path, [RECORD] * 3)
    with reading(path) as store:
        head = verify(store)
    forge(
        path,
        ("INSERT INTO archive VALUES (3, ?, 3, 'old.db', 1)", (head.hash,)),
        "DELETE FROM record",
    )
    said = "nothing in the chain tells of the archive `old.db`"
    with pytest.raises(InvalidTrail, match=said), reading(path) as store:
        verify(store, pin=Pin(head.hash, 3))


@pytest.mark.parametrize("number", [-9, 0, 1])
def test_outcome_that_stands_before_its_record_changes_nothing_and_is_found(
    tmp_path: Path, number: int
) -> None:
    path = tmp_path / "audit.db"
    written(path, [RECORD, RECORD])
    store = Store(path)
    archive(store, 2, tmp_path / "old.db")
    store.close()
    written(path, [RECORD])
    before, chain = rows(path), exported(path)
    forge(
        path,
        f"INSERT INTO record (id, hash, intent, timestamp_us, result_status, result_error)"
        f" VALUES ({number}, randomblob(32), 3, 1, 2, 'forged')",
    )
    assert rows(path) == before
    assert exported(path) == chain
    assert fault(path) == number


@pytest.mark.parametrize("of", [-5, 1, 3, 4])
def test_outcome_that_is_added_to_what_had_not_begun_is_found(tmp_path: Path, of: int) -> None:
    """Its hash is right, and so is a head that was kept before: only what it says is impossible."""
    path = tmp_path / "audit.db"
    begun = replace(RECORD, result_status=ResultStatus.STARTED)
    outcome = Outcome(5, 2, ResultStatus.STARTED, None, None)
    written(path, [RECORD, begun, outcome, replace(RECORD, result_status=ResultStatus.BLOCKED)])
    with reading(path) as store:
        head = verify(store)
    hashed, _ = Outcome(5, of, ResultStatus.FAILED, None, "added").hash_and_row(5, head.hash, {})
    added = (
        "INSERT INTO record (id, hash, intent, timestamp_us, result_status, result_error) VALUES"
    )
    forge(path, (f"{added} (5, ?, {of}, 5, 2, 'added')", (hashed,)))
    assert fault(path, Pin(head.hash, head.last)) == 5


@pytest.mark.parametrize(
    "statement",
    [
        "DROP TRIGGER record_stays",
        "CREATE TRIGGER odd BEFORE INSERT ON record BEGIN SELECT raise(IGNORE); END",
        "CREATE TRIGGER odd AFTER INSERT ON notes BEGIN DELETE FROM segment; END",
        "CREATE INDEX odd ON record (timestamp_us)",
        "CREATE INDEX odd ON word (text) WHERE id <> 1",
        "CREATE VIEW odd AS SELECT * FROM record",
        "DROP INDEX outcome",
        "CREATE TABLE words AS SELECT * FROM word; DROP TABLE word; ALTER TABLE words RENAME TO word",
    ],
)
def test_tables_that_are_not_as_they_were_made_are_found(tmp_path: Path, statement: str) -> None:
    path = tmp_path / "audit.db"
    written(path, [])
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE notes (id)")
        connection.execute("CREATE INDEX of_an_operator ON notes (id)")
        connection.execute("ANALYZE")
        connection.commit()
    assert fault(path) is None
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(statement)
    with (
        pytest.raises(InvalidTrail, match=r"not as Aegis makes it|is not of Aegis"),
        reading(path) as store,
    ):
        verify(store)


def test_record_before_the_first_is_found(tmp_path: Path) -> None:
    path = tmp_path / "audit.db"
    written(path, [RECORD])
    forge(path, "CREATE TEMP TABLE t AS SELECT * FROM record", "UPDATE t SET id = -1",
          "INSERT INTO record SELECT * FROM t")  # fmt: skip
    assert fault(path) == -1


TEXT = "rules: []"
DIGEST = sha256(TEXT.encode()).hexdigest()


def with_versions(path: Path) -> None:
    """A database of three policy versions and two records."""
    store = Store(path)
    history = PolicyHistory(store, Journal(store))
    history.add(DIGEST, "file", 1, TEXT)
    history.add(DIGEST, "put", 2, TEXT, key_name="ops", note="why")
    log = AuditLog(store, most_queued=10, timeout_s=30)
    asyncio.run(log.append([RECORD, RECORD]))
    history.add(DIGEST, "rollback", 3, TEXT)
    log.close()
    store.close()


CHANGES_OF_VERSIONS = [
    "UPDATE policy_version SET source = 'rules: [{name: a}]' WHERE version = 1",
    "UPDATE policy_version SET source = 'x', sha256 = "
    f"'{sha256(b'x').hexdigest()}' WHERE version = 1",
    "UPDATE policy_version SET sha256 = upper(sha256) WHERE version = 1",
    "UPDATE policy_version SET key_name = 'another' WHERE version = 2",
    "UPDATE policy_version SET key_name = NULL WHERE version = 2",
    "UPDATE policy_version SET note = 'another' WHERE version = 2",
    "UPDATE policy_version SET note = '' WHERE version = 1",
    "UPDATE policy_version SET origin = 'file' WHERE version = 2",
    "UPDATE policy_version SET created_us = 5 WHERE version = 3",
    "UPDATE policy_version SET version = 4 WHERE version = 3",
    "DELETE FROM policy_version WHERE version = 1",
    "DELETE FROM policy_version WHERE version = 3",
    "DELETE FROM policy_version",
    "INSERT INTO policy_version SELECT 4, sha256, origin, created_us, source, key_name, note"
    " FROM policy_version WHERE version = 3",
]


@pytest.mark.parametrize("is_archived", [False, True])
@pytest.mark.parametrize("change", CHANGES_OF_VERSIONS)
def test_policy_versions_are_those_that_the_chain_tells_of(
    tmp_path: Path, change: str, is_archived: bool
) -> None:
    path = tmp_path / "audit.db"
    with_versions(path)
    if is_archived:
        store = Store(path)
        archive(store, 2**62, tmp_path / "old.db")
        store.close()
        with reading(tmp_path / "old.db") as store:
            assert verify(store).is_archive
    assert fault(path) is None
    forge(path, change)
    with pytest.raises(InvalidTrail, match="policy version"), reading(path) as store:
        verify(store)


def test_entry_of_a_newer_kind_is_said_to_be_newer_and_its_hash_counts(tmp_path: Path) -> None:
    path = tmp_path / "audit.db"
    store = Store(path)
    log = AuditLog(store, most_queued=10, timeout_s=30)
    newer = PayloadEntry(7, "approval", {"id": "é", "votes": [1, None]})
    asyncio.run(log.append([RECORD, newer, RECORD]))
    log.close()
    store.end_log()
    store.close()
    text = exported(path)
    with reading(path) as store:
        assert verify(store).newer == {"approval": 1}
    assert verify_export(text.splitlines(keepends=True)).newer == {"approval": 1}
    assert is_whole(text)
    assert b'["approval",2,7,{"id":"\xc3\xa9","votes":[1,null]}]' in text
    assert len(rows(path)) == 2
    for change in ("kind = 'approvals'", "payload = '{}'", "timestamp_us = 8"):
        forge(path, f"UPDATE record SET {change} WHERE id = 2")
        assert fault(path) == 2


def test_first_record_is_number_1_and_the_first_policy_entry_0(tmp_path: Path) -> None:
    path = tmp_path / "audit.db"
    with_versions(path)
    assert [row["id"] for row in rows(path)] == [2, 3]
    with reading(path) as store:
        verified = verify(store)
        assert (verified.first, verified.last, verified.count) == (0, 4, 5)
        assert verify(store, pin=Pin(verified.hash, 4)).pinned == 4
        head = [line.split()[0] for line in exported_entries(store)]
        assert verify(store, pin=Pin(bytes.fromhex(head[1].decode()), 0)).pinned == 0
        with pytest.raises(InvalidTrail, match="not the pinned one"):
            verify(store, pin=Pin(bytes.fromhex(head[2].decode()), 0))
    assert verify_export(exported(path).splitlines(keepends=True)).count == 5
    forge(path, "DELETE FROM record WHERE id = 0")
    assert fault(path) == 1


# --- archives ------------------------------------------------------------------------------------


def with_archive(folder: Path) -> Path:
    """A database of which a part is in `old.db`."""
    path = folder / "audit.db"
    written(path, [RECORD] * 6)
    store = Store(path)
    archive(store, 2, folder / "old.db")
    store.end_log()
    store.close()
    return path


@pytest.mark.parametrize("size", [0, 100, 5000])
def test_archive_that_is_damaged_is_found_where_it_is_beside_the_database(
    tmp_path: Path, size: int
) -> None:
    path = with_archive(tmp_path)
    (tmp_path / "old.db").write_bytes(b"x" * size)
    with (
        pytest.raises(InvalidTrail, match=r"archive `old[.]db` is damaged"),
        reading(path) as store,
    ):
        verify(store)


def test_archive_that_was_made_anew_is_found_where_it_is_beside_the_database(
    tmp_path: Path,
) -> None:
    path = with_archive(tmp_path)
    with reading(path) as store:
        (said,) = verify(store).archives
    assert (said.file, said.last, said.is_here) == ("old.db", 6, True)
    (tmp_path / "old.db").unlink()
    with reading(path) as store:
        assert [one.is_here for one in verify(store).archives] == [False]
    written(tmp_path / "old.db", [replace(RECORD, action_target="another")] * 6)
    assert fault(tmp_path / "old.db") is None
    match = f"`old.db` ends with entry 6 and the hash .* not with entry 6 and {said.hash.hex()}"
    with pytest.raises(InvalidTrail, match=match), reading(path) as store:
        verify(store)


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE archive SET file = 'another.db'",
        "UPDATE archive SET hash = randomblob(32)",
        "UPDATE archive SET records = 5",
        "UPDATE archive SET archived_us = 5",
        "INSERT INTO archive VALUES (3, zeroblob(32), 3, 'o', 1)",
        "INSERT INTO archive SELECT 7, hash, 1, 'o', 1 FROM record WHERE id = 7;",
        "DELETE FROM archive",
    ],
)
def test_archives_are_those_that_the_chain_tells_of(tmp_path: Path, change: str) -> None:
    path = with_archive(tmp_path)
    forge(path, change)
    with pytest.raises(InvalidTrail), reading(path) as store:
        verify(store)


# --- the chain as text ---------------------------------------------------------------------------


def is_whole(text: bytes) -> bool:
    """What docs/audit-format.md gives to others: they need nothing of ours."""
    head, *entries = text.split(b"\n")[:-1]
    previous = bytes.fromhex(head.split()[3].decode())
    for entry in entries:
        hashed, _, canonical = entry.partition(b" ")
        previous = sha256(previous + canonical).digest()
        if previous.hex().encode() != hashed:
            return False
    return True


@FEW
@given(trails())
def test_exported_chain_can_be_verified_by_anybody(trail: list[Link]) -> None:
    with folder() as here:
        written(here / "audit.db", trail)
        text = exported(here / "audit.db")
    assert text.startswith(b"aegis-audit-chain 1 0 " + b"0" * 64 + b"\n")
    assert text.count(b"\n") == len(trail) + 1
    assert is_whole(text)
    assert verify_export(text.splitlines(keepends=True)).count == len(trail)


@settings(FEW, max_examples=FEW.max_examples // 3)
@given(trails(least=1, most=3), st.data())
def test_every_byte_of_an_exported_chain_counts(trail: list[Link], data: st.DataObject) -> None:
    with folder() as here:
        written(here / "audit.db", trail)
        text = exported(here / "audit.db")
    mask = data.draw(st.integers(1, 255))
    unnoticed = []
    for at in range(len(text)):
        changed = bytearray(text)
        changed[at] ^= mask
        with suppress(AegisError):
            verify_export(bytes(changed).splitlines(keepends=True))
            unnoticed.append(at)
    assert unnoticed == []


@FEW
@given(trails(least=1), st.data())
def test_changed_line_of_an_exported_chain_is_named(trail: list[Link], data: st.DataObject) -> None:
    number = data.draw(st.integers(1, len(trail)))
    with folder() as here:
        written(here / "audit.db", trail)
        lines = exported(here / "audit.db").splitlines(keepends=True)
    line = bytearray(lines[number])
    line[data.draw(st.integers(0, len(line) - 2))] ^= 1
    lines[number] = bytes(line)
    with pytest.raises(InvalidTrail) as refused:
        verify_export(lines)
    assert refused.value.number == number


@pytest.mark.parametrize("number", [0, -1, 1])
def test_export_that_only_says_that_it_goes_on_from_a_pinned_head_does_not_have_it(
    tmp_path: Path, number: int
) -> None:
    written(tmp_path / "audit.db", [RECORD] * 3)
    with reading(tmp_path / "audit.db") as store:
        head = verify(store)
    forged = [f"aegis-audit-chain 1 {number} {head.hash.hex()}\n".encode()]
    with pytest.raises(AegisError):
        verify_export(forged, pin=Pin(head.hash, head.last))


def test_pin_of_the_empty_chain_is_in_every_one(tmp_path: Path) -> None:
    written(tmp_path / "audit.db", [RECORD])
    for pin in (Pin(GENESIS, 0), Pin(GENESIS)):
        assert fault(tmp_path / "audit.db", pin) is None
        assert verify_export(exported(tmp_path / "audit.db").splitlines(True), pin=pin).pinned == 0
    assert fault(tmp_path / "audit.db", Pin(bytes(31) + b"x", 0)) == 0


# --- archives ------------------------------------------------------------------------------------


@FEW
@given(trails(most=12), st.lists(times, max_size=4))
def test_archives_and_the_rest_verify_and_hold_the_chain_together(
    trail: list[Link], moments: list[int]
) -> None:
    with folder() as here:
        path = here / "audit.db"
        written(path, trail)
        whole = exported(path).split(b"\n")[1:]
        store = Store(path)
        try:
            done = [
                archive(store, moment, here / f"{place}.db") for place, moment in enumerate(moments)
            ]
        finally:
            store.close()
        made = [here / f"{place}.db" for place, part in enumerate(done) if part.last >= part.first]
        parts = [exported(part).split(b"\n") for part in (*made, path)]
        previous = GENESIS
        for file in (*made, path):
            assert fault(file) is None
            with reading(file) as store:
                head = next(iter(exported_entries(store))).split()
                assert head[3].decode() == previous.hex()
                previous = verify(store).hash
    entries = [line for part in parts for line in part[1:] if line]
    made_here = [line for line in entries if b' ["archive",' in line]
    assert [line for line in entries if line not in made_here] == whole[:-1]
    assert entries[len(whole) - 1 :] == made_here
    assert len(made_here) == len(made)
    for part in done:
        # No action is torn from its outcome, and what had not ended stays.
        for number, entry in enumerate(trail, 1):
            if isinstance(entry, Outcome):
                assert (number <= part.last) == (entry.record <= part.last)


@FEW
@given(trails(least=1, most=12), times)
def test_records_of_an_archive_and_the_rest_are_all_records(trail: list[Link], moment: int) -> None:
    with folder() as here:
        path = here / "audit.db"
        written(path, trail)
        before = rows(path)
        store = Store(path)
        try:
            done = archive(store, moment, here / "old.db")
        finally:
            store.close()
        old = rows(here / "old.db") if done.last >= done.first else []
        assert old + rows(path) == before


@FEW
@given(trails(most=12), times)
def test_chain_goes_on_after_an_archive(trail: list[Link], moment: int) -> None:
    with folder() as here:
        path = here / "audit.db"
        written(path, trail)
        store = Store(path)
        try:
            archive(store, moment, here / "old.db")
        finally:
            store.close()
        before = exported(path)
        written(path, [RECORD])
        assert exported(path).startswith(before)
        assert rows(path)[-1]["action_target"] == RECORD.action_target
        assert fault(path) is None
