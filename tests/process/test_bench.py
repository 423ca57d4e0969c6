"""`aegis bench` and `python -m benchmarks`, as short as they can be."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.__main__ import compare
from tests.process.server import Server, end_of

ROOT = Path(__file__).parents[2]
POLICY = 'rules: [{name: reads, match: {type: "read*"}, conditions: {param_gt: {n: 1}}, approval: auto}]\n'


@pytest.fixture(autouse=True)
def policy(tmp_path: Path) -> Path:
    """A small policy in the working folder."""
    (tmp_path / "policy.yaml").write_text(POLICY)
    return tmp_path / "policy.yaml"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_json_has_every_figure(tmp_path: Path) -> None:
    done = end_of(tmp_path, "bench", "policy.yaml", "--seconds", "0.3", "--rate", "200", "--json")
    assert done.code == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["machine"]["cores"] > 0
    assert result["versions"]["granian"]
    (engine,) = result["engine"]
    for figure in (
        engine["single_ns"],
        engine["batch_ns"],
        result["json"]["parse_batch_ns"],
        result["audit"]["many_writers_per_s"],
    ):
        assert figure["min"] <= figure["median"] <= figure["max"]
    (server,) = result["http"]["servers"].values()
    assert server["errors"] == 0
    assert server["requests_per_s"]["median"] > 100
    assert server["cpu_us_a_request"]["median"] > 1
    assert server["tails_ms"]["p99"]["median"] > 0
    assert done.stderr == ""


def test_running_server_is_measured_with_its_key_and_own_actions(tmp_path: Path) -> None:
    (tmp_path / "actions.jsonl").write_text('{"action_type": "read"}\n\n{"action_type": "write"}\n')
    options = ("--actions", "actions.jsonl", "--seconds", "0.3", "--rate", "200")
    with Server(tmp_path, env={"AEGIS_API_KEY": "k"}) as server:
        url = f"http://127.0.0.1:{server.port}"
        done = end_of(
            tmp_path, "bench", "policy.yaml", "--url", url, *options, env={"AEGIS_API_KEY": "k"}
        )
        assert done.code == 0, done.stderr
        assert "requests/s" in done.stdout
        assert done.stdout.splitlines()[2].split()[-1] == "0"  # errors
        refused = end_of(tmp_path, "bench", "policy.yaml", "--url", url, *options)
        assert int(refused.stdout.splitlines()[2].split()[-1]) > 10


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--actions", "none"), "cannot read the actions `none`"),
        (("--actions", "bad.jsonl"), "bad.jsonl:2: `action_type` is missing"),
        (("--url", "http://127.0.0.1:1"), "cannot reach `http://127.0.0.1:1`"),
        (("--seconds", "0"), "--seconds"),
    ],
)
def test_what_cannot_be_measured_is_exit_code_2(
    tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    (tmp_path / "bad.jsonl").write_text('{"action_type": "read"}\n{}\n')
    done = end_of(tmp_path, "bench", "policy.yaml", *arguments)
    assert (done.code, done.stdout) == (2, "")
    assert said in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_full_benchmark_writes_its_results(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--quick", "--out", tmp_path / "out"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {
        "results.json",
        "report.md",
        "engine.svg",
        "shapes.svg",
        "throughput.svg",
        "tails.svg",
    }
    result = json.loads((tmp_path / "out" / "results.json").read_text())
    assert result["memory"]["grown_bytes"] < 2**20
    measured = {bar["of"] for bar in result["bars"] if bar["measured"] is not None}
    assert "engine, 10 rules: single over dict" in measured
    assert {"bare ASGI", "bare RSGI"} < set(result["http"]["servers"])
    assert "| not measured |" in (tmp_path / "out" / "report.md").read_text()


def test_runs_that_are_too_far_apart_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    one, other = ({"audit": {"ratios": {"a": value}}} for value in (1.0, 1.16))
    assert compare(one, one) == 0
    assert compare(one, other) == 1
    assert "16.0%" in capsys.readouterr().out
