"""`aegis serve` beside a bare granian application, in one run: single evaluates, one worker each.

The bare application parses the same body, looks its (type, target) up in a dict and serialises a
ready answer: the least that any policy server in Python on granian could do. Needs `wrk`.

Run: python -m benchmarks.http [--seconds N] [--rounds N]
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import orjson

from benchmarks import workload

RULES = 1_000
ACTIONS = 10_000
CONNECTIONS = 32
PORTS = {"bare": 18641, "aegis": 18642}

BARE = """
import sys, orjson
from granian import Granian
from granian.http import HTTP1Settings

answers = {tuple(pair): answer for pair, answer in orjson.loads(open(sys.argv[2], "rb").read())}

async def app(scope, receive, send):
    if scope["type"] != "http":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    message = await receive()
    action = orjson.loads(message["body"])
    body = orjson.dumps(answers.get((action["action_type"], action["target"])))
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})

Granian("bare", port=int(sys.argv[1]), interface="asgi", http="1", websockets=False, loop="uvloop",
        http1_settings=HTTP1Settings(header_read_timeout=30000), log_enabled=False
        ).serve(target_loader=lambda: app, wrap_loader=False)
"""

SCRIPT = """
local bodies = {}
for line in io.lines("%s") do bodies[#bodies + 1] = line end
local at = math.random(#bodies)
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
request = function()
  at = at %% #bodies + 1
  return wrk.format(nil, "/api/v1/evaluate", nil, bodies[at])
end
"""


@contextmanager
def running(command: list[str], port: int) -> Iterator[None]:
    """A server while it is measured."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 15
        while True:
            try:
                body = b'{"action_type":"x","target":"y"}'
                url = f"http://127.0.0.1:{port}/api/v1/evaluate"
                urllib.request.urlopen(urllib.request.Request(url, body), timeout=1)
                break
            except urllib.error.HTTPError:
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait(30)


def rate(port: int, script: Path, seconds: int) -> float:
    """Requests a second."""
    output = subprocess.run(
        ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "-s", str(script), f"http://127.0.0.1:{port}"],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    if "Non-2xx" in output or "Socket errors" in output:
        raise RuntimeError(output)
    found = re.search(r"Requests/sec:\s+([\d.]+)", output)
    assert found is not None, output
    return float(found[1])


def measure(folder: Path, seconds: int, rounds: int) -> dict[str, list[float]]:
    """Rates of both servers, taken in turns."""
    policy = workload.policy(RULES)
    pairs = workload.actions(ACTIONS, RULES)
    rules = [
        {
            "name": rule.name,
            "match": {"type": rule.match_type, "target": rule.match_target},
            "risk_level": rule.risk_level.name,
            "approval": rule.approval.value,
        }
        for rule in policy.rules
    ]
    (folder / "policy.yaml").write_text(json.dumps({"rules": rules}))
    answer = {
        "risk_level": "CRITICAL", "approval": "block", "is_allowed": False, "matched_rule": "no_deletes",
    }  # fmt: skip
    ready = [(pair, {"action_type": pair[0], "target": pair[1], **answer}) for pair in pairs]
    (folder / "answers.json").write_bytes(orjson.dumps(ready))
    bodies = [
        orjson.dumps({"action_type": kind, "target": target}).decode() for kind, target in pairs
    ]
    (folder / "bodies").write_text("\n".join(bodies))
    (folder / "wrk.lua").write_text(SCRIPT % (folder / "bodies"))
    (folder / "bare.py").write_text(BARE)
    bare = [
        sys.executable,
        str(folder / "bare.py"),
        str(PORTS["bare"]),
        str(folder / "answers.json"),
    ]
    aegis = [
        sys.executable, "-c", "from aegis.cli import main; main()", "serve", str(folder / "policy.yaml"),
        "--port", str(PORTS["aegis"]), "--audit-db", str(folder / "audit.db"),
    ]  # fmt: skip
    commands = {"bare": bare, "aegis": aegis}
    rates: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(rounds):
        # One server at a time, started anew: which core a process comes to lie on moves its rate by
        # a third, for as long as it lives.
        for name in list(commands)[:: 1 if number % 2 else -1]:
            with running(commands[name], PORTS[name]):
                rate(PORTS[name], folder / "wrk.lua", 1)
                rates[name].append(rate(PORTS[name], folder / "wrk.lua", seconds))
    return rates


def main() -> None:
    """Print the median rates and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    if shutil.which("wrk") is None:
        sys.exit("wrk is not installed; Debian has it as `wrk`")
    with tempfile.TemporaryDirectory() as folder:
        rates = measure(Path(folder), options.seconds, options.rounds)
    for name, values in rates.items():
        print(
            f"{name:>6} {statistics.median(values):>8.0f} requests/s  {[round(v) for v in values]}"
        )
    medians = {name: statistics.median(values) for name, values in rates.items()}
    ratios = [ours / bare for ours, bare in zip(rates["aegis"], rates["bare"], strict=True)]
    print(f"of medians  {medians['aegis'] / medians['bare']:.3f}")
    print(f"of rounds   {statistics.median(ratios):.3f}  {[round(ratio, 2) for ratio in ratios]}")


if __name__ == "__main__":
    main()
