"""granian has every member that `granian_server` uses, whether or not it promises it.

A release of granian that fails here needs a look at `granian_server` before it is allowed in
pyproject.toml.
"""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from typing import Any

import pytest
from granian import Granian
from granian.constants import HTTPModes, Interfaces, Loops
from granian.server.mp import MPServer, WorkerProcess

from aegis.server.runner import granian_server

CALLED_BY_GRANIAN = {
    "_serve_loop": ["self", "spawn_target", "target_loader"],
    "_spawn_workers": ["self", "spawn_target", "target_loader"],
    "_stop_workers": ["self"],
    "shutdown": ["self", "exit_code"],
    "signal_handler_interrupt": ["self", "args", "kwargs"],
    "signal_handler_reload": ["self", "args", "kwargs"],
}
"""Methods that we override: granian calls them with these parameters."""
CALLED_BY_US = {
    "serve": {"target_loader", "wrap_loader"},
    "_spawn_worker": {"idx", "target", "callback_loader"},
}
SERVER_ATTRIBUTES = {"main_loop_interrupt", "workers", "wrks"}
WORKER_MEMBERS = {"idx", "inner", "is_alive", "join", "kill", "start", "terminate", "_watcher"}
"""`_watcher` is set by us: `start` begins a thread with it."""
PROCESS_MEMBERS = {"exitcode", "join", "pid"}


@pytest.fixture
def server() -> Any:
    return Granian(
        target="aegis",
        interface=Interfaces.RSGI,
        http=HTTPModes.http1,
        websockets=False,
        loop=Loops.asyncio,
    )


def parameters(function: Any) -> list[str]:
    return list(inspect.signature(function).parameters)


@pytest.mark.parametrize("name", CALLED_BY_GRANIAN)
def test_method_that_is_overridden_is_still_called_the_same_way(name: str) -> None:
    assert parameters(getattr(Granian, name)) == CALLED_BY_GRANIAN[name]


@pytest.mark.parametrize("name", CALLED_BY_US)
def test_method_that_is_called_still_takes_the_same_arguments(name: str) -> None:
    assert set(parameters(getattr(Granian, name))) >= CALLED_BY_US[name]


def test_granian_still_goes_through_the_methods_that_are_overridden() -> None:
    calls = {
        "_serve": ("self.startup(", "self._serve_loop(", "self.shutdown("),
        "startup": (
            "self._spawn_workers(",
            "self.signal_handler_interrupt",
            "self.signal_handler_reload",
        ),
        "shutdown": ("self._stop_workers(",),
    }
    for name, used in calls.items():
        source = inspect.getsource(getattr(Granian, name))
        assert [call for call in used if call not in source] == []


@pytest.mark.parametrize("name", sorted(SERVER_ATTRIBUTES))
def test_server_has_the_attribute(server: Any, name: str) -> None:
    assert hasattr(server, name)


def test_worker_has_its_members_and_its_start_watches_it(server: Any) -> None:
    worker_class: Any = WorkerProcess
    worker = worker_class(server, 0, _serve_nothing, ())
    assert type(server) is MPServer
    assert [name for name in WORKER_MEMBERS if not hasattr(worker, name)] == []
    assert [name for name in PROCESS_MEMBERS if not hasattr(worker.inner, name)] == []
    assert "target=self._watcher" in inspect.getsource(type(worker)._watch)  # noqa: SLF001
    assert "self._watch()" in inspect.getsource(type(worker).start)


def test_no_other_member_of_granian_is_used() -> None:
    tree = ast.parse(Path(granian_server.__file__).read_text(encoding="utf-8"))
    server_class = next(
        node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Server"
    )
    ours = {node.name for node in server_class.body if isinstance(node, ast.FunctionDef)}
    used = {
        node.attr: getattr(node.value, "id", "")
        for node in ast.walk(server_class)
        if isinstance(node, ast.Attribute)
    }
    of_granian = {name for name in dir(Granian) if not name.startswith("__")}
    assert ours & of_granian == set(CALLED_BY_GRANIAN)
    attributes = {name for name, of in used.items() if of == "self" and name in of_granian - ours}
    assert attributes == {"_spawn_worker"}
    assert {name for name, of in used.items() if of == "worker"} <= WORKER_MEMBERS


def _serve_nothing() -> None:
    """What a worker of these tests would run, if it were started."""
