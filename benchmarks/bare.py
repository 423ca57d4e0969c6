"""The least that a policy server in Python on granian could do: what Aegis is held against.

It parses the same body, looks type and target up in a dict, and serialises a ready answer.

Run: python -m benchmarks.bare PORT ANSWERS
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import orjson
from granian import Granian
from granian.constants import HTTPModes, Interfaces, Loops
from granian.http import HTTP1Settings

READY = orjson.loads(Path(sys.argv[2]).read_bytes()) if len(sys.argv) > 2 else []
ANSWERS = {tuple(pair): answer for pair, answer in READY}


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answer from the dict."""
    if scope["type"] != "http":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    message = await receive()
    action = orjson.loads(message["body"])
    body = orjson.dumps(ANSWERS.get((action["action_type"], action["target"])))
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


if __name__ == "__main__":
    Granian(
        "bare",
        port=int(sys.argv[1]),
        interface=Interfaces.ASGI,
        http=HTTPModes.http1,
        websockets=False,
        loop=Loops.uvloop,
        http1_settings=HTTP1Settings(header_read_timeout=30_000),
        log_enabled=False,
    ).serve(target_loader=lambda: app, wrap_loader=False)
