"""Verification judges what is read: where any answer differs, whatever was changed, it says so."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aegis.audit import AuditFilter, AuditLog, AuditReader, Outcome, ResultStatus
from aegis.audit.archive import archive
from aegis.audit.export import exported_entries
from aegis.audit.index import SEGMENT, sealed_to
from aegis.audit.journal import Journal
from aegis.audit.verify import Pin, verify
from aegis.errors import AegisError
from aegis.policy.history import PolicyHistory
from aegis.store.database import Store
from aegis.timestamps import now_us
from aegis_core import RiskLevel
from tests.property.test_chain import RECORD, folder

PATIENCE_S = 20.0
QUICK = settings(max_examples=settings().max_examples // 4, suppress_health_check=[*HealthCheck])

FILTERS = [
    AuditFilter(),
    AuditFilter(since_seq=0),
    AuditFilter(limit=3),
    *(AuditFilter(session_id=session) for session in ("s0", "s1")),
    *(AuditFilter(action_type=kind) for kind in ("read", "write")),
    *(AuditFilter(agent_id=agent) for agent in ("a0", "a1", "a2")),
    *(AuditFilter(matched_rule=rule) for rule in ("reads", "r1")),
    *(AuditFilter(result_status=status) for status in ResultStatus),
    *(AuditFilter(risk_level=level) for level in RiskLevel),
    AuditFilter(action_type="write", agent_id="a1"),
]


def filled(path: Path, *, actions: int, is_archived: bool) -> None:
    """A database of actions of many kinds, policy versions, requests, and maybe an archive."""
    store = Store(path)
    history = PolicyHistory(store, Journal(store))
    log = AuditLog(store, most_queued=100_000, timeout_s=30)
    history.add(sha256(b"a: 1").hexdigest(), "file", 1, "a: 1")

    async def fill(count: int) -> None:
        for start in range(0, count, 500):
            records = [
                replace(
                    RECORD,
                    timestamp_us=1_000_000 + number,
                    session_id=f"s{number % 2}",
                    action_type="write" if number % 3 else "read",
                    action_target=f"target {number}",
                    agent_id=f"a{number % 5}" if number % 5 < 3 else None,
                    matched_rule="r1" if number % 7 == 0 else "reads",
                    risk_level=RiskLevel(number % 4 + 1),
                    result_status=ResultStatus.STARTED if number % 4 == 0 else ResultStatus.SUCCESS,
                )
                for number in range(start, min(start + 500, count))
            ]
            done = await log.append(records)
            outcomes = [
                Outcome(2_000_000, number, ResultStatus.FAILED, '{"x":1}', "e")
                for number, record in enumerate(records, getattr(done, "first", 0))
                if record.result_status is ResultStatus.STARTED
            ]
            await log.append(outcomes)

    try:
        asyncio.run(fill(actions if not is_archived else 6))
        if is_archived:
            archive(store, now_us(), path.parent / "old.db")
            asyncio.run(fill(actions))
        history.add(sha256(b"b: 2").hexdigest(), "put", 5, "b: 2", key_name="ops", note="why")
        deadline = monotonic() + PATIENCE_S
        while actions > 2 * SEGMENT and not sealed(store):
            assert monotonic() < deadline
            sleep(0.01)
    finally:
        log.close()
        store.end_log()
        store.close()


def sealed(store: Store) -> bool:
    with store.reading() as connection:
        return sealed_to(connection) > 0


@contextmanager
def reading(path: Path) -> Iterator[Store]:
    store = Store(path, read_only=True)
    try:
        yield store
    finally:
        store.close()


def answers(path: Path) -> Any:
    """What is read of a database: records by every filter, counts, chain, policy versions."""
    with reading(path) as store:
        reader = AuditReader(store)
        history = PolicyHistory(store, Journal(store))
        try:
            return (
                [[row for page in reader.read(wanted) for row in page] for wanted in FILTERS],
                reader.read_stats(),
                reader.read_head(),
                b"".join(exported_entries(store)),
                [(one, history.source(one.version)) for one in history.page()],
            )
        finally:
            reader.close()


class Made:
    """A database, what it answers, and its head."""

    def __init__(self, path: Path) -> None:
        self.content = path.read_bytes()
        self.answers = answers(path)
        with reading(path) as store:
            found = verify(store)
        self.pin = Pin(found.hash, found.last)


@pytest.fixture(scope="module", params=[False, True], ids=["whole", "archived"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    path = tmp_path_factory.mktemp("made") / "audit.db"
    filled(path, actions=24, is_archived=request.param)
    return Made(path)


@pytest.fixture(scope="module")
def indexed(tmp_path_factory: pytest.TempPathFactory) -> Made:
    path = tmp_path_factory.mktemp("indexed") / "audit.db"
    filled(path, actions=2 * SEGMENT + 500, is_archived=False)
    return Made(path)


def is_told(made: Made, path: Path) -> bool:
    """Whether verification says that the database was changed, or nothing that is read has."""
    with suppress(AegisError):
        with reading(path) as store:
            verify(store, pin=made.pin)
        return bool(answers(path) == made.answers)
    return True


@contextmanager
def forging(path: Path) -> Iterator[sqlite3.Connection]:
    """Change a database as someone does who knows SQLite, and leave its schema as it was."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        schema = connection.execute("SELECT type, name, sql FROM sqlite_schema").fetchall()
        for kind, name, _ in schema:
            if kind == "trigger":
                connection.execute(f"DROP TRIGGER {name}")
        connection.execute("PRAGMA ignore_check_constraints = ON")
        connection.execute("PRAGMA writable_schema = ON")
        yield connection
        for kind, name, sql in schema:
            if kind == "trigger":
                connection.execute(sql)
            elif sql is not None:
                connection.execute("UPDATE sqlite_schema SET sql = ? WHERE name = ?", (sql, name))


@QUICK
@given(st.data())
def test_any_byte_of_a_file(made: Made, data: st.DataObject) -> None:
    with folder() as here:
        content = bytearray(made.content)
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] ^= data.draw(st.integers(1, 255))
        (here / "audit.db").write_bytes(content)
        assert is_told(made, here / "audit.db")


TABLES = ("record", "word", "policy_version", "archive", "segment", "posting", "request_record")
VALUES: st.SearchStrategy[Any] = st.one_of(
    st.integers(-3, 40),
    st.sampled_from(["", "s1", "read", "another"]),
    st.none(),
    st.binary(max_size=3),
)


def changed_row(path: Path, data: st.DataObject) -> None:
    """Change, remove or copy a row of a table."""
    with forging(path) as connection:
        table = data.draw(st.sampled_from(TABLES))
        columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
        key = "segment, kind, word" if table == "posting" else "rowid"
        keys = "request, position" if table == "request_record" else key
        found = connection.execute(f"SELECT {keys} FROM {table}").fetchall()
        if not found:
            return
        row = data.draw(st.sampled_from(found))
        where = " AND ".join(f"{name} = ?" for name in keys.split(", "))
        column = data.draw(st.sampled_from(columns))
        with suppress(sqlite3.Error):
            match data.draw(st.sampled_from(["change", "remove", "copy", "exchange"])):
                case "change":
                    value = data.draw(VALUES)
                    sql = f"UPDATE {table} SET {column} = ? WHERE {where}"
                    connection.execute(sql, (value, *row))
                case "remove":
                    connection.execute(f"DELETE FROM {table} WHERE {where}", row)
                case "copy":
                    new = [
                        str(data.draw(st.integers(0, 50))) if name in keys or name == "id" else name
                        for name in columns
                    ]
                    connection.execute(
                        f"INSERT INTO {table} SELECT {', '.join(new)} FROM {table} WHERE {where}",
                        row,
                    )
                case _:
                    other = data.draw(st.sampled_from(found))
                    value = connection.execute(
                        f"SELECT {column} FROM {table} WHERE {where}", other
                    ).fetchone()[0]
                    connection.execute(
                        f"UPDATE {table} SET {column} = ? WHERE {where}", (value, *row)
                    )


@QUICK
@given(st.data())
def test_any_row_of_a_table(made: Made, data: st.DataObject) -> None:
    with folder() as here:
        path = here / "audit.db"
        path.write_bytes(made.content)
        changed_row(path, data)
        assert is_told(made, path)


@settings(QUICK, max_examples=settings().max_examples // 25)
@given(st.data())
def test_any_row_of_a_database_with_an_index(indexed: Made, data: st.DataObject) -> None:
    with folder() as here:
        path = here / "audit.db"
        path.write_bytes(indexed.content)
        changed_row(path, data)
        assert is_told(indexed, path)


INDEXES = {
    "outcome": "CREATE UNIQUE INDEX outcome ON record ({}) WHERE intent IS NOT NULL AND {}",
    "entry_kind": "CREATE INDEX entry_kind ON record ({}) WHERE kind IS NOT NULL AND {}",
    "foreign_one": "CREATE INDEX foreign_one ON record ({}) WHERE {}",
    "foreign_word": "CREATE INDEX foreign_word ON word ({}) WHERE {}",
}


@QUICK
@given(st.data())
def test_any_entry_of_an_index(made: Made, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(INDEXES)))
    what = {"outcome": "intent", "entry_kind": "kind", "foreign_word": "text"}.get(name)
    what = what or data.draw(st.sampled_from(["operation", "timestamp_us", "kind", "intent"]))
    content = data.draw(st.sampled_from([what, f"+{what}", f"ifnull({what} + 1, 5)", "-id"]))
    missing = data.draw(st.integers(0, 30))
    with folder() as here:
        path = here / "audit.db"
        path.write_bytes(made.content)
        with forging(path) as connection, suppress(sqlite3.Error):
            connection.execute(f"DROP INDEX IF EXISTS {name}")
            connection.execute(INDEXES[name].format(content, f"id <> {missing}"))
            text = INDEXES[name].format(what, "").removesuffix(" AND ").removesuffix(" WHERE ")
            connection.execute("UPDATE sqlite_schema SET sql = ? WHERE name = ?", (text, name))
        assert is_told(made, path)


@QUICK
@given(st.data())
def test_any_text_of_the_schema(made: Made, data: st.DataObject) -> None:
    with folder() as here:
        path = here / "audit.db"
        path.write_bytes(made.content)
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            schema = connection.execute(
                "SELECT rowid, type, name, sql FROM sqlite_schema WHERE sql IS NOT NULL"
                " AND name <> 'log_number'"
            ).fetchall()
            row, *_, sql = data.draw(st.sampled_from(schema))
            words = sql.split(" ")
            one = data.draw(st.integers(0, len(words) - 1))
            other = data.draw(st.integers(0, len(words) - 1))
            if data.draw(st.booleans()):
                words[one], words[other] = words[other], words[one]
            else:
                words[one : one + 1] = []
            connection.execute("PRAGMA writable_schema = ON")
            connection.execute(
                "UPDATE sqlite_schema SET sql = ? WHERE rowid = ?", (" ".join(words), row)
            )
        assert is_told(made, path)
