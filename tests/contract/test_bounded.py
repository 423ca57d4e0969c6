"""No request holds the event loop, and what one may cost is bounded: the others do not wait."""

from __future__ import annotations

import asyncio
import gc
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from aegis.errors import ConfigError
from tests.contract.client import EVALUATE, EXECUTE, POLICY_PATH, Client, Reply, app_of, served

MAX_S = 0.06
"""Of the processor's time, since other processes share the machine; without pieces it is seconds."""

COMPARISONS = json.dumps(
    {"rules": [{"conditions": {"param_gt": {"n": 1_000_000 + n}}} for n in range(500)]}
)
MEMBERS = json.dumps(
    {"rules": [{"conditions": {"param_contains": {"l": f"x{n}"}}} for n in range(200)]}
)
SEARCHES = json.dumps(
    {"rules": [{"conditions": {"param_matches": {f"p{n}": "a[ab]{900}c"}}} for n in range(16)]}
)


def batch_of(action: dict[str, Any], count: int) -> list[dict[str, Any]]:
    return [{"action_type": "a", "target": str(number), **action} for number in range(count)]


HOSTILE: list[tuple[str, str, Any]] = [
    (EVALUATE, COMPARISONS, {"actions": batch_of({"params": {"n": 1}}, 10_000)}),
    (EVALUATE, COMPARISONS, batch_of({"params": {"n": 1}}, 2_000)),
    (EVALUATE, COMPARISONS, batch_of({"params": {"n": 1}, "description": "odd"}, 3_000)),
    (EXECUTE, COMPARISONS, batch_of({"params": {"n": 1}}, 3_000)),
    (EVALUATE, MEMBERS, {"action_type": "a", "params": {"l": [1] * 500_000}}),
    (EXECUTE, MEMBERS, {"action_type": "a", "params": {"l": [1] * 500_000}}),
    (
        EVALUATE,
        SEARCHES,
        {"action_type": "a", "params": {f"p{n}": "ab" * 32_000 for n in range(16)}},
    ),
]


async def longest_gap(asked: asyncio.Task[Reply]) -> float:
    """The longest time for which the loop did nothing else while a request was answered."""
    longest, last = 0.0, time.process_time()
    while not asked.done():
        await asyncio.sleep(0)
        now = time.process_time()
        longest, last = max(longest, now - last), now
    return longest


@pytest.fixture
def no_collection() -> Iterator[None]:
    """As in a worker, which does not look at what it was started with again."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.slow
@pytest.mark.usefixtures("no_collection")
@pytest.mark.parametrize(("path", "policy", "asked"), HOSTILE)
def test_loop_is_given_back_whatever_a_request_holds(path: str, policy: str, asked: Any) -> None:
    async def scenario(client: Client) -> tuple[float, Reply]:
        body = json.dumps(asked, separators=(",", ":")).encode()
        task = asyncio.ensure_future(client.request("POST", path, body=body))
        gap = await longest_gap(task)
        return gap, task.result()

    with served(app_of(policy)) as client:
        gap, reply = client.run(scenario(client))
    assert reply.status == 200
    assert gap < MAX_S


@pytest.mark.slow
def test_whole_batch_is_decided_by_one_policy_though_others_are_put_meanwhile() -> None:
    asked = {"actions": batch_of({"params": {"n": 1}}, 10_000)}

    async def scenario(client: Client) -> Reply:
        slow = asyncio.ensure_future(client.request("POST", EVALUATE, asked))
        await asyncio.sleep(0)
        put = await client.request("PUT", POLICY_PATH, {"rules": [{"approval": "auto"}]})
        assert put.status == 200
        return await slow

    with served(app_of(COMPARISONS)) as client:
        decided = client.run(scenario(client)).json
    assert {one["matched_rule"] for one in decided} == {"<default>"}


@pytest.mark.parametrize("path", [EVALUATE, EXECUTE])
def test_what_the_budget_does_not_suffice_for_blocks(path: str) -> None:
    with served(app_of(COMPARISONS, condition_budget=1_200)) as client:
        results = client.post(path, batch_of({"params": {"n": 1}}, 4)).json
        alone = client.post(path, batch_of({"params": {"n": 1}}, 1)[0]).json
    if path == EVALUATE:
        assert [one["matched_rule"] for one in results] == [
            "<default>", "<default>", "rule_200", "rule_0",
        ]  # fmt: skip
        assert {one["approval"] for one in results} == {"block"}
        assert "budget of 1200 units" in results[3]["error"]
        assert alone["matched_rule"] == "<default>"
    else:
        assert [one["status"] for one in results] == ["blocked"] * 4


def test_single_action_over_the_budget_says_so() -> None:
    with served(app_of(COMPARISONS, condition_budget=10)) as client:
        decided = client.post(EVALUATE, {"action_type": "a", "params": {"n": 1}}).json
    assert decided["matched_rule"] == "rule_10"
    assert (decided["approval"], decided["risk_level"]) == ("block", "CRITICAL")


@pytest.mark.one_interface
@pytest.mark.parametrize("budget", ["0", "-1", "many", ""])
def test_budget_of_the_environment_is_checked(budget: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AEGIS_CONDITION_BUDGET", budget)
    if budget:
        with pytest.raises(ConfigError, match="AEGIS_CONDITION_BUDGET"):
            app_of()
    else:
        app_of()
