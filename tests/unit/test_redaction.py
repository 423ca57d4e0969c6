"""Secrets, known by the names of their keys, are kept out of what is stored."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis.codec import dumps
from aegis.redaction import Redaction

REDACTION = Redaction()

ANYWHERE = [
    "password",
    "passwd",
    "secret",
    "api_key",
    "api-key",
    "authorization",
    "cookie",
    "credential",
    "private_key",
    "access_key",
]


def redacted(value: Any) -> Any:
    return json.loads(REDACTION.json(dumps(value)))


@pytest.mark.parametrize("name", ANYWHERE)
@pytest.mark.parametrize("written", ["{}", "my_{}_1", "{}s", "X-{}", "passwordHint{}"])
@pytest.mark.parametrize("case", [str.lower, str.upper, str.title])
def test_value_of_a_secret_is_replaced(name: str, written: str, case: Any) -> None:
    key = case(written.format(name))
    for value in ("s", 5, None, True, ["s"], {"a": "s"}, ""):
        assert redacted({key: value}) == {key: "[REDACTED]"}
        assert redacted({"a": [[{key: value, "b": 1}]]}) == {"a": [[{key: "[REDACTED]", "b": 1}]]}


SECRET = """
token Token TOKEN access_token accessToken AccessToken ACCESS_TOKEN accesstoken ACCESSTOKEN
X-Auth-Token x.token token.value token_count tokenCount token-id TOKENValue tokenA token2 auth:token
userpwd user_pwd userPwd USERPWD pwd_hash pwdHash my-PWD db.pwd OLDPWD oldPwd2
password passwordHint Passwords userPassword clientSecret secretary apiKey_api_key Set-Cookie cookies
tokenizer_secret max_tokens_token credentials ssh_private_key aws_access_key_id Proxy-Authorization
"""

NO_SECRET = """
max_tokens MAX_TOKENS input_tokens output_tokens total_tokens tokenizer Tokenizer tokens Tokens TOKENS
maxTokens completion_tokens tokenized detokenize tokenize_text tokenés
pwd PWD Pwd pwdx pwds cpwdx
user key pass apikey private access author path monkey keyboard authority
"""


@pytest.mark.parametrize("key", SECRET.split())
def test_key_names_a_secret(key: str) -> None:
    assert redacted({key: "s3cret"}) == {key: "[REDACTED]"}


@pytest.mark.parametrize("key", NO_SECRET.split())
def test_key_names_no_secret(key: str) -> None:
    assert redacted({key: "s3cret"}) == {key: "s3cret"}
    assert redacted({"token": 1, key: "s3cret"}) == {"token": "[REDACTED]", key: "s3cret"}


def test_names_are_added_and_excepted() -> None:
    chosen = Redaction(["SSN", "tokens", "geheimnisé"], ["Token_Count", "set-cookie", "SSN_year"])
    value = {
        "customerSsn": 1,
        "ssn_year": 2,
        "prompt_tokens": 3,
        "max_tokens": 4,
        "token_count": 5,
        "Set-Cookie": 6,
        "Cookie": 7,
        "GEHEIMNISÉ": 8,
        "password": 9,
    }
    hidden = {"customerSsn", "prompt_tokens", "Cookie", "GEHEIMNISÉ", "password"}
    assert json.loads(chosen.json(dumps(value))) == {
        key: "[REDACTED]" if key in hidden else number for key, number in value.items()
    }


def test_name_that_was_added_is_found_alone() -> None:
    assert Redaction(["ssn"]).json(b'{"SSN":1}') == b'{"SSN":"[REDACTED]"}'
    assert Redaction().json(b'{"SSN":1}') == b'{"SSN":1}'


def test_integers_beside_secrets_are_exact() -> None:
    text = b'{"a":100000000000000000001,"token":1,"b":1.0}'
    assert REDACTION.json(text) == b'{"a":100000000000000000001,"token":"[REDACTED]","b":1.0}'


def test_text_of_others_is_redacted_also_where_python_wrote_it() -> None:
    text = json.dumps({"password": "s3cret", "n": float("nan"), "h": "\ud800", "i": 10**30})
    assert json.loads(REDACTION.json_text(text)) == {
        "password": "[REDACTED]",
        "n": None,
        "h": "\\ud800",
        "i": 10**30,
    }
    assert REDACTION.json_text("{no json") == '"{no json"'


def test_secrets_are_hidden_in_texts_that_repeat_them() -> None:
    params = {
        "password": "s3cret'\n",
        "a": [{"token": ["abcd", 12345]}],
        "pin": "9999",
        "secret": "abc",
    }
    text = "KeyError: \"s3cret'\\n\" and s3cret'\n, abcd, 12345, 9999, abc, True"
    assert REDACTION.hide(text, params) == (
        'KeyError: "[REDACTED]" and [REDACTED], [REDACTED], [REDACTED], 9999, abc, True'
    )


@pytest.mark.parametrize(
    "value",
    [
        {"user": "bob"},
        {"text": "my password is s"},
        ["token", "secret"],
        {"pass": "s", "key": "s", "apikey": "s", "private": "s", "pwd": "/srv", "max_tokens": 5},
        "password",
        None,
        5,
        {},
        [],
    ],
)
def test_what_is_no_secret_stays(value: Any) -> None:
    assert redacted(value) == value


def test_text_without_a_secret_is_not_written_anew() -> None:
    assert REDACTION.json(b'{"a":1.0e5, "b":[]}') == b'{"a":1.0e5, "b":[]}'


def test_secret_whose_name_holds_other_letters_is_found() -> None:
    assert redacted({"Passwört_TOKEN_é": 1}) == {"Passwört_TOKEN_é": "[REDACTED]"}


trees = st.recursive(
    st.just("HIDDEN") | st.integers(0, 9),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["a", "b", "Token", "my-PWD"]), inner, max_size=3)
    ),
    max_leaves=12,
)


def naive(value: Any) -> Any:
    if isinstance(value, list):
        return [naive(item) for item in value]
    if isinstance(value, dict):
        secret = ("Token", "my-PWD")
        return {key: "[REDACTED]" if key in secret else naive(item) for key, item in value.items()}
    return value


@given(trees)
def test_redaction_is_that_of_the_naive_walk(value: Any) -> None:
    assert redacted(value) == naive(value)
