"""Heads of the audit that were kept elsewhere, as `aegis audit verify` is given them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from aegis.audit.signing import is_signed_by
from aegis.audit.verify import Pin
from aegis.errors import ConfigError, InvalidHead
from aegis.messages import quote

__all__ = ["as_hash", "read_pin"]

_MAX_SMALL_FILE_BYTES = 1024 * 1024


def as_hash(text: str) -> bytes | None:
    """The hash that a text is; None: it is none."""
    try:
        return bytes.fromhex(text) if len(text) == 64 else None
    except ValueError:
        return None


def read_pin(text: str, public_key: str | None) -> Pin:
    """The entry that a head names, as it was given on the command line.

    Args:
        text: Its hash, or a file with the JSON of `aegis audit head`.
        public_key: A file with the key that must have signed it; None: any head counts.

    Raises:
        ConfigError: It is neither, or cannot be read.
        InvalidHead: It is not signed by that key.
    """
    if (hashed := as_hash(text)) is not None:
        return Pin(hashed)
    try:
        kept = json.loads(_read(text, "the head"))
        number = kept["id"]
        if type(number) is not int or number < 0:
            raise ValueError
        pin = Pin(bytes.fromhex(kept["hash"]), number)
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ConfigError(f"{quote(text)} is no head as `aegis audit head` prints it") from None
    if public_key is not None and not is_signed_by(kept, _read(public_key, "the public key")):
        raise InvalidHead(_signature_fault(kept, text, public_key))
    return pin


def _read(path: str, what: str) -> bytes:
    """A file that is small, or is not what it should be."""
    try:
        with Path(path).open("rb") as file:
            data = file.read(_MAX_SMALL_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {what} {quote(path)}: {error.strerror}") from None
    if len(data) > _MAX_SMALL_FILE_BYTES:
        raise ConfigError(f"{what} {quote(path)} is over {_MAX_SMALL_FILE_BYTES} bytes")
    return data


def _signature_fault(head: dict[str, Any], file: str, public_key: str) -> str:
    """Why a head does not count as signed."""
    said = f"the head {quote(file)}"
    if "signature" not in head:
        return f"{said} is not signed; a server with `--audit-signing-key` signs its heads"
    try:
        is_of_another = is_signed_by(head, str(head.get("public_key")).encode())
    except ConfigError:
        is_of_another = False
    if is_of_another:
        return f"{said} was signed by another key than {quote(public_key)}"
    return f"the signature of {said} is wrong: the head was changed after it was signed"
