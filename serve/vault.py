"""Sealing: AES-256-GCM around everything that leaves a process's memory, bound to the place it belongs to."""

from __future__ import annotations

import base64
import binascii
import json
import os
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from imprint.errors import ConfigError, StorageError
from imprint.serve.settings import KEY_VARIABLE, StoreSpec

KEY_BYTES = 32
_NONCE_BYTES = 12


class Vault:
    """Seals and opens bytes with one key. What was sealed for one place does not open at another."""

    def __init__(self, key: bytes) -> None:
        self.key = key
        self._cipher = AESGCM(key)

    def seal(self, plain: bytes, place: str) -> bytes:
        """A fresh nonce, then the ciphertext with its tag."""
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, plain, place.encode())

    def open(self, sealed: bytes, place: str) -> bytes:
        """
        Raises:
            StorageError: it was sealed with another key or for another place, or is cut or changed.
        """
        try:
            return self._cipher.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], place.encode())
        except (InvalidTag, ValueError) as error:
            raise StorageError(
                f"opening {place}: it was sealed with another key, or is cut or changed; was the key replaced?"
            ) from error

    def seal_json(self, value: Any, place: str) -> bytes:
        """As `seal`, for plain JSON."""
        return self.seal(json.dumps(value).encode(), place)

    def open_json(self, sealed: bytes, place: str) -> Any:
        """As `open`, for plain JSON."""
        return json.loads(self.open(sealed, place))


def find_key(spec: StoreSpec) -> bytes:
    """The key of a store; one that lives in memory gets a fresh key.

    Raises:
        ConfigError: there is none, or it is not 32 bytes in base64.
    """
    if spec.key_file is not None:
        try:
            text, source = Path(spec.key_file).expanduser().read_text(), spec.key_file
        except OSError as error:
            raise ConfigError(f"store.key_file: {spec.key_file} cannot be read ({error.strerror}); make one with "
                              "`(umask 077; openssl rand -base64 32 > FILE)`") from error  # fmt: skip
    elif KEY_VARIABLE in os.environ:
        text, source = os.environ[KEY_VARIABLE], KEY_VARIABLE
    elif spec.url == "memory":
        return AESGCM.generate_key(8 * KEY_BYTES)
    else:
        raise ConfigError(
            f"store.url: {spec.url} is outside of memory, and pictures lie there only encrypted; name a key in "
            f"store.key_file or {KEY_VARIABLE}, as `openssl rand -base64 32` makes one"
        )
    try:
        key = base64.b64decode(text.strip(), validate=True)
    except binascii.Error as error:
        raise ConfigError(f"{source}: it is not base64; expected 32 bytes, as of `openssl rand -base64 32`") from error
    if len(key) != KEY_BYTES:
        raise ConfigError(f"{source}: got a key of {len(key)} bytes, expected 32, as of `openssl rand -base64 32`")
    return key
