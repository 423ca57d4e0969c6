"""The tables of the database, and how each release changed them."""

from __future__ import annotations

from aegis.store.sql import Connection, has_table

__all__ = [
    "APPLICATION_ID",
    "AS_NOW",
    "MIGRATIONS",
    "UNCHAINED",
    "VERSION_COLUMNS",
    "drop_unchained",
    "touch",
]

APPLICATION_ID = 0x41454749  # "AEGI": tells our files from those of others

VERSION_COLUMNS = ("version", "origin", "sha256", "created_us", "key_name", "note")
"""The columns of `policy_version` besides the text: what an entry of the hash chain says of a version."""

_SCHEMA_1 = """
CREATE TABLE word (
    id INTEGER PRIMARY KEY,
    text TEXT NOT NULL UNIQUE
) STRICT;
CREATE TABLE record (
    id INTEGER PRIMARY KEY,
    timestamp_us INTEGER NOT NULL,
    session INTEGER NOT NULL REFERENCES word,
    action_type INTEGER NOT NULL REFERENCES word,
    action_target TEXT NOT NULL,
    action_params TEXT NOT NULL,
    action_desc TEXT,
    risk_level INTEGER NOT NULL,
    approval INTEGER NOT NULL,
    matched_rule INTEGER NOT NULL REFERENCES word,
    human_decision INTEGER REFERENCES word,
    result_status INTEGER NOT NULL,
    result_data TEXT,
    result_error TEXT,
    agent INTEGER REFERENCES word,
    parent_agent INTEGER REFERENCES word,
    chain INTEGER REFERENCES word,
    chain_depth INTEGER NOT NULL,
    policy_version INTEGER NOT NULL
) STRICT;
CREATE TABLE policy_version (
    version INTEGER PRIMARY KEY,
    sha256 TEXT NOT NULL,
    origin TEXT NOT NULL,
    created_us INTEGER NOT NULL,
    source TEXT NOT NULL
) STRICT;
CREATE TRIGGER record_stays BEFORE UPDATE ON record
    BEGIN SELECT raise(ABORT, 'audit records are never changed'); END;
CREATE TRIGGER record_is_kept BEFORE DELETE ON record
    BEGIN SELECT raise(ABORT, 'audit records are never removed'); END;
CREATE TRIGGER word_stays BEFORE UPDATE ON word
    BEGIN SELECT raise(ABORT, 'the words of audit records are never changed'); END;
CREATE TRIGGER word_is_kept BEFORE DELETE ON word
    BEGIN SELECT raise(ABORT, 'the words of audit records are never removed'); END;
CREATE TRIGGER policy_version_stays BEFORE UPDATE ON policy_version
    BEGIN SELECT raise(ABORT, 'policy versions are never changed'); END;
CREATE TRIGGER policy_version_is_kept BEFORE DELETE ON policy_version
    BEGIN SELECT raise(ABORT, 'policy versions are never removed'); END;
"""

_SCHEMA_2 = """
ALTER TABLE record ADD COLUMN key_name INTEGER REFERENCES word;
ALTER TABLE policy_version ADD COLUMN key_name TEXT;
"""

# Links of a chain are in one table, so that its primary key refuses two of one number, whatever they
# say. What a record says is checked here as far as a row without its action can be told from one
# with it. There is no index on what records say: `posting` is made of them later, by and by.
_SCHEMA_3 = """
DROP TRIGGER record_stays;
DROP TRIGGER record_is_kept;
ALTER TABLE record RENAME TO unchained_record;
CREATE TABLE record (
    id INTEGER PRIMARY KEY,
    hash BLOB NOT NULL CHECK (length(hash) = 32),
    intent INTEGER REFERENCES record,
    timestamp_us INTEGER NOT NULL,
    result_status INTEGER NOT NULL,
    result_data TEXT,
    result_error TEXT,
    operation INTEGER,
    session INTEGER REFERENCES word,
    action_type INTEGER REFERENCES word,
    action_target TEXT,
    action_params TEXT,
    action_desc TEXT,
    risk_level INTEGER,
    approval INTEGER,
    matched_rule INTEGER REFERENCES word,
    human_decision INTEGER REFERENCES word,
    agent INTEGER REFERENCES word,
    parent_agent INTEGER REFERENCES word,
    chain INTEGER REFERENCES word,
    chain_depth INTEGER,
    policy_version INTEGER,
    key_name INTEGER REFERENCES word,
    worker INTEGER REFERENCES worker,
    CHECK ((intent IS NULL) = (operation IS NOT NULL AND session IS NOT NULL
        AND action_type IS NOT NULL AND action_target IS NOT NULL AND action_params IS NOT NULL
        AND risk_level IS NOT NULL AND approval IS NOT NULL AND matched_rule IS NOT NULL
        AND chain_depth IS NOT NULL AND policy_version IS NOT NULL))
) STRICT;
CREATE UNIQUE INDEX outcome ON record (intent) WHERE intent IS NOT NULL;
CREATE TRIGGER record_stays BEFORE UPDATE ON record
    BEGIN SELECT raise(ABORT, 'audit records are never changed'); END;
CREATE TRIGGER record_is_kept BEFORE DELETE ON record
    WHEN OLD.id > (SELECT ifnull(max(last), 0) FROM archive)
    BEGIN SELECT raise(ABORT, 'audit records are never removed, but archived'); END;
CREATE TABLE archive (
    last INTEGER PRIMARY KEY,
    hash BLOB NOT NULL CHECK (length(hash) = 32),
    records INTEGER NOT NULL,
    file TEXT NOT NULL,
    archived_us INTEGER NOT NULL
) STRICT;
CREATE TRIGGER archive_stays BEFORE UPDATE ON archive
    BEGIN SELECT raise(ABORT, 'what was archived stays said'); END;
CREATE TRIGGER archive_is_kept BEFORE DELETE ON archive
    BEGIN SELECT raise(ABORT, 'what was archived stays said'); END;
CREATE TABLE worker (
    id INTEGER PRIMARY KEY,
    pid INTEGER NOT NULL,
    started_us INTEGER NOT NULL
) STRICT;
CREATE TABLE segment (
    id INTEGER PRIMARY KEY,
    first_us INTEGER NOT NULL,
    last_us INTEGER NOT NULL
) STRICT;
CREATE TABLE posting (
    segment INTEGER NOT NULL,
    kind INTEGER NOT NULL,
    word INTEGER NOT NULL,
    records BLOB NOT NULL,
    PRIMARY KEY (segment, kind, word)
) STRICT, WITHOUT ROWID;
CREATE TABLE request (
    id INTEGER PRIMARY KEY,
    caller TEXT NOT NULL,
    idempotency_key TEXT NOT NULL,
    body_sha256 BLOB NOT NULL,
    created_us INTEGER NOT NULL,
    worker INTEGER NOT NULL REFERENCES worker,
    is_done INTEGER NOT NULL DEFAULT 0,
    UNIQUE (caller, idempotency_key)
) STRICT;
CREATE INDEX request_created ON request (created_us);
CREATE TABLE request_record (
    request INTEGER NOT NULL REFERENCES request,
    position INTEGER NOT NULL,
    record INTEGER NOT NULL REFERENCES record,
    PRIMARY KEY (request, position)
) STRICT, WITHOUT ROWID;
"""

_SCHEMA_4 = "ALTER TABLE policy_version ADD COLUMN note TEXT"

# An entry of another kind than record and outcome has its name and what it says in two columns, so
# that a release stores kinds that it does not know. A table's constraints can only be changed by its
# text; nothing that is stored changes, as the columns that are new are at the end of each row.
# SOURCE: https://sqlite.org/lang_altertable.html, section 7.
_RECORD_5 = """\
CREATE TABLE record (
    id INTEGER PRIMARY KEY,
    hash BLOB NOT NULL CHECK (length(hash) = 32),
    intent INTEGER REFERENCES record,
    timestamp_us INTEGER NOT NULL,
    result_status INTEGER,
    result_data TEXT,
    result_error TEXT,
    operation INTEGER,
    session INTEGER REFERENCES word,
    action_type INTEGER REFERENCES word,
    action_target TEXT,
    action_params TEXT,
    action_desc TEXT,
    risk_level INTEGER,
    approval INTEGER,
    matched_rule INTEGER REFERENCES word,
    human_decision INTEGER REFERENCES word,
    agent INTEGER REFERENCES word,
    parent_agent INTEGER REFERENCES word,
    chain INTEGER REFERENCES word,
    chain_depth INTEGER,
    policy_version INTEGER,
    key_name INTEGER REFERENCES word,
    worker INTEGER REFERENCES worker,
    call_id TEXT,
    request_id TEXT,
    trace_id TEXT,
    kind TEXT,
    payload TEXT,
    CHECK (CASE
        WHEN kind IS NOT NULL THEN kind NOT GLOB '*[^a-z_]*' AND kind NOT IN ('', 'record', 'outcome')
            AND payload IS NOT NULL AND json_valid(payload) AND instr(payload, char(10)) = 0
            AND intent IS NULL AND operation IS NULL AND result_status IS NULL
        WHEN intent IS NOT NULL THEN payload IS NULL AND operation IS NULL
            AND result_status IS NOT NULL
        ELSE payload IS NULL AND operation IS NOT NULL AND session IS NOT NULL
            AND action_type IS NOT NULL AND action_target IS NOT NULL AND action_params IS NOT NULL
            AND risk_level IS NOT NULL AND approval IS NOT NULL AND matched_rule IS NOT NULL
            AND result_status IS NOT NULL AND chain_depth IS NOT NULL AND policy_version IS NOT NULL
        END)
) STRICT"""

# Entry 0 is the policy that a database was made with: it may only go where an archive has it.
_SCHEMA_5 = f"""
PRAGMA writable_schema = ON;
UPDATE sqlite_schema SET sql = '{_RECORD_5.replace("'", "''")}' WHERE type = 'table' AND name = 'record';
CREATE TABLE unchained_version (version INTEGER PRIMARY KEY) STRICT;
CREATE TABLE unchained_archive (last INTEGER PRIMARY KEY) STRICT;
PRAGMA writable_schema = RESET;
INSERT INTO unchained_version SELECT version FROM policy_version;
INSERT INTO unchained_archive SELECT last FROM archive WHERE file <> '';
CREATE INDEX entry_kind ON record (kind) WHERE kind IS NOT NULL;
DROP TRIGGER record_is_kept;
CREATE TRIGGER record_is_kept BEFORE DELETE ON record
    WHEN OLD.id > (SELECT ifnull(max(last), -1) FROM archive)
    BEGIN SELECT raise(ABORT, 'audit records are never removed, but archived'); END;
"""

_NO_KINDS = """
CREATE TEMP VIEW record AS SELECT *, NULL AS call_id, NULL AS request_id, NULL AS trace_id,
    NULL AS kind, NULL AS payload FROM main.record;
"""
_NO_NOTE = "CREATE TEMP VIEW policy_version AS SELECT *, NULL AS note FROM main.policy_version;"
AS_NOW = {3: _NO_KINDS + _NO_NOTE, 4: _NO_KINDS}
"""By which views a file that has a chain is read as if it were of the newest schema."""

UNCHAINED = ("unchained_record", "unchained_version", "unchained_archive")
"""Tables of what has yet to become entries of the chain; they are gone once it has."""

MIGRATIONS = (_SCHEMA_1, _SCHEMA_2, _SCHEMA_3, _SCHEMA_4, _SCHEMA_5)
"""What leads from each `user_version` to the next."""


def touch(connection: Connection) -> None:
    """Write something that changes nothing, to see that it can be written; within a turn."""
    connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")


def drop_unchained(connection: Connection) -> None:
    """Drop what a migration has set aside for nothing."""
    for table in UNCHAINED:
        if (
            has_table(connection, table)
            and not connection.execute(f"SELECT EXISTS (SELECT 1 FROM {table})").get
        ):
            connection.execute(f"DROP TABLE {table}")
