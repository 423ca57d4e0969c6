"""The policy that a command is given: a file, or standard input."""

from __future__ import annotations

import sys

from aegis.cli.parameters import DASH
from aegis.errors import ConfigError
from aegis.policy.loader import MAX_POLICY_BYTES, LoadedPolicy, load_text
from aegis.server import load_policy_file

__all__ = ["load_policy", "name_of"]


def load_policy(path: str) -> LoadedPolicy:
    """Load a policy file; `-` is standard input.

    Raises:
        PolicyError: It is refused.
        ConfigError: It cannot be read.
    """
    if path != DASH:
        return load_policy_file(path)
    if sys.stdin is None:
        raise ConfigError("cannot read standard input: it is closed")
    try:
        text = sys.stdin.buffer.read(MAX_POLICY_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot read standard input: {error.strerror}") from None
    return load_text(text)


def name_of(path: str) -> str:
    """What messages call it."""
    return "<stdin>" if path == DASH else path
