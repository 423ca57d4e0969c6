"""The database file: whose it is, how it is written, and the versions of the policy in it."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from hashlib import sha256
from pathlib import Path

import pytest

from aegis.audit import AuditLog
from aegis.audit.journal import Journal
from aegis.audit.verify import verify
from aegis.errors import StoreError
from aegis.policy.history import PolicyHistory, PolicyVersion
from aegis.store.database import Store
from aegis.store.schema import APPLICATION_ID, MIGRATIONS


@contextmanager
def opened(path: Path | str) -> Iterator[Store]:
    """An open store, closed in the end."""
    store = Store(path)
    try:
        yield store
    finally:
        store.close()


def run_sql(path: Path, *statements: str) -> None:
    """What another program does to a file."""
    with closing(sqlite3.connect(path)) as connection, connection:
        for statement in statements:
            connection.execute(statement)


def words(store: Store) -> list[str]:
    """The words that are stored."""
    with store.reading() as connection:
        rows = connection.execute("SELECT text FROM word ORDER BY id").fetchall()
    return [str(row[0]) for row in rows]


def add_word(store: Store, text: str) -> None:
    with store.transaction() as connection:
        connection.execute("INSERT INTO word (text) VALUES (?)", (text,))


# --- opening -------------------------------------------------------------------------------------


def test_file_is_made_where_there_is_none(tmp_path: Path) -> None:
    path = tmp_path / "audit.db"
    with opened(path) as store:
        assert words(store) == []
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA application_id").fetchone() == (APPLICATION_ID,)
        assert connection.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_what_was_stored_is_there_when_it_is_opened_again(tmp_path: Path) -> None:
    with opened(tmp_path / "audit.db") as store:
        add_word(store, "a")
    with opened(str(tmp_path / "audit.db")) as store:
        assert words(store) == ["a"]


@pytest.mark.parametrize(
    "name", ["a b.db", "a%20b.db", "a?mode=ro.db", "a#b.db", "ä.db", "'a\".db"]
)
def test_any_name_is_the_name_of_the_file(name: str, tmp_path: Path) -> None:
    with opened(tmp_path / name) as store:
        add_word(store, "a")
    assert (tmp_path / name).is_file()


def test_empty_file_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "audit.db"
    path.touch()
    with opened(path) as store:
        add_word(store, "a")
    assert path.read_bytes()[68:72] == APPLICATION_ID.to_bytes(4, "big")


@pytest.mark.parametrize("content", [b"no", b"x" * 5_000, b"SQLite format 3\x00" + b"\xff" * 5_000])
def test_file_that_is_no_database_is_refused_and_left_as_it_is(
    content: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "audit.db"
    path.write_bytes(content)
    with pytest.raises(StoreError, match="cannot open"):
        Store(path)
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("statement", "whose"),
    [
        ("CREATE TABLE notes (id INTEGER)", "another program"),
        ("CREATE TABLE audit_log (id INTEGER)", "agent-aegis"),
        ("PRAGMA application_id = 5", "another program"),
        ("CREATE TABLE record (id INTEGER)", "another program"),
    ],
)
def test_database_of_another_program_is_refused_and_left_as_it_is(
    statement: str, whose: str, tmp_path: Path
) -> None:
    path = tmp_path / "audit.db"
    run_sql(path, statement)
    content = path.read_bytes()
    with pytest.raises(StoreError, match=f"a database of {whose}"):
        Store(path)
    assert path.read_bytes() == content


def test_database_of_a_newer_release_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "audit.db"
    with opened(path) as store:
        add_word(store, "a")
    run_sql(path, f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    with pytest.raises(StoreError, match=r"newer Aegis .* upgrade this one"):
        Store(path)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT text FROM word").fetchall() == [("a",)]


def test_database_of_an_older_release_is_taken_over_with_its_rows(tmp_path: Path) -> None:
    path = tmp_path / "audit.db"
    digest = sha256(b"rules: []").hexdigest()
    run_sql(path, *statements_of(MIGRATIONS[0]), "PRAGMA user_version = 1")
    run_sql(
        path,
        f"PRAGMA application_id = {APPLICATION_ID}",
        "INSERT INTO word VALUES (1, 'w')",
        "INSERT INTO record (timestamp_us, session, action_type, action_target, action_params,"
        " risk_level, approval, matched_rule, result_status, chain_depth, policy_version)"
        " VALUES (1, 1, 1, 't', '{}', 1, 1, 1, 1, 0, 1)",
        f"INSERT INTO policy_version VALUES (1, '{digest}', 'file', 7, 'rules: []')",
    )
    with opened(path) as store:
        history = PolicyHistory(store, Journal(store))
        assert history.newest() == PolicyVersion(1, digest, "file", 7, None, None)
        assert history.source(1) == "rules: []"
        log = AuditLog(store, most_queued=1, timeout_s=1)
        log.close()
        assert verify(store).count == 2
        with store.reading() as connection:
            rows = connection.execute(
                "SELECT action_target, key_name, kind FROM record ORDER BY id"
            ).fetchall()
        assert rows == [("t", None, None), (None, None, "policy")]
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)


def statements_of(script: str) -> list[str]:
    """The statements of a script; a trigger is one."""
    statements, start = [], 0
    for end in (index + 1 for index, letter in enumerate(script) if letter == ";"):
        if sqlite3.complete_statement(script[start:end]):
            statements.append(script[start:end])
            start = end
    return statements


@pytest.mark.parametrize("name", ["missing/audit.db", "."])
def test_place_where_no_file_can_be_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot open"):
        Store(tmp_path / name)


def test_databases_in_memory_are_apart() -> None:
    with opened(":memory:") as one, opened(":memory:") as other:
        add_word(one, "a")
        assert (words(one), words(other)) == (["a"], [])


def test_database_in_memory_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with opened(":memory:") as store:
        add_word(store, "a")
    assert list(tmp_path.iterdir()) == []


def test_store_may_be_closed_twice(tmp_path: Path) -> None:
    store = Store(tmp_path / "audit.db")
    store.close()
    store.close()
    with opened(tmp_path / "audit.db") as again:
        add_word(again, "a")
        assert again.is_in_place()


# --- writing -------------------------------------------------------------------------------------


@pytest.fixture(params=["file", ":memory:"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    with opened(":memory:" if request.param == ":memory:" else tmp_path / "audit.db") as store:
        yield store


def add_word_and_fail(store: Store) -> None:
    with store.transaction() as connection:
        connection.execute("INSERT INTO word (text) VALUES ('a')")
        raise RuntimeError("in the middle")


def test_transaction_that_fails_leaves_nothing(store: Store) -> None:
    with pytest.raises(RuntimeError, match="in the middle"):
        add_word_and_fail(store)
    assert words(store) == []
    add_word(store, "b")
    assert words(store) == ["b"]


def test_statement_that_fails_is_a_store_error_and_leaves_nothing(store: Store) -> None:
    add_word(store, "a")
    with pytest.raises(StoreError, match="UNIQUE"), store.transaction() as connection:
        connection.execute("INSERT INTO word (text) VALUES ('b'), ('c'), ('a')")
    assert words(store) == ["a"]


def test_rows_that_can_never_be_stored_are_told_apart(store: Store) -> None:
    add_word(store, "a")
    with pytest.raises(StoreError) as refused:
        add_word(store, "a")
    assert refused.value.is_permanent


def test_reader_neither_waits_for_the_writer_nor_sees_what_is_not_committed(
    tmp_path: Path,
) -> None:
    with opened(tmp_path / "audit.db") as store:
        with store.transaction() as connection:
            connection.execute("INSERT INTO word (text) VALUES ('a')")
            assert words(store) == []
        assert words(store) == ["a"]


@pytest.mark.parametrize("table", ["record", "word", "policy_version"])
@pytest.mark.parametrize("change", ["UPDATE {} SET rowid = rowid + 1", "DELETE FROM {}"])
def test_rows_are_only_ever_added(store: Store, table: str, change: str) -> None:
    PolicyHistory(store, Journal(store)).add("sha", "file", 1, "rules: []")
    add_word(store, "a")
    with store.transaction() as connection:
        connection.execute(
            "INSERT INTO record (hash, operation, timestamp_us, session, action_type, action_target,"
            " action_params, risk_level, approval, matched_rule, result_status, chain_depth,"
            " policy_version) VALUES (zeroblob(32), 1, 1, 1, 1, 't', '{}', 1, 1, 1, 1, 0, 1)"
        )
    with pytest.raises(StoreError, match="never"), store.transaction() as connection:
        connection.execute(change.format(table))
    with store.reading() as connection:
        count = connection.execute(f"SELECT count(*) FROM {table}").get
    assert count == (2 if table == "record" else 1)  # the version has an entry


def test_writers_of_many_threads_take_turns(store: Store) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: add_word(store, f"{number}"), range(100)))
    assert sorted(words(store), key=int) == [f"{number}" for number in range(100)]


def test_readers_of_many_threads_get_whole_answers(store: Store) -> None:
    for number in range(50):
        add_word(store, f"{number}")
    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(lambda _: words(store), range(100)):
            assert len(found) == 50


def test_log_that_has_grown_large_begins_anew_once_nobody_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aegis.store.database.MAX_LOG_BYTES", 10_000)
    monkeypatch.setattr("aegis.store.database.BUSY_TIMEOUT_MS", 20)
    log = tmp_path / "audit.db-wal"
    with opened(tmp_path / "audit.db") as store:
        with store.reading() as reader, reader:
            reader.execute("SELECT count(*) FROM word").fetchall()
            for number in range(10):
                add_word(store, f"{number}")
            with pytest.raises(StoreError):
                store.bound_log()
            assert log.stat().st_size > 10_000
        store.bound_log()
        assert log.stat().st_size < 10_000
        assert len(words(store)) == 10


# --- two stores over one file --------------------------------------------------------------------


def test_stores_over_one_file_see_each_others_rows(tmp_path: Path) -> None:
    with opened(tmp_path / "audit.db") as one, opened(tmp_path / "audit.db") as other:
        add_word(one, "a")
        add_word(other, "b")
        assert words(one) == words(other) == ["a", "b"]


def test_stores_over_one_file_take_turns(tmp_path: Path) -> None:
    with opened(tmp_path / "audit.db") as one, opened(tmp_path / "audit.db") as other:
        with ThreadPoolExecutor(4) as pool:
            for number in range(40):
                pool.submit(add_word, one, f"one {number}")
                pool.submit(add_word, other, f"other {number}")
        assert len(words(one)) == 80


def test_writer_waits_for_the_turn_of_another_store(tmp_path: Path) -> None:
    with opened(tmp_path / "audit.db") as one, opened(tmp_path / "audit.db") as other:
        with one.transaction():
            thread = threading.Thread(target=add_word, args=(other, "late"))
            thread.start()
            assert words(one) == []
        thread.join(10)
        assert words(one) == ["late"]


def test_file_that_was_replaced_is_not_written_any_more(tmp_path: Path) -> None:
    path = tmp_path / "audit.db"
    with opened(path) as store:
        add_word(store, "a")
        path.rename(tmp_path / "moved.db")
        with pytest.raises(StoreError):
            add_word(store, "b")
        path.touch()
        with pytest.raises(StoreError, match="was replaced or removed"):
            add_word(store, "c")


def test_store_by_another_name_of_its_file_is_the_same(tmp_path: Path) -> None:
    (tmp_path / "link.db").symlink_to("store.db")
    one, other = Store(tmp_path / "store.db"), Store(tmp_path / "link.db")
    try:
        assert one.hold(1)
        assert other.is_held(1)
        assert sorted(path.name for path in tmp_path.glob("*.lock")) == ["store.db.lock"]
    finally:
        one.close()
        other.close()
