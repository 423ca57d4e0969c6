"""Limits, keys, and which names and addresses are this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from aegis.config import Settings, keys_from, settings_from
from aegis.errors import ConfigError
from aegis.hosts import allowed_hosts_of, host_of, is_loopback
from aegis.policy.loader import Policy
from aegis.server import create_app


def test_limits_are_those_that_are_promised() -> None:
    settings = Settings()
    assert settings.max_body_bytes == 1024 * 1024
    assert settings.max_policy_bytes == 16 * 1024 * 1024
    assert settings.max_batch == 10_000
    assert settings.max_nesting == 64
    assert settings.audit_db == "aegis_audit.db"


def test_no_keys_is_keyless() -> None:
    assert Settings().is_keyless
    assert not Settings(api_key="a").is_keyless
    assert not Settings(admin_key="a").is_keyless


def test_keys_are_not_shown() -> None:
    assert "hidden" not in repr(Settings(api_key="hidden-1", admin_key="hidden-2"))


@pytest.mark.parametrize(
    ("environment", "keys"),
    [
        ({}, (None, None)),
        ({"AEGIS_API_KEY": "a"}, ("a", None)),
        ({"AEGIS_ADMIN_KEY": "b"}, (None, "b")),
        ({"AEGIS_API_KEY": "a", "AEGIS_ADMIN_KEY": "b"}, ("a", "b")),
        ({"API_KEY": "a", "aegis_api_key": "b"}, (None, None)),
    ],
)
def test_keys_are_those_of_the_environment(
    environment: dict[str, str], keys: tuple[str | None, str | None]
) -> None:
    assert keys_from(environment) == keys


@pytest.mark.parametrize("name", ["AEGIS_API_KEY", "AEGIS_ADMIN_KEY", "AEGIS_KEYS"])
@pytest.mark.parametrize("value", ["", " ", "\t", "\n"])
def test_blank_key_is_refused(name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} is set but empty"):
        settings_from({}, environment={name: value})


@pytest.mark.parametrize("name", ["AEGIS_API_KEY", "AEGIS_ADMIN_KEY"])
@pytest.mark.parametrize("value", ["a b", "a\tb", "a\nb", "a\x7f", "ké", "\udcff", "\0"])
def test_key_that_no_header_can_carry_is_refused_and_not_shown(name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} must be visible ASCII") as refused:
        keys_from({name: value})
    assert value not in str(refused.value)


@pytest.mark.parametrize("name", ["api_key", "admin_key"])
@pytest.mark.parametrize("value", ["", " ", "a b", "a\nb", "ké"])
def test_key_of_an_application_is_checked_as_that_of_the_environment(name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=name):
        create_app(policy=Policy(), audit_db_path=":memory:", **{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "127.255.255.254", "localhost", "LocalHost", "::1", "[::1]", "::ffff:127.0.0.1"],
)
def test_loopback_is_this_machine(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host",
    [
        "0.0.0.0",
        "::",
        "[::]",
        "192.168.1.1",
        "::ffff:192.168.1.1",
        "2001:db8::1",
        "example.com",
        "localhost.example.com",
        "127.0.0.1.example.com",
        "127.1",
        "0x7f.0.0.1",
        "2130706433",
        "",
        " 127.0.0.1",
        "localhost.",
    ],
)
def test_everything_else_is_not(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("localhost", ("localhost", "")),
        ("LocalHost:8000", ("localhost", "8000")),
        ("localhost:", ("localhost", "")),
        ("a_b-c.example.:65535", ("a_b-c.example.", "65535")),
        ("127.0.0.1:1", ("127.0.0.1", "1")),
        ("[::1]", ("[::1]", "")),
        ("[::1]:8000", ("[::1]", "8000")),
        ("[2001:DB8:0::1]", ("[2001:db8::1]", "")),
        ("ex%61mple", ("ex%61mple", "")),
    ],
)
def test_host_and_port_are_told_apart(text: str, expected: tuple[str, str]) -> None:
    assert host_of(text) == expected


NO_HOSTS = [
    "",
    " ",
    " localhost",
    "localhost:abc",
    "localhost:-1",
    "localhost:65536",
    "localhost:8000:8000",
    "localhost:9999999999999999999999",
    "a@localhost",
    "localhost/",
    "localhost#a",
    "localhost?a",
    "http://localhost",
    "local host",
    "localhost\t",
    "localhost,evil.example b",
    "::1",
    "[::1",
    "[::1]x",
    "[",
    "[]",
    "[::1]8000",
    "[::g]",
    "[127.0.0.1]",
    "%zz",
    "\xff",
    "\u212aube",
    ":80",
]


@pytest.mark.parametrize("text", NO_HOSTS)
def test_what_is_no_host_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a host"):
        host_of(text)


def test_application_logs_what_is_odd_about_its_policy_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text("rules:\n- {name: a, match: {type: x}}\n")
    create_app(path, ":memory:")
    assert f"{path}:2: rule `a`: rules[0]: has no `approval`, which means `approve`" in caplog.text


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("Aegis.Example", "aegis.example"),
        (" aegis.example ", "aegis.example"),
        (".example.com", ".example.com"),
        ("*.example.com", "*.example.com"),
        ("my_service", "my_service"),
        ("10.1.2.3", "10.1.2.3"),
        ("2001:DB8::0:1", "[2001:db8::1]"),
        ("[2001:db8::1]", "[2001:db8::1]"),
    ],
)
def test_allowed_host_is_kept_in_one_form(entry: str, expected: str) -> None:
    assert allowed_hosts_of([entry]) == {expected}


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        ("*", "any name"),
        ("", "is empty"),
        ("  ", "is empty"),
        ("example.com:8000", "has a port"),
        ("[::1]:8000", "has a port"),
        ("10.0.0.0/8", "range of addresses"),
        ("https://example.com", "is a URL"),
        ("*example.com", "is not a host"),
        ("a.*.example", "is not a host"),
        ("**.example", "is not a host"),
        ("..example", "is not a host"),
        (".", "is not a host"),
        ("example.com,other", "is not a host"),
        ("ex ample", "is not a host"),
    ],
)
def test_allowed_host_that_could_never_be_one_is_refused(entry: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        allowed_hosts_of(["localhost", entry])
