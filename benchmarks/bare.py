"""The least that a policy server in Python on granian could do: what Aegis is held against.

It parses the same body, looks type and target up in a dict, and serialises a ready answer.

Run: python -m benchmarks.bare PORT ANSWERS [asgi|rsgi] [in-turns]
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import orjson
from granian.constants import Interfaces

from benchmarks.on_granian import serve

READY = orjson.loads(Path(sys.argv[2]).read_bytes()) if len(sys.argv) > 2 else []
ANSWERS = {tuple(pair): answer for pair, answer in READY}
INTERFACE = Interfaces.RSGI if "rsgi" in sys.argv[3:] else Interfaces.ASGI


def answer_to(body: bytes) -> bytes:
    """The answer that lies ready."""
    action = orjson.loads(body)
    return orjson.dumps(ANSWERS.get((action["action_type"], action["target"])))


async def over_asgi(scope: Any, receive: Any, send: Any) -> None:
    """Answer as an ASGI application."""
    if scope["type"] != "http":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    message = await receive()
    body = answer_to(message["body"])
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def over_rsgi(_: Any, protocol: Any) -> None:
    """Answer as an RSGI application."""
    body = answer_to(await protocol())
    protocol.response_bytes(200, [("content-type", "application/json")], body)


if __name__ == "__main__":
    app = over_rsgi if INTERFACE is Interfaces.RSGI else over_asgi
    serve(lambda: app, int(sys.argv[1]), INTERFACE, in_turns="in-turns" in sys.argv[3:])
