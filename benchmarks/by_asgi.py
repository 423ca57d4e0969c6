"""Our application on granian's ASGI, to be held against `aegis serve`, which uses its RSGI.

Run: python -m benchmarks.by_asgi PORT POLICY DATABASE
"""

from __future__ import annotations

import sys

from granian.constants import Interfaces

from aegis.server import create_app
from benchmarks.on_granian import serve

if __name__ == "__main__":
    serve(
        lambda: create_app(sys.argv[2], sys.argv[3]),
        int(sys.argv[1]),
        Interfaces.ASGI,
        in_turns=True,
    )
