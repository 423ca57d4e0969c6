"""The benchmark harness: its workloads, its arithmetic, its open loop, its report."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from xml.etree import ElementTree

import pytest

from aegis.bench import deciding, measure, parts, plots, report, shapes, workload
from aegis.bench.load import Load, open_loop, throughput
from aegis.errors import ConfigError
from aegis.policy.conditions import compile_conditions
from aegis.policy.loader import load_text
from aegis_core import compile_policy

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
REFUSAL = b"HTTP/1.1 503 No\r\nContent-Length: 2\r\n\r\n{}"

# --- workloads -----------------------------------------------------------------------------------


def test_policy_and_actions_are_the_same_each_time() -> None:
    assert workload.policy(50) == workload.policy(50)
    assert workload.actions(50, 50) == workload.actions(50, 50)


def test_actions_are_distinct() -> None:
    assert len({question[:3] for question in workload.actions(2_000, 100)}) == 2_000


@pytest.mark.parametrize("shape", shapes.SHAPES)
def test_shape_is_a_policy_that_loads_and_whose_actions_reach_it(shape: str) -> None:
    policy, questions = shapes.adversarial(shape, 100)
    assert len(load_text(workload.as_text(policy)).policy.rules) == 100
    engine = compile_policy(policy, condition=compile_conditions)
    matched = [engine.evaluate(*question).matched_rule != "<default>" for question in questions]
    assert sum(matched) / len(matched) > 0.2
    assert len({question[:3] for question in questions}) == len(questions)


def test_actions_for_a_policy_reach_its_rules_and_its_defaults() -> None:
    policy = load_text(
        'rules: [{match: {type: "pay*", agent: "a-[xy]?"}, conditions: {param_gt: {n: 3}}},'
        ' {match: {type: read, target: "x/*"}}]'
    ).policy
    questions = workload.actions_for(policy, 500)
    engine = compile_policy(policy, condition=compile_conditions)
    assert {engine.evaluate(*question).matched_rule for question in questions} == {
        "rule_0",
        "rule_1",
        "<default>",
    }
    assert len({question[:3] for question in questions}) == len(questions)


def test_fresh_questions_are_equal_and_other_objects() -> None:
    questions = workload.actions(5, 5)
    again = workload.fresh(questions)
    assert again == questions
    assert all(new[0] is not old[0] for new, old in zip(again, questions, strict=True))


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([b'{"action_type": "a"}\n', b"{\n"], "f:2: the body is not JSON"),
        ([b"\n", b'{"target": "x"}\n'], "f:2: `action_type` is missing"),
        ([b"\n"], "f has no actions"),
    ],
)
def test_bad_line_of_actions_is_named(lines: list[bytes], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        workload.read_actions(lines, "f")


# --- arithmetic ----------------------------------------------------------------------------------


def test_contestants_take_turns_and_the_first_round_does_not_count() -> None:
    order: list[str] = []

    def contestant(name: str) -> float:
        order.append(name)
        return float(len(order))

    found = measure.turns(
        {"a": lambda: contestant("a"), "b": lambda: contestant("b")}, 2, lambda: None
    )
    assert order == ["b", "a", "a", "b", "b", "a"]
    assert found == {"a": [3.0, 6.0], "b": [4.0, 5.0]}


def test_ratio_is_the_median_of_those_within_the_rounds() -> None:
    assert measure.ratio([2, 30, 8], [1, 10, 2]) == 3


def test_percentiles_are_those_of_all_latencies() -> None:
    load = Load(1_000, 0, 2.0, [float(ms) for ms in range(1_000)], "open loop")
    assert load.per_s == 500
    assert load.percentiles_ms == {"p50": 500, "p90": 900, "p99": 990, "p99.9": 999, "max": 999}


# --- loads ---------------------------------------------------------------------------------------


@contextmanager
def answering(
    stall_s: float = 0.0, *, bad_from: int = 10**9, hang_up: bool = False
) -> Iterator[str]:
    """A server that answers at once, but stalls once, with the 50th request."""
    loop = asyncio.new_event_loop()
    count = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        try:
            while True:
                await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(2)
                count += 1
                if hang_up:
                    break
                if count == 50 and stall_s:
                    threading.Event().wait(stall_s)  # the whole server stands still
                writer.write(REFUSAL if count >= bad_from else ANSWER)
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()

    server = loop.run_until_complete(asyncio.start_server(serve, "127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        server.close()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


def test_open_loop_sends_at_its_rate() -> None:
    with answering() as url:
        load = open_loop(url, [b"{}"], per_s=500, seconds=0.5)
    assert (load.requests, load.errors, load.by) == (250, 0, "open loop")
    assert 300 < load.per_s < 520


def test_open_loop_counts_the_wait_of_requests_that_came_while_the_server_stood_still() -> None:
    with answering(stall_s=0.3) as url:
        load = open_loop(url, [b"{}"], per_s=500, seconds=0.6, connections=4)
    late = [latency for latency in load.latencies_ms if latency > 50]
    # Of a closed loop only the four on their way would have waited.
    assert len(late) > 50
    assert max(late) > 250


def test_open_loop_counts_refusals_as_errors() -> None:
    with answering(bad_from=51) as url:
        load = open_loop(url, [b"{}"], per_s=500, seconds=0.2)
    assert (load.requests, load.errors) == (50, 50)


def test_open_loop_counts_lost_connections_as_errors() -> None:
    with answering(hang_up=True) as url:
        load = open_loop(url, [b"{}"], per_s=500, seconds=0.1, connections=3)
    assert (load.requests, load.errors) == (0, 50)


def test_closed_loop_keeps_its_connections_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")  # where there is no wrk
    with answering() as url:
        load = throughput(url, [b"{}"], seconds=0.3, connections=4)
    assert load.by == "closed loop"
    assert load.requests > 100
    assert load.errors == 0


@pytest.mark.parametrize(
    "url", ["https://x", "ftp://x", "127.0.0.1:80", "http://x/path", "http://x:y"]
)
def test_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="must be as in"):
        open_loop(url, [b"{}"], per_s=1, seconds=1)


def test_server_that_is_not_there_is_said() -> None:
    with pytest.raises(ConfigError, match="cannot reach"):
        open_loop("http://127.0.0.1:1", [b"{}"], per_s=1, seconds=1)


# --- parts and report ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def result() -> dict[str, object]:
    """A run of all parts, as small as they can be."""
    policy, questions = workload.policy(20), workload.actions(200, 20)
    server = {
        "by": "wrk",
        "requests_per_s": measure.figures([1.0, 2.0]),
        "cpu_us_a_request": measure.figures([3.0]),
        "tails_ms": {
            name: measure.figures([1.0]) for name in ("p50", "p90", "p99", "p99.9", "max")
        },
        "errors": 0,
    }
    return {
        "machine": measure.machine(),
        "versions": measure.versions(),
        "engine": [
            deciding.engine(policy, questions, rounds=2),
            deciding.engine(workload.policy(40), questions, rounds=2),
        ],
        "shapes": [{"shape": "sets", **deciding.engine(policy, questions, rounds=2)}],
        "json": parts.json_parts(policy, questions, rounds=2),
        "audit": parts.audit(rounds=2),
        "http": {
            "open_loop_per_s": 1_000,
            "servers": {"aegis": server, "a <bare> one": server},
            "ratios": {"aegis rate over bare": 1.0},
        },
    }


@pytest.mark.slow
def test_every_part_has_figures_that_can_be(result: dict[str, object]) -> None:
    ratios = report.ratios_of(result)
    assert len(ratios) == 25
    assert all(value > 0 for value in ratios.values())


@pytest.mark.slow
def test_report_has_every_table_and_plot(result: dict[str, object]) -> None:
    text = report.markdown(result, ["engine.svg"])
    for title in ("Engine", "Shapes that are hard", "JSON", "Audit", "HTTP", "Ratios"):
        assert f"## {title}" in text
    assert "![engine](engine.svg)" in text
    assert str(measure.versions()["granian"]) in text


@pytest.mark.slow
def test_plots_are_drawings_with_titles_and_units(result: dict[str, object]) -> None:
    drawn = plots.plots(result)
    assert set(drawn) == {"engine.svg", "shapes.svg", "throughput.svg", "tails.svg"}
    for plot in drawn.values():
        drawing = ElementTree.fromstring(plot)
        texts = [text.text for text in drawing.iter("{http://www.w3.org/2000/svg}text")]
        assert any(
            word in " ".join(map(str, texts)) for word in ("ns a decision", "requests/s", "ms")
        )
