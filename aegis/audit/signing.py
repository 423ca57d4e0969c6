"""Signed heads: who holds only the public key can tell that a trail is the server's, and whole.

The signature is Ed25519's; it needs the optional package `cryptography` (of the extra `signing`).
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aegis.errors import ConfigError
from aegis.messages import quote
from aegis.timestamps import now_us, timestamp_text

__all__ = ["HeadSigner", "is_signed_by"]


def _statement(head: Mapping[str, Any]) -> bytes:
    """What is signed of a head. INVARIANT: documented in docs/audit-format.md, and for ever."""
    lines = ("aegis audit head 1", head["id"], head["hash"], head["count"], head["signed_at"])
    return "\n".join(map(str, lines)).encode() + b"\n"


class HeadSigner:
    """Signs heads with the key of a file.

    Args:
        path: An Ed25519 private key in PEM, without a passphrase.

    Raises:
        ConfigError: There is no such key, or the package is missing.
    """

    def __init__(self, path: str) -> None:
        keys = _keys()
        try:
            text = Path(path).read_bytes()
        except OSError as error:
            raise ConfigError(
                f"cannot read the signing key {quote(path)}: {error.strerror}"
            ) from None
        try:
            key = keys.load_pem_private_key(text, None)
        except (ValueError, TypeError, keys.UnsupportedAlgorithm):
            key = None
        if not isinstance(key, keys.Ed25519PrivateKey):
            raise ConfigError(
                f"{quote(path)} is no Ed25519 private key in PEM without a passphrase; make one by"
                " `openssl genpkey -algorithm ed25519`"
            )
        self._key: Any = key
        self._public = b64encode(key.public_key().public_bytes_raw()).decode()

    def signed(self, head: Mapping[str, Any]) -> dict[str, Any]:
        """A head with `signed_at`, and `signature` and `public_key` in base64."""
        dated = {**head, "signed_at": timestamp_text(now_us())}
        signature = self._key.sign(_statement(dated))
        return {
            **dated,
            "signature": b64encode(signature).decode(),
            "public_key": self._public,
        }


def is_signed_by(head: Mapping[str, Any], public_key: bytes) -> bool:
    """Whether a head has a good signature.

    Args:
        head: As `HeadSigner.signed` gives it.
        public_key: In PEM, or in base64 as heads have it.

    Raises:
        ConfigError: It is no such key, or the package is missing.
    """
    keys = _keys()
    try:
        if b"BEGIN" in public_key:
            key = keys.load_pem_public_key(public_key)
        else:
            key = keys.Ed25519PublicKey.from_public_bytes(b64decode(public_key, validate=True))
        if not isinstance(key, keys.Ed25519PublicKey):
            raise ValueError
    except (ValueError, keys.UnsupportedAlgorithm):
        raise ConfigError("the public key is no Ed25519 key, in PEM or base64") from None
    try:
        key.verify(b64decode(str(head["signature"]), validate=True), _statement(head))
    except (KeyError, ValueError, keys.InvalidSignature):
        return False
    return True


class _Keys:
    """What is needed of `cryptography`."""

    def __init__(self) -> None:
        from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import (
            Ed25519PrivateKey,
            Ed25519PublicKey,
        )
        from cryptography.hazmat.primitives.serialization import (
            load_pem_private_key,
            load_pem_public_key,
        )

        self.InvalidSignature = InvalidSignature
        self.UnsupportedAlgorithm = UnsupportedAlgorithm
        self.Ed25519PrivateKey = Ed25519PrivateKey
        self.Ed25519PublicKey = Ed25519PublicKey
        self.load_pem_private_key = load_pem_private_key
        self.load_pem_public_key = load_pem_public_key


def _keys() -> _Keys:
    try:
        return _Keys()
    except ImportError:
        raise ConfigError(
            "signed heads need the package `cryptography`: pip install 'cryptography>=42'"
        ) from None
