"""The API's description is true: Schemathesis, with all its checks, finds nothing in a live server.

`AEGIS_API_EXAMPLES=1000` and `AEGIS_API_SEED=…` make it search longer, and elsewhere.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.process.server import Server

EXAMPLES = os.environ.get("AEGIS_API_EXAMPLES", "15")
SEED = os.environ.get("AEGIS_API_SEED", "1")

# What the formats of the description mean that no JSON Schema has. A PUT whose If-Match names another
# version is refused with 412, whatever its body; a GET whose If-None-Match fits is answered with 304.
HOOKS = """\
import json
import schemathesis
from hypothesis import strategies

texts = strategies.from_regex(r"[a-z0-9_.*?-]{0,12}", fullmatch=True)
expressions = r"\\^?([a-z0-9]|\\.|[a-z]\\*|\\[[a-f]+\\])*\\$?"
schemathesis.openapi.format("re2", strategies.from_regex(expressions, fullmatch=True))
schemathesis.openapi.format("time-zone", strategies.sampled_from(["UTC", "Europe/Paris"]))
schemathesis.openapi.format(
    "policy", texts.map(lambda text: "rules: [{match: {type: " + json.dumps(text) + "}}]")
)
"""
CONFIGURATION = """\
hooks = "hooks.py"
[checks]
positive_data_acceptance.expected-statuses = ["2xx", "304", "401", "403", "404", "409", "412"]
"""


@pytest.mark.slow
@pytest.mark.timeout(0)
@pytest.mark.parametrize("key", [None, "the-admin-key"])
def test_schemathesis_finds_nothing(tmp_path: Path, key: str | None) -> None:
    (tmp_path / "hooks.py").write_text(HOOKS)
    (tmp_path / "schemathesis.toml").write_text(CONFIGURATION)
    (tmp_path / "policy.yaml").write_text('rules: [{match: {type: "*"}, approval: auto}]\n')
    headers = () if key is None else ("-H", f"X-API-Key: {key}")
    with Server(tmp_path, env={} if key is None else {"AEGIS_ADMIN_KEY": key}) as server:
        done = subprocess.run(
            [
                *(Path(sys.executable).parent / "st", "--config-file", "schemathesis.toml", "run"),
                *(f"{server.url}/openapi.json", "--checks", "all", "--continue-on-failure"),
                *("--seed", SEED, "-n", EXAMPLES, "--generation-database", "none", *headers),
            ],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    # All but the route of the description itself, which it leaves out.
    assert "16 selected / 16 total" in done.stdout
