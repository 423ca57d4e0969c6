"""`GET /api/v1/audit`: the records, filtered, oldest first, streamed where they are many."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

import pytest

from aegis.audit import reader
from tests.contract.client import AUDIT, EXECUTE, Client, Reply, served

ACTIONS: list[dict[str, Any]] = [
    {"type": "read", "target": "a", "agent_id": "x", "session_id": "s1"},
    {"type": "write", "target": "b", "agent_id": "y", "session_id": "s1"},
    {"type": "delete", "target": "c", "agent_id": "x", "session_id": "s2"},
    {"type": "read", "target": "d", "session_id": "s2"},
    {"type": "unheard of", "target": "e", "agent_id": "y", "session_id": "s3"},
    {"type": "write", "target": "f", "agent_id": "x", "session_id": "s1"},
]


@pytest.fixture
def client() -> Iterator[Client]:
    with served() as client:
        client.post(EXECUTE, ACTIONS)
        yield client


def targets(client: Client, query: str) -> str:
    """The targets of the records that a query finds."""
    return "".join(record["action_target"] for record in client.records(query))


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("", "abcdef"),
        ("?", "abcdef"),
        ("?action_type=read", "ad"),
        ("?action_type=rea", ""),
        ("?action_type=READ", ""),
        ("?action_type=read*", ""),
        ("?action_type=unheard+of", "e"),
        ("?action_type=unheard%20of", "e"),
        ("?session_id=s1", "abf"),
        ("?session_id=unknown", ""),
        ("?agent_id=x", "acf"),
        ("?matched_rule=writes", "bf"),
        ("?matched_rule=%3Cdefault%3E", "e"),
        ("?risk_level=HIGH", "bf"),
        ("?risk_level=high", "bf"),
        ("?risk_level=hIgH", "bf"),
        ("?result_status=blocked", "ce"),
        ("?result_status=denied", ""),
        ("?agent_id=x&session_id=s1", "af"),
        ("?agent_id=x&session_id=s1&action_type=write", "f"),
        ("?agent_id=x&matched_rule=%3Cdefault%3E", ""),
        ("?after=4", "ef"),
        ("?before=3", "ab"),
        ("?after=1&before=4", "bc"),
        ("?after=6", ""),
        ("?after=0", "abcdef"),
        ("?before=0", ""),
        ("?after=9223372036854775807", ""),
        ("?limit=2", "ef"),
        ("?limit=1", "f"),
        ("?limit=0", ""),
        ("?limit=6", "abcdef"),
        ("?limit=1000000000", "abcdef"),
        ("?limit=2&agent_id=x", "cf"),
        ("?limit=2&after=1", "bc"),
        ("?limit=2&after=0", "ab"),
        ("?limit=2&before=5", "cd"),
        ("?limit=2&after=1&agent_id=x", "cf"),
        ("?limit=2&after=1&before=6&agent_id=x", "c"),
        ("?limit=1&action_type=unknown", ""),
        ("?limit=0&after=1", ""),
        ("?since=1970-01-01T00:00:00Z", "abcdef"),
        ("?until=1970-01-01T00:00:00Z", ""),
        ("?since=2999-01-01T00:00:00Z", ""),
        ("?until=2999-01-01t00:00:00.5z", "abcdef"),
        ("?since=1970-01-01T00:00:00%2B01:00", "abcdef"),
        ("?since=1970-01-01T00:00:00+01:00", "abcdef"),
        ("?since=1970-01-01T00:00:00-23:59", "abcdef"),
        ("?since=1970-01-01%2000:00:00.123456789Z", "abcdef"),
        ("?session_id=&agent_id=&limit=&since=&risk_level=", "abcdef"),
        ("?action_type=&agent_id=y", "be"),
    ],
)
def test_filter_finds_exactly_its_records_oldest_first(
    client: Client, query: str, found: str
) -> None:
    assert targets(client, query) == found


@pytest.mark.parametrize(
    "query",
    [
        "nope=1",
        "Session_id=s1",
        "nope=",
        "risk_level=severe",
        "risk_level=3",
        "risk_level=*",
        "result_status=done",
        "result_status=SUCCESS",
        "limit=-1",
        "limit=1.5",
        "limit=ten",
        "limit=1000000001",
        "limit=1e3",
        "limit=%D9%A1",
        "limit=0x1",
        "after=-1",
        "after=x",
        "before=9223372036854775808",
        "before=99999999999999999999999",
        "since=yesterday",
        "since=2026-01-31",
        "since=2026-01-31T18:00:00",
        "since=2026-02-30T18:00:00Z",
        "since=2026-01-31T25:00:00Z",
        "since=1706724000",
        "until=2026-01-31T18:00Z",
        "until=20260131T180000Z",
        "until=2026-01-31T18:00:00%2B99:00",
        "until=0000-01-01T00:00:00Z",
        "action_type=%FF",
        "action_type=%ED%A0%80",
    ],
)
def test_impossible_query_is_refused(client: Client, query: str) -> None:
    reply = client.get(f"{AUDIT}?{query}")
    assert (reply.status, reply.code) == (400, "invalid_query")


@pytest.mark.parametrize(("name", "hint"), [("sesion_id", "session_id"), ("action", "action_type")])
def test_unknown_parameter_is_told_what_it_may_have_meant(
    client: Client, name: str, hint: str
) -> None:
    assert f"did you mean `{hint}`" in client.get(f"{AUDIT}?{name}=1").json["error"]


def test_since_and_until_are_inclusive(client: Client) -> None:
    times = [quote(record["timestamp"]) for record in client.records()]
    assert targets(client, f"?since={times[0]}") == "abcdef"
    assert "f" in targets(client, f"?since={times[-1]}")
    assert "a" in targets(client, f"?until={times[0]}")
    assert targets(client, f"?until={times[-1]}") == "abcdef"


def test_since_and_until_tell_microseconds_apart(client: Client) -> None:
    first = datetime.fromisoformat(client.records()[0]["timestamp"]).astimezone(UTC)
    before = (first - timedelta(microseconds=1)).isoformat(timespec="microseconds")
    assert targets(client, f"?until={quote(before)}") == ""
    assert targets(client, f"?since={quote(before)}") == "abcdef"


def test_ids_grow_by_one_from_one(client: Client) -> None:
    assert [record["id"] for record in client.records()] == [1, 2, 3, 4, 5, 6]


def test_filter_takes_any_text() -> None:
    with served() as client:
        for text in ("ä b+c&d=e", "日本", "a\x00b", "%41", "'\"\\"):
            client.post(EXECUTE, {"type": "read", "agent_id": text, "target": "t"})
            found = client.records(f"?agent_id={quote(text, safe='')}")
            assert [record["agent_id"] for record in found] == [text]


def test_paging_by_after_walks_through_all_records(client: Client) -> None:
    walked: list[int] = []
    while page := client.records(f"?after={walked[-1] if walked else 0}&limit=4"):
        walked += [record["id"] for record in page]
    assert walked == [1, 2, 3, 4, 5, 6]


def test_no_record_is_an_empty_list() -> None:
    with served() as client:
        assert client.get(AUDIT).body == b"[]"


@pytest.mark.parametrize("count", [499, 500, 501, 1_000, 1_234])
def test_all_records_are_streamed_in_order_whatever_their_number(count: int) -> None:
    with served() as client:
        client.post(EXECUTE, [{"type": "read", "target": str(n)} for n in range(count)])
        reply = client.get(AUDIT)
        assert [record["action_target"] for record in reply.json] == [
            str(number) for number in range(count)
        ]
        assert reply.parts == 1 or count > 500


@pytest.mark.parametrize(
    ("query", "first", "count"),
    [
        ("?limit=700", 534, 700),
        ("?limit=700&after=0", 0, 700),
        ("?limit=500", 734, 500),
        ("?after=500", 500, 734),
        ("?before=1001&limit=600", 400, 600),
    ],
)
def test_limit_holds_over_pages(query: str, first: int, count: int) -> None:
    with served() as client:
        client.post(EXECUTE, [{"type": "read", "target": str(n)} for n in range(1_234)])
        found = [record["action_target"] for record in client.records(query)]
        assert found == [str(number) for number in range(first, first + count)]


def test_large_records_are_streamed_in_small_parts() -> None:
    with served() as client:
        for _ in range(12):
            client.post(EXECUTE, {"type": "read", "description": "x" * 1_000_000})
        reply = client.get(AUDIT)
        assert len(reply.json) == 12
        assert reply.parts > 2


def test_refused_filter_is_refused_before_anything_is_sent(client: Client) -> None:
    reply = client.get(f"{AUDIT}?limit=2&limit=3")
    assert reply.status == 400


@pytest.mark.parametrize("path", [AUDIT, f"{AUDIT}/head"])
def test_readings_wait_for_their_turn_and_too_many_are_refused(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "MAX_READING", 1)
    monkeypatch.setattr(reader, "MAX_WAITING", 2)

    async def scenario(client: Client) -> list[Reply]:
        return await asyncio.gather(*[client.request("GET", path) for _ in range(5)])

    with served() as client:
        replies = client.run(scenario(client))
        assert sorted(reply.status for reply in replies) == [200, 200, 200, 503, 503]
        for reply in replies:
            if reply.status == 503:
                assert (reply.code, reply.header("retry-after")) == ("audit_busy", "1")
        assert client.get(path).status == 200
