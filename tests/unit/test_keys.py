"""The keys file and the key ring."""

from __future__ import annotations

import logging
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from aegis.auth.keys import digest_of, environment_keys, new_secret
from aegis.auth.keys_file import add_key, change_keys, parse_keys, read_keys, remove_key
from aegis.auth.ring import LOOK_AGAIN_S, MAX_SHARED_BYTES, KeyRing
from aegis.auth.roles import Permission, Role
from aegis.errors import ConfigError
from aegis.host.memory import SharedBytes
from aegis.host.watched import SHRUNK_S, is_being_written

DIGEST = digest_of(b"secret").hex()
OTHER = digest_of(b"other").hex()
ONE = f'keys:\n  - name: one\n    role: agent\n    sha256: "{DIGEST}"\n'
TWO = f'{ONE}  - name: two\n    role: auditor\n    sha256: "{OTHER}"\n'


def entry(**members: str) -> str:
    """A file of one key, some of whose members are others; "" leaves one out."""
    written = {"name": "one", "role": "agent", "sha256": f'"{DIGEST}"'} | members
    inside = ", ".join(f"{name}: {value}" for name, value in written.items() if value)
    return f"keys: [{{{inside}}}]"


# --- reading -------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["", "# nothing\n", "keys:\n", "keys: []", '{"keys": []}'])
def test_file_without_keys_has_none(source: str) -> None:
    assert parse_keys(source, "k") == []


def test_key_has_what_is_written() -> None:
    source = entry(agents='["crm-*", mail]', expires='"2027-01-31T00:00:00Z"')
    (key,) = parse_keys(source, "k")
    assert (key.name, key.role, key.digest.hex()) == ("one", Role.AGENT, DIGEST)
    assert (key.agents, key.expires_s) == (("crm-*", "mail"), 1801353600.0)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("[]", "k:1: a keys file must be a mapping, not a list"),
        ("key: []", "unknown member `key`; did you mean `keys`?"),
        ("keys: {}", "`keys` must be a list, not an object"),
        ("keys: [1]", "a key must be a mapping, not a number"),
        ("keys:\n  - {}", "name is missing"),
        (entry(name=""), "name is missing: what audit records are to call it"),
        (entry(name="7"), "name must be text, not a number"),
        (entry(name="a b"), "name `a b` must be letters, digits"),
        (entry(name="a" * 65), "at most 64"),
        (entry(name="AEGIS_API_KEY"), "stands for the environment's key"),
        (entry(role=""), "role is missing"),
        (entry(role="agnt"), "unknown role `agnt`; did you mean `agent`?"),
        (entry(role="Agent"), "unknown role `Agent`"),
        (entry(sha256=""), "sha256 is missing"),
        (entry(sha256='"12"'), "sha256 must be 64 hexadecimal digits"),
        (entry(sha256="1" * 64), "sha256 must be text, not a number"),
        (entry(agents="[]"), "agents must be a list of patterns"),
        (entry(agents="crm"), "agents must be a list of patterns"),
        (entry(agents='[""]'), "agents must be texts that are not empty"),
        (entry(agents="[1]"), "agents must be texts"),
        (entry(agents="[a]", role="auditor"), "the role auditor speaks for nobody"),
        (entry(agents="[a]", role="operator"), "the role operator speaks for nobody"),
        (entry(expires='"2027-01-31"'), "expires must be as in `2027-01-31T00:00:00Z`"),
        (entry(expires='"2027-01-31T00:00:00"'), "expires must be as in"),
        (entry(expires='"soon"'), "expires must be as in"),
        (entry(expires="2027-01-31T00:00:00Z"), "is a date; put it in quotes"),
        (entry(expires="null"), "expires must be as in"),
        (entry(secret="x"), "unknown member `secret`"),
        (
            f"{ONE}  - {{name: one, role: agent, sha256: '{OTHER}'}}\n",
            "k:5: name `one` stands twice",
        ),
        (
            f"{ONE}  - {{name: two, role: agent, sha256: '{DIGEST}'}}\n",
            "the same sha256 stands twice",
        ),
        ("keys: [", "not YAML"),
        ("keys: []\nkeys: []", "stands twice"),
        ("keys: !x []", "tags are not taken"),
    ],
)
def test_file_is_refused_with_what_is_wrong(source: str, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_keys(source, "k")
    assert said in str(refused.value)


def test_all_problems_are_told_with_their_lines() -> None:
    source = "keys:\n  - name: one\n    role: none\n    sha256: x\n  - role: agent\n"
    with pytest.raises(ConfigError) as refused:
        parse_keys(source, "k.yaml")
    for place in ("k.yaml:3: unknown role", "k.yaml:4: sha256 must", "k.yaml:5: name is missing"):
        assert place in str(refused.value)


def test_key_written_instead_of_its_digest_is_not_repeated() -> None:
    with pytest.raises(ConfigError) as refused:
        parse_keys(entry(sha256='"aegis_the-secret"'), "k")
    assert "the-secret" not in str(refused.value)


@pytest.mark.parametrize("role", list(Role))
def test_each_role_may_do_what_it_is_for(role: Role) -> None:
    (key,) = parse_keys(entry(role=role), "k")
    assert (
        key.permissions
        == {Permission.DESCRIBE}
        | {
            Role.AGENT: {Permission.DECIDE},
            Role.AUDITOR: {Permission.READ},
            Role.OPERATOR: {Permission.READ, Permission.CHANGE_POLICY},
            Role.ADMIN: set(Permission),
        }[role]
    )


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the keys file"):
        read_keys(str(tmp_path / "none"))


def test_folder_is_no_keys_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no regular file"):
        read_keys(str(tmp_path))


def test_file_that_everyone_can_write_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    path.write_text(ONE)
    path.chmod(0o646)
    with pytest.raises(ConfigError, match="can be written by everyone"):
        read_keys(str(path))


def test_huge_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    path.write_bytes(b"#" * (1024 * 1024 + 1))
    with pytest.raises(ConfigError, match="is over 1048576 bytes"):
        read_keys(str(path))


def test_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    path.write_bytes(b"# \xff")
    with pytest.raises(ConfigError, match="not UTF-8"):
        read_keys(str(path))


# --- agents --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("agents", "asked", "agent"),
    [
        ("", "anyone", "anyone"),
        ("", "", ""),
        ('["crm-*"]', "crm-bot", "crm-bot"),
        ('["crm-*"]', "mail-bot", None),
        ('["crm-*"]', "xcrm-bot", None),
        ('["crm-*"]', "CRM-bot", None),
        ('["crm-*"]', "crm-\nbot", "crm-\nbot"),
        ('["crm-*"]', "", None),
        ('["*"]', "", ""),
        ("[bot]", "", "bot"),
        ("[bot]", "bot", "bot"),
        ("[bot]", "bot2", None),
        ("[a, b]", "", None),
        ("[a, b]", "b", "b"),
        ("[a, b]", "ab", None),
        ('["a|b"]', "a", None),
        ('["[ab]"]', "", None),
        ('["[ab]"]', "b", "b"),
    ],
)
def test_key_speaks_for_its_agents_only(agents: str, asked: str, agent: str | None) -> None:
    (key,) = parse_keys(entry(agents=agents), "k")
    assert key.agent_for(asked) == agent


# --- the ring ------------------------------------------------------------------------------------


class Clock:
    """A clock that is moved on by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def pass_by(self) -> None:
        self.now += LOOK_AGAIN_S


def ring_of(path: Path, source: str) -> tuple[KeyRing, Clock]:
    path.write_text(source)
    clock = Clock()
    return KeyRing(environment_keys("api", None), str(path), clock), clock


def name_of(ring: KeyRing, secret: bytes) -> str | None:
    key = ring.find(secret)
    return None if key is None else key.name


def test_ring_knows_the_keys_of_the_file_and_of_the_environment(tmp_path: Path) -> None:
    ring, _ = ring_of(tmp_path / "keys.yaml", ONE)
    assert name_of(ring, b"secret") == "one"
    assert name_of(ring, b"api") == "AEGIS_API_KEY"
    assert name_of(ring, b"other") is None
    assert name_of(ring, b"") is None


def test_ring_learns_of_a_new_key(tmp_path: Path) -> None:
    ring, clock = ring_of(tmp_path / "keys.yaml", ONE)
    assert name_of(ring, b"other") is None
    (tmp_path / "keys.yaml").write_text(TWO)
    clock.pass_by()
    assert name_of(ring, b"other") == "two"


def test_ring_forgets_a_revoked_key(tmp_path: Path) -> None:
    ring, clock = ring_of(tmp_path / "keys.yaml", TWO)
    assert name_of(ring, b"other") == "two"
    change_keys(str(tmp_path / "keys.yaml"), lambda source: remove_key(source, "k", "two"))
    clock.pass_by()
    assert name_of(ring, b"other") is None
    assert name_of(ring, b"secret") == "one"


@pytest.mark.parametrize("broken", ["keys: [", "keys: [{}]", None])
def test_ring_keeps_its_keys_when_the_file_is_refused_and_says_so_once(
    tmp_path: Path, broken: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "keys.yaml"
    ring, clock = ring_of(path, ONE)
    assert name_of(ring, b"secret") == "one"
    path.unlink() if broken is None else path.write_text(broken)
    for _ in range(3):
        clock.pass_by()
        assert name_of(ring, b"secret") == "one"
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert ["stay in force" in record.getMessage() for record in errors] == [True]


def test_ring_takes_a_mended_file(tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    ring, clock = ring_of(path, "keys: [")
    assert name_of(ring, b"secret") is None
    path.write_text(ONE)
    clock.pass_by()
    assert name_of(ring, b"secret") == "one"


@pytest.mark.parametrize("emptied", ["", "\n", "# nothing\n"])
def test_ring_does_not_take_an_emptied_file_for_no_keys(
    tmp_path: Path, emptied: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "keys.yaml"
    ring, clock = ring_of(path, ONE)
    path.write_text(emptied)
    for _ in range(20):
        clock.pass_by()
        assert name_of(ring, b"secret") == "one"
    assert ring.failures() == (1, "the keys file is refused; the log says why")
    assert "is empty; write `keys: []` to take all keys away" in caplog.text
    path.write_text("keys: []")
    for _ in range(20):
        clock.pass_by()
        ring.look()
    assert name_of(ring, b"secret") is None
    assert ring.failures() == (1, None)


def test_ring_waits_for_a_file_that_has_become_shorter(tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    ring, clock = ring_of(path, entry(agents="[a]"))
    whole = path.read_text()
    path.write_text(ONE)  # what is written of it first: the key may speak for anybody
    while clock.now < SHRUNK_S - LOOK_AGAIN_S:
        clock.pass_by()
        key = ring.find(b"secret")
        assert key is not None
        assert key.agents == ("a",)
    path.write_text(whole)
    for _ in range(10):
        clock.pass_by()
        key = ring.find(b"secret")
        assert key is not None
        assert key.agents == ("a",)
    path.write_text(ONE)
    for _ in range(10):
        clock.pass_by()
        ring.look()
    key = ring.find(b"secret")
    assert key is not None
    assert key.agents == ()


def test_ring_waits_for_who_writes_the_file(tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    ring, clock = ring_of(path, ONE)
    with path.open("a") as writer:
        writer.write(TWO.removeprefix(ONE))
        writer.flush()
        if not is_being_written(str(path)):
            pytest.skip("the file system does not tell who writes")
        clock.pass_by()
        assert name_of(ring, b"other") is None
    clock.pass_by()
    assert name_of(ring, b"other") == "two"


def test_rings_of_a_server_know_the_last_good_keys_whenever_they_are_made(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "keys.yaml"
    path.write_text(TWO)
    shared = SharedBytes(MAX_SHARED_BYTES)
    clock = Clock()
    rings = [KeyRing([], str(path), clock, shared=shared) for _ in range(2)]
    path.write_text("keys: [")
    clock.pass_by()
    rings.append(KeyRing([], str(path), clock, shared=shared))
    for ring in rings:
        assert name_of(ring, b"other") == "two"
        assert ring.failures() == (1, "the keys file is refused; the log says why")
    assert caplog.text.count("stay in force") == 1
    path.write_text(TWO + "\n")
    clock.pass_by()
    assert name_of(rings[0], b"other") == "two"
    change_keys(str(path), lambda source: remove_key(source, "k", "two"))
    clock.pass_by()
    assert [name_of(ring, b"other") for ring in rings] == [None] * 3
    assert [ring.failures() for ring in rings] == [(1, None)] * 3
    assert caplog.text.count("was read again: 1 keys") == 1


def test_what_rings_share_has_no_secret_and_all_of_a_key(tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    path.write_text(entry(agents='["crm-*", mail]', expires='"2027-01-31T00:00:00Z"'))
    shared = SharedBytes(MAX_SHARED_BYTES)
    KeyRing([], str(path), shared=shared)
    found = KeyRing([], str(path), shared=shared).find(b"secret")
    assert found == parse_keys(path.read_text(), "k")[0]
    assert b"secret" not in shared.read()[1]


def test_ring_without_a_file_never_looks(tmp_path: Path) -> None:
    assert name_of(KeyRing(environment_keys("api", "admin")), b"admin") == "AEGIS_ADMIN_KEY"


def test_secrets_are_distinct_and_long() -> None:
    made = {new_secret() for _ in range(100)}
    assert len(made) == 100
    assert all(secret.startswith("aegis_") and len(secret) == 49 for secret in made)


def test_key_does_not_show_its_digest() -> None:
    (key,) = parse_keys(ONE, "k")
    assert DIGEST not in repr(key)
    assert str(key.digest) not in repr(key)


# --- changes -------------------------------------------------------------------------------------

COMMENTED = f"""\
# Our keys.
keys:   # by team
# The CRM's.
- name: one
  role: agent
  sha256: '{DIGEST}'   # of May
  # not any agent
  agents: [a]

# Finance.
- name: two
  role: auditor
  sha256: '{OTHER}'
"""


@pytest.mark.parametrize(
    "source",
    [
        "",
        "\n",
        "keys:\n",
        "keys: []\n",
        "keys: []",
        "# ours\nkeys: []\n",
        ONE,
        TWO,
        COMMENTED,
        ONE[:-1],
    ],
)
def test_added_key_is_in_the_file_and_the_rest_as_it_was(source: str) -> None:
    made = add_key(source, "k", "new", Role.ADMIN, "s3cret", ["x", 'q"\\'], "2030-01-01T00:00:00Z")
    *before, key = parse_keys(made, "k")
    assert before == parse_keys(source, "k")
    assert (key.name, key.role, key.agents) == ("new", Role.ADMIN, ("x", 'q"\\'))
    assert key.digest == digest_of(b"s3cret")
    assert "s3cret" not in made
    assert [line for line in source.split("\n") if "#" in line] == [
        line for line in made.split("\n") if "#" in line
    ]


def test_removed_key_takes_its_own_lines_with_it_only() -> None:
    made = remove_key(COMMENTED, "k", "one")
    assert [key.name for key in parse_keys(made, "k")] == ["two"]
    assert "# Finance." in made
    assert "# not any agent" not in made


def test_last_key_can_be_removed() -> None:
    assert parse_keys(remove_key(ONE, "k", "one"), "k") == []
    assert [key.name for key in parse_keys(remove_key(TWO, "k", "two"), "k")] == ["one"]


def test_removing_an_unknown_key_is_refused() -> None:
    with pytest.raises(ConfigError, match="there is no key `tow` in `k`; did you mean `two`"):
        remove_key(TWO, "k", "tow")


def test_adding_a_known_name_is_refused() -> None:
    with pytest.raises(ConfigError, match="there is a key `one` already"):
        add_key(ONE, "k", "one", Role.AGENT, "s", [], "")


@pytest.mark.parametrize(
    "source", [entry(), f'{{"keys": [{{"name": "one", "role": "agent", "sha256": "{DIGEST}"}}]}}']
)
def test_file_in_another_form_is_left_to_its_author(source: str) -> None:
    with pytest.raises(ConfigError):
        add_key(source, "k", "new", Role.AGENT, "s", [], "")
    with pytest.raises(ConfigError):
        remove_key(source, "k", "one")


def test_new_file_is_for_its_owner_only(tmp_path: Path) -> None:
    change_keys(str(tmp_path / "keys.yaml"), lambda _: ONE)
    assert stat.S_IMODE((tmp_path / "keys.yaml").stat().st_mode) == 0o600


def test_changed_file_keeps_its_mode_and_its_link(tmp_path: Path) -> None:
    (tmp_path / "real").write_text(ONE)
    (tmp_path / "real").chmod(0o640)
    (tmp_path / "keys.yaml").symlink_to("real")
    change_keys(str(tmp_path / "keys.yaml"), lambda _: TWO)
    assert (tmp_path / "keys.yaml").is_symlink()
    assert (tmp_path / "real").read_text() == TWO
    assert stat.S_IMODE((tmp_path / "real").stat().st_mode) == 0o640


def test_refused_change_leaves_the_file_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "keys.yaml").write_text(ONE)
    with pytest.raises(ConfigError):
        change_keys(str(tmp_path / "keys.yaml"), lambda source: remove_key(source, "k", "none"))
    assert os.listdir(tmp_path) == ["keys.yaml"]
    assert (tmp_path / "keys.yaml").read_text() == ONE


def test_changes_at_once_are_all_made(tmp_path: Path) -> None:
    path = str(tmp_path / "keys.yaml")

    def add(number: int) -> None:
        change_keys(
            path,
            lambda source: add_key(source, path, f"k{number}", Role.AGENT, f"{number}", [], ""),
        )

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(add, range(24)))
    assert {key.name for key in read_keys(path)} == {f"k{number}" for number in range(24)}


def test_missing_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot open"):
        change_keys(str(tmp_path / "none" / "keys.yaml"), lambda _: ONE)
