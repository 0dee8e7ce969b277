"""API keys: each belongs to a tenant. The service knows their hashes only."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Mapping, Sequence

from imprint.config.load import load_document
from imprint.errors import ConfigError
from imprint.serve.problems import Problem
from imprint.serve.settings import TENANT_PATTERN, ServeSpec

PREFIX = "imp_"


def new_key() -> str:
    """A fresh key of 256 bits."""
    return PREFIX + secrets.token_urlsafe(32)


def key_hash(key: str) -> str:
    """sha256 in hex. Keys have 256 bits, so that a slow hash would add nothing."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


class Tenants:
    """Who a key belongs to."""

    def __init__(self, hashes: Mapping[str, Sequence[str]]) -> None:
        """
        Raises:
            ConfigError: a tenant's name or a hash is none, or a key belongs to two.
        """
        self._owners: dict[str, str] = {}
        for tenant, each in hashes.items():
            if not re.fullmatch(TENANT_PATTERN, tenant):
                raise ConfigError(f"keys: the tenant {tenant!r} should be small letters, digits and -, 40 at most")
            for value in each:
                if not re.fullmatch(r"[0-9a-f]{64}", value):
                    raise ConfigError(f"keys.{tenant}: expected sha256 in hex, as `imprint serve --new-key` prints it")
                if self._owners.setdefault(value, tenant) != tenant:
                    raise ConfigError(f"keys.{tenant}: one of its keys belongs to {self._owners[value]} as well")

    @classmethod
    def of(cls, spec: ServeSpec) -> Tenants:
        """Those of the settings and of the file that they name.

        Raises:
            ConfigError: there is no key at all, or the file cannot be read.
        """
        hashes: dict[str, list[str]] = {tenant: list(each) for tenant, each in spec.keys.items()}
        if spec.keys_file is not None:
            for tenant, each in load_document(spec.keys_file).data.items():
                values = [each] if isinstance(each, str) else each
                if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
                    raise ConfigError(f"{spec.keys_file}: {tenant}: expected a list of hashes")
                hashes.setdefault(tenant, []).extend(values)
        if not any(hashes.values()):
            raise ConfigError("keys: there is none, so nobody could use the service; `imprint serve --new-key TENANT` "
                              "makes one")  # fmt: skip
        return cls(hashes)

    def owner(self, authorization: str | None) -> str:
        """The tenant of an Authorization header, `Bearer <key>`.

        Raises:
            Problem: 401.
        """
        scheme, _, key = (authorization or "").partition(" ")
        tenant = self._owners.get(key_hash(key.strip())) if scheme.lower() == "bearer" else None
        if tenant is None:
            raise Problem.of(401, "no-key", "send a valid API key as `Authorization: Bearer <key>`")
        return tenant
