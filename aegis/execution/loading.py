"""Executors by name: `module:Class`, as `--executor` has it."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from aegis.errors import ConfigError
from aegis.execution.executors import Executor
from aegis.messages import quote

__all__ = ["load_executor"]


def load_executor(spec: str) -> Executor:
    """The executor that `module:Class` names, made; modules are also looked for here.

    Raises:
        ConfigError: There is none, or it cannot be made.
    """
    module_name, colon, name = spec.partition(":")
    if not (module_name and colon and name):
        raise ConfigError(f"executor {quote(spec)} must be written as `module:Class`")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module_name)
        for part in name.split("."):
            found = getattr(found, part)
        executor = found() if callable(found) else found
    except (Exception, SystemExit) as error:
        raise ConfigError(f"cannot load executor {quote(spec)}: {error}") from error
    if not callable(getattr(executor, "execute", None)):
        raise ConfigError(f"executor {quote(spec)} has no method `execute`")
    return executor  # type: ignore[no-any-return]
