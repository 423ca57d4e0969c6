"""Whatever stands in another program's file: what is imported is a whole chain that can be read."""

from __future__ import annotations

import json
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aegis.audit import AuditFilter, AuditReader
from aegis.audit.agent_aegis import Imported, import_agent_aegis
from aegis.audit.verify import verify
from aegis.store.database import Store

GOOD: dict[str, object] = {
    "session_id": "s",
    "timestamp": "2025-01-31T18:00:00.5+00:00",
    "action_type": "read",
    "action_target": "crm",
    "action_params": '{"token": "x", "n": [1, 2.5]}',
    "action_desc": None,
    "risk_level": "LOW",
    "approval": "auto",
    "matched_rule": "reads",
    "human_decision": None,
    "result_status": "success",
    "result_data": None,
    "result_error": None,
    "agent_id": None,
    "parent_agent_id": None,
    "chain_id": None,
    "chain_depth": 0,
}
BAD_TEXT = b"caf\xe9\x00\xff"
DEEP = "[" * 400 + '{"token": "x"}' + "]" * 400
ANYTHING = st.one_of(
    st.none(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.binary(max_size=20),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    st.sampled_from(
        [
            *("", "\0", "a\0b", "NaN", "1e999", '"\\ud800"', "{", DEEP),
            *("9999-12-31T23:59:59-12:00", "0001-01-01T00:00:00+14:00", "2025-01-31", "1738346400"),
            *("low", "AUTO", "SUCCESS", "started", "3", "3.0", 2.0, 1e300, float("inf")),
        ]
    ),
    st.just(BAD_TEXT).map(lambda data: ("text", data)),
)
ROWS = st.lists(
    st.fixed_dictionaries({}, optional=dict.fromkeys(GOOD, ANYTHING)).map(lambda odd: GOOD | odd),
    max_size=4,
)


def imported(
    rows: list[dict[str, object]], folder: Path, encoding: str = "UTF-8"
) -> tuple[Imported, list[dict[str, object]]]:
    """What an import of rows gives, and the records as they are read after it."""
    path = folder / "theirs.db"
    with closing(sqlite3.connect(path)) as theirs, theirs:
        theirs.execute(f"PRAGMA encoding = '{encoding}'")
        theirs.execute(f"CREATE TABLE audit_log ({', '.join(GOOD)})")  # any value in any column
        for row in rows:
            marks = ["CAST(? AS TEXT)" if type(value) is tuple else "?" for value in row.values()]
            values = [value[1] if type(value) is tuple else value for value in row.values()]
            theirs.execute(f"INSERT INTO audit_log VALUES ({', '.join(marks)})", values)
    store = Store(folder / "ours.db")
    reader = AuditReader(store)
    try:
        done = import_agent_aegis(store, str(path))
        assert verify(store).count == done.count
        records = [record for page in reader.read(AuditFilter()) for record in page]
        json.dumps(records, ensure_ascii=False).encode()
        return done, records
    finally:
        reader.close()
        store.close()


@given(ROWS, st.sampled_from(["UTF-8", "UTF-16le", "UTF-16be"]))
@settings(deadline=None)
def test_whatever_is_imported_is_a_whole_chain_that_can_be_read(
    rows: list[dict[str, object]], encoding: str
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        done, records = imported(rows, Path(folder), encoding)
    assert len(records) == done.count == len(rows) - done.left_out
    assert len(done.problems) == done.left_out
    assert [problem for problem in done.problems if not problem.isprintable()] == []


@pytest.mark.parametrize(
    ("odd", "member", "value"),
    [
        ({"action_target": 1.5}, "action_target", "1.5"),
        ({"session_id": 7}, "session_id", "7"),
        ({"action_target": None}, "action_target", ""),
        ({"action_target": "a\0b"}, "action_target", "a\0b"),
        ({"timestamp": "2025-01-31T18:00:00"}, "timestamp", "2025-01-31T18:00:00.000000+00:00"),
        ({"chain_depth": "3"}, "chain_depth", 3),
        ({"chain_depth": 3.0}, "chain_depth", 3),
        ({"risk_level": "low"}, "risk_level", "LOW"),
        ({"result_status": ""}, "result_status", "interrupted"),
        ({"action_params": "{"}, "action_params", '"{"'),
        ({}, "action_params", '{"token":"[REDACTED]","n":[1,2.5]}'),
    ],
)
def test_what_says_the_same_is_converted(
    tmp_path: Path, odd: dict[str, object], member: str, value: object
) -> None:
    _, records = imported([GOOD | odd], tmp_path)
    assert [record[member] for record in records] == [value]


@pytest.mark.parametrize(
    ("odd", "problem"),
    [
        ({"action_target": b"crm"}, "`action_target` must be text, not bytes"),
        ({"action_target": ("text", BAD_TEXT)}, "`action_target` is not Unicode"),
        ({"session_id": None}, "`session_id` is missing"),
        ({"action_type": ""}, "`action_type` is missing"),
        ({"timestamp": 1738346400}, "`timestamp` must be a time"),
        ({"timestamp": "9999-12-31T23:59:59-12:00"}, "`timestamp` must be a time"),
        ({"timestamp": "0001-01-01T00:00:00+14:00"}, "`timestamp` must be a time"),
        ({"risk_level": "3"}, "`risk_level` `3` does not exist"),
        ({"approval": "perhaps"}, "`approval` `perhaps` does not exist"),
        ({"result_status": "done"}, "`result_status` `done` does not exist"),
        ({"chain_depth": 1.5}, "`chain_depth` must be an integer"),
        ({"chain_depth": 1e300}, "`chain_depth` must be an integer"),
        ({"chain_depth": "9223372036854775808"}, "`chain_depth` must be an integer"),
        ({"action_params": DEEP}, "`action_params` is nested too deeply"),
        ({"result_data": DEEP}, "`result_data` is nested too deeply"),
    ],
)
def test_what_cannot_be_a_record_is_left_out_and_told_by_its_row(
    tmp_path: Path, odd: dict[str, object], problem: str
) -> None:
    done, records = imported([GOOD, GOOD | odd, GOOD], tmp_path)
    assert (done.count, done.left_out, len(records)) == (2, 1, 2)
    assert done.problems[0].startswith(f"row 2: {problem}")
