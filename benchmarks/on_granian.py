"""granian for applications that are measured, with the settings of `aegis serve`."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from granian import Granian
from granian.constants import HTTPModes, Interfaces, Loops
from granian.http import HTTP1Settings


def serve(
    load: Callable[[], Any], port: int, interface: Interfaces, *, in_turns: bool = False
) -> None:
    """Serve what is loaded in the worker, until a signal ends it.

    Args:
        load: Gives the application; called in the worker.
        port: On the loopback.
        interface: What the application speaks.
        in_turns: Let the worker's threads take turns, as `aegis serve` does.
    """

    def load_in_turns() -> Any:
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        return load()

    Granian(
        "measured",
        port=port,
        interface=interface,
        http=HTTPModes.http1,
        websockets=False,
        loop=Loops.uvloop,
        http1_settings=HTTP1Settings(header_read_timeout=30_000),
        log_enabled=False,
    ).serve(target_loader=load_in_turns if in_turns else load, wrap_loader=False)
