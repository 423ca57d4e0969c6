"""granian for applications that are measured, set up as quick as `aegis serve` sets it up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from granian import Granian
from granian.constants import HTTPModes, Interfaces, Loops
from granian.http import HTTP1Settings


def serve(load: Callable[[], Any], port: int, interface: Interfaces) -> None:
    """Serve what is loaded in the worker, until a signal ends it."""
    Granian(
        "measured",
        port=port,
        interface=interface,
        http=HTTPModes.http1,
        websockets=False,
        loop=Loops.uvloop,
        http1_settings=HTTP1Settings(header_read_timeout=30_000),
        log_enabled=False,
    ).serve(target_loader=load, wrap_loader=False)
