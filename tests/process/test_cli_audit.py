"""`aegis audit …`, by real processes: what it prints, what it makes, and its exit codes."""

from __future__ import annotations

import csv
import io
import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from tests.process.server import COMMAND, Ended, Program, Server, end_of, until

DATABASE = "aegis_audit.db"
EXECUTE = "/api/v1/execute"
TYPES = ["read", "delete", "write", "read", "read\n"]
MEMBERS = 28


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A database of five records, as it is in one file."""
    folder = tmp_path_factory.mktemp("made")
    with Server(folder) as server:
        batch = [{"type": kind, "target": str(n)} for n, kind in enumerate(TYPES, 1)]
        assert server.ask("POST", EXECUTE, batch).status == 200
        assert server.stop() == 0
    return (folder / DATABASE).read_bytes()


@pytest.fixture
def folder(tmp_path: Path, made: bytes) -> Path:
    (tmp_path / DATABASE).write_bytes(made)
    return tmp_path


def audit(folder: Path, *arguments: str) -> Ended:
    return end_of(folder, "audit", *arguments)


def lines(ended: Ended) -> list[dict[str, Any]]:
    assert ended.code == 0, ended.stderr
    return [json.loads(line) for line in ended.stdout.splitlines()]


def hash_of_newest(records: list[dict[str, Any]]) -> str:
    return str(records[-1]["hash"])


def forge(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("DROP TRIGGER record_stays")
        connection.execute("DROP TRIGGER record_is_kept")
        connection.execute(statement)


def said(ended: Ended) -> str:
    """The one line by which a command ends that cannot do what it should."""
    assert "Traceback" not in ended.stderr
    return ended.stderr.splitlines()[-1]


# --- reading -------------------------------------------------------------------------------------


def test_list_is_a_table_of_one_line_a_record(folder: Path) -> None:
    ended = audit(folder, "list")
    head, *rows = ended.stdout.splitlines()
    assert head.split()[:3] == ["ID", "TIME", "RESULT"]
    assert [row.split()[0] for row in rows] == ["1", "2", "3", "4", "5"]
    assert "blocked" in rows[1]


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ((), "12345"),
        (("--limit", "2"), "45"),
        (("--result-status", "blocked"), "2"),
        (("--action-type", "read"), "14"),
        (("--risk-level", "high"), "3"),
        (("--after", "1", "--before", "4"), "23"),
        (("--matched-rule", "reads", "--limit", "1"), "5"),
        (("--agent-id", "nobody"), ""),
    ],
)
def test_list_and_tail_take_the_filters(folder: Path, options: tuple[str, ...], found: str) -> None:
    for command in ("list", "tail"):
        given = [
            option.replace("--limit", "-n") if command == "tail" else option for option in options
        ]
        records = [] if not found else lines(audit(folder, command, "--format", "jsonl", *given))
        assert "".join(record["action_target"] for record in records) == found


def test_tail_goes_on_with_what_comes(folder: Path) -> None:
    command = (*COMMAND, "audit", "tail", "-f", "-n", "1", "--format", "jsonl")
    with Server(folder) as server, Program(command, folder) as tail:
        until(lambda: tail.stdout.count("\n") == 1, "it shows the newest record")
        for number in range(3):
            server.ask("POST", EXECUTE, {"type": "delete", "target": f"new {number}"})
        until(lambda: tail.stdout.count("\n") == 4, "it shows what comes")
        shown = [json.loads(line)["action_target"] for line in tail.stdout.splitlines()]
    assert shown == ["5", "new 0", "new 1", "new 2"]


def test_export_is_all_records_as_lines_or_csv(folder: Path) -> None:
    records = lines(audit(folder, "export"))
    table = audit(folder, "export", "--format", "csv").stdout
    rows = list(csv.DictReader(io.StringIO(table)))
    assert [record["action_type"] for record in records] == TYPES
    assert [row["action_type"] for row in rows] == TYPES
    assert {len(row) for row in rows} == {MEMBERS}
    assert audit(folder, "export", "--format", "csv", "--to", "all.csv").code == 0
    assert (folder / "all.csv").read_bytes() == table.encode()


def test_exported_chain_verifies_and_a_changed_one_does_not(folder: Path) -> None:
    assert audit(folder, "export", "--format", "chain", "--to", "chain").code == 0
    assert audit(folder, "verify", "chain").stdout.startswith(
        "ok: entries 0 to 5; the newest hash is "
    )
    text = (folder / "chain").read_text()
    (folder / "chain").write_text(text.replace('"delete"', '"read"'))
    ended = audit(folder, "verify", "chain")
    assert (ended.code, "entry 2 was changed" in said(ended)) == (1, True)


def test_stats_count_the_records(folder: Path) -> None:
    found = json.loads(audit(folder, "stats", "--format", "json").stdout)
    assert (found["records"], found["entries"], found["archived_entries"]) == (5, 6, 0)
    assert found["result_statuses"] == {"success": 4, "blocked": 1}
    assert "result statuses:\n" in audit(folder, "stats").stdout


# --- verifying -----------------------------------------------------------------------------------


def test_untouched_database_is_ok_also_against_its_head(folder: Path) -> None:
    head = json.loads(audit(folder, "head").stdout)
    (folder / "head.json").write_text(json.dumps(head))
    assert (head["id"], head["count"]) == (5, 5)
    for options in ((), ("--head", head["hash"]), ("--head", "head.json"), ("--from", "3")):
        ended = audit(folder, "verify", DATABASE, *options)
        assert ended.code == 0, ended.stderr
        assert ended.stdout.startswith("ok: entries ")
        assert ("with the pinned head" in ended.stdout) == ("--head" in options)
        assert head["hash"] in ended.stdout


@pytest.mark.parametrize(
    ("statement", "link"),
    [
        ("UPDATE record SET action_target = 'x' WHERE id = 4", "entry 4 was changed"),
        ("DELETE FROM record WHERE id = 3", "entry 3 is missing"),
        ("DELETE FROM record WHERE id > 3", "entry 4 is missing"),
    ],
)
def test_damage_is_exit_code_1_and_names_the_link(folder: Path, statement: str, link: str) -> None:
    head = json.loads(audit(folder, "head").stdout)
    forge(folder / DATABASE, statement)
    ended = audit(folder, "verify", DATABASE, "--head", head["hash"])
    assert (ended.code, ended.stdout) == (1, "")
    assert link in said(ended)


def test_signed_head_is_checked_against_the_public_key(folder: Path) -> None:
    keys = {name: Ed25519PrivateKey.generate() for name in ("ours", "other")}
    for name, key in keys.items():
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        (folder / f"{name}.key").write_bytes(private)
        (folder / f"{name}.pub").write_bytes(public)
    with Server(folder, "--audit-signing-key", "ours.key") as server:
        head = server.ask("GET", "/api/v1/audit/head").json()
        assert server.stop() == 0
    (folder / "head.json").write_text(json.dumps(head))
    (folder / "forged.json").write_text(json.dumps(head | {"count": 4}))
    checked = {}
    for pin, whose in (("head", "ours"), ("head", "other"), ("forged", "ours")):
        options = ("--head", f"{pin}.json", "--public-key", f"{whose}.pub")
        ended = audit(folder, "verify", DATABASE, *options)
        checked[pin, whose] = (ended.code, said(ended) if ended.code else "")
    assert checked["head", "ours"] == (0, "")
    code, message = checked["head", "other"]
    assert (code, "`head.json` was signed by another key than `other.pub`" in message) == (1, True)
    code, message = checked["forged", "ours"]
    assert (code, "the signature of the head `forged.json` is wrong" in message) == (1, True)
    (folder / "bare.json").write_text(json.dumps({"id": 5, "hash": head["hash"]}))
    ended = audit(folder, "verify", DATABASE, "--head", "bare.json", "--public-key", "ours.pub")
    assert (ended.code, "`bare.json` is not signed" in said(ended)) == (1, True)


# --- moving and copying --------------------------------------------------------------------------


def test_archive_moves_records_and_both_files_verify(folder: Path) -> None:
    before = lines(audit(folder, "export"))
    ended = audit(folder, "archive", "--before", "2999-01-01", "--to", "old.db")
    assert (ended.code, ended.stdout) == (0, "moved entries 0 to 5 to old.db\n")
    assert lines(audit(folder, "export", "--audit-db", "old.db")) == before
    assert audit(folder, "export").stdout.strip() == ""
    assert audit(folder, "verify", "old.db").code == audit(folder, "verify", DATABASE).code == 0
    verified = audit(folder, "verify", DATABASE, "--head", hash_of_newest(before))
    assert "entries 6 to 6, after the pinned entry 5; " in verified.stdout
    assert "entries up to 5 are not among these; verify what has them as well\n" in verified.stdout
    must = f"must end with entry 5 and the hash {hash_of_newest(before)}"
    assert f"archive `old.db` {must}: it does\n" in verified.stdout
    assert f"it was taken from says whether it {must}" in audit(folder, "verify", "old.db").stdout
    nothing = audit(folder, "archive", "--before", "1999-01-01", "--to", "none.db")
    assert (nothing.code, "nothing is older" in nothing.stdout) == (0, True)
    assert not (folder / "none.db").exists()


def test_backup_is_a_whole_copy(folder: Path) -> None:
    with Server(folder):
        assert audit(folder, "backup", "copy.db").code == 0
    assert lines(audit(folder, "export", "--audit-db", "copy.db")) == lines(audit(folder, "export"))
    assert audit(folder, "verify", "copy.db").code == 0


def test_import_takes_over_agent_aegis_once_and_redacts(folder: Path) -> None:
    with closing(sqlite3.connect(folder / "theirs.db")) as theirs, theirs:
        theirs.execute(
            "CREATE TABLE audit_log (id INTEGER PRIMARY KEY, session_id TEXT, timestamp TEXT,"
            " action_type TEXT, action_target TEXT, action_params TEXT, action_desc TEXT,"
            " risk_level TEXT, approval TEXT, matched_rule TEXT, human_decision TEXT,"
            " result_status TEXT, result_data TEXT, result_error TEXT)"
        )
        for status in ("success", None):
            theirs.execute(
                "INSERT INTO audit_log VALUES (NULL, 's', '2025-01-31T18:00:00', 'read', 'crm',"
                """ '{"password": "x"}', '', 'LOW', 'auto', 'reads', NULL, ?, NULL, NULL)""",
                (status,),
            )
    ended = audit(folder, "import", "theirs.db")
    assert (ended.code, ended.stdout) == (0, f"imported 2 records of theirs.db into {DATABASE}\n")
    records = lines(audit(folder, "export", "--operation", "import"))
    assert [record["result_status"] for record in records] == ["success", "interrupted"]
    assert [record["id"] for record in records] == [6, 7]
    assert "[REDACTED]" in records[0]["action_params"]
    assert audit(folder, "verify", DATABASE).code == 0
    again = audit(folder, "import", "theirs.db")
    assert (again.code, "imported before" in said(again)) == (2, True)
    assert len(lines(audit(folder, "export"))) == 7


def test_row_that_cannot_be_a_record_is_told_and_left_out(folder: Path) -> None:
    with closing(sqlite3.connect(folder / "theirs.db")) as theirs, theirs:
        theirs.execute(
            "CREATE TABLE audit_log (session_id, timestamp, action_type, action_target, risk_level,"
            " approval)"
        )
        for target in ("crm", b"\xff", 1.5):
            theirs.execute(
                "INSERT INTO audit_log VALUES ('s', '2025-01-31', 'read', ?, 'low', 'auto')",
                (target,),
            )
    ended = audit(folder, "import", "theirs.db")
    told = "theirs.db: left out: row 2: `action_target` must be text, not bytes\n"
    assert (ended.code, ended.stderr) == (1, told)
    assert ended.stdout == f"imported 2 records of theirs.db into {DATABASE}\n"
    assert audit(folder, "verify", DATABASE).code == 0
    records = lines(audit(folder, "export", "--operation", "import"))
    assert [record["action_target"] for record in records] == ["crm", "1.5"]


# --- what cannot be ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("list", "--audit-db", "missing.db"), "cannot open"),
        (("tail", "--audit-db", "missing.db"), "cannot open"),
        (("export", "--audit-db", "missing.db"), "cannot open"),
        (("stats", "--audit-db", "missing.db"), "cannot open"),
        (("head", "--audit-db", "missing.db"), "cannot open"),
        (("backup", "copy.db", "--audit-db", "missing.db"), "cannot open"),
        (("archive", "--before", "2026-01-01", "--to", "o", "--audit-db", "missing.db"), "no `mis"),
        (("verify", "missing.db"), "cannot read"),
        (("import", "missing.db"), "cannot read"),
        (("list", "--audit-db", "foreign.db"), "another program"),
        (("verify", "foreign.db"), "another program"),
        (("import", "foreign.db"), "no table `audit_log`"),
        (("verify", "text"), "neither a database nor an exported chain"),
        (("export", "--to", "text"), "exists"),
        (("backup", "text"), "exists"),
        (("archive", "--before", "2999-01-01", "--to", "text"), "exists"),
        (("archive", "--before", "soon", "--to", "o"), "must be a time"),
        (("list", "--risk-level", "severe"), "does not exist"),
        (("list", "--since", "yesterday"), "must be a time"),
        (("list", "--limit", "-1"), "must be a number"),
        (("export", "--format", "chain", "--agent-id", "a"), "no filters"),
        (("verify", DATABASE, "--head", "missing.json"), "cannot read the head"),
        (("verify", DATABASE, "--head", "text"), "is no head"),
        (("verify", DATABASE, "--public-key", "text"), "needs a signed head"),
        (("verify", DATABASE, "--head", "a" * 64, "--public-key", "text"), "needs a signed head"),
        (("verify", DATABASE, "--from", "99"), "no entry 98"),
    ],
)
def test_what_cannot_be_done_is_exit_code_2_and_one_line(
    folder: Path, arguments: tuple[str, ...], why: str
) -> None:
    (folder / "text").write_text("text\n")
    with closing(sqlite3.connect(folder / "foreign.db")) as foreign:
        foreign.execute("CREATE TABLE notes (id INTEGER)")
    content = (folder / DATABASE).read_bytes()
    ended = audit(folder, *arguments)
    assert ended.code == 2, ended
    assert why in said(ended)
    assert (folder / "text").read_text() == "text\n"
    # Those that write number the write-ahead log anew.
    is_reading = arguments[0] not in ("archive", "import")
    assert not is_reading or (folder / DATABASE).read_bytes() == content
    assert not (folder / "missing.db").exists()
