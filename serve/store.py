"""Where sealed bytes live: in memory, or in a folder or bucket by fsspec. The tenant is part of every path.

<url>/<tenant>/<concept id>/{record, pictures, weights, image-0, ...}      one concept
<url>/<tenant>/answer-<hash>/record                                        an answer kept for its Idempotency-Key
"""

from __future__ import annotations

import asyncio
import posixpath
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Protocol

import fsspec

from imprint.config.paths import resolve_path
from imprint.errors import StorageError
from imprint.serve.problems import Problem
from imprint.serve.settings import StoreSpec
from imprint.serve.vault import Vault


class Blobs(Protocol):
    """Bytes by path; paths have slashes, and folders are there while something is in them."""

    async def put(self, path: str, data: bytes) -> None: ...

    async def get(self, path: str) -> bytes | None: ...

    async def remove(self, path: str) -> None: ...

    async def drop(self, folder: str) -> None: ...

    async def folders(self) -> list[str]:
        """Every `<tenant>/<name>`."""
        ...


class MemoryBlobs:
    """In this process's memory alone."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._held: dict[str, bytes] = {}
        self.size = 0

    async def put(self, path: str, data: bytes) -> None:
        """
        Raises:
            Problem: 503, the memory is full.
        """
        more = len(data) - len(self._held.get(path, b""))
        if self.size + more > self.max_bytes:
            raise Problem.of(503, "store-full", "the store is full; concepts expire in time", retry_after_s=60)
        self._held[path] = data
        self.size += more

    async def get(self, path: str) -> bytes | None:
        return self._held.get(path)

    async def remove(self, path: str) -> None:
        self.size -= len(self._held.pop(path, b""))

    async def drop(self, folder: str) -> None:
        for path in [path for path in self._held if path.startswith(f"{folder}/")]:
            self.size -= len(self._held.pop(path))

    async def folders(self) -> list[str]:
        return sorted({posixpath.dirname(path) for path in self._held})


class FolderBlobs:
    """In a folder or a bucket."""

    def __init__(self, url: str, options: Mapping[str, Any] | None = None) -> None:
        self.fs, self.root = fsspec.core.url_to_fs(resolve_path(url), **(options or {}))

    async def put(self, path: str, data: bytes) -> None:
        """
        Raises:
            StorageError: the disk is full, or may not be written.
        """
        await asyncio.to_thread(self._put, path, data)

    def _put(self, path: str, data: bytes) -> None:
        whole = f"{self.root}/{path}"
        try:
            self.fs.makedirs(posixpath.dirname(whole), exist_ok=True)
            self.fs.pipe_file(whole, data)
        except OSError as error:
            raise StorageError(f"writing to the store: {error.strerror or type(error).__name__}; free some space, or "
                               "see to its rights") from error  # fmt: skip

    async def get(self, path: str) -> bytes | None:
        return await asyncio.to_thread(self._get, path)

    def _get(self, path: str) -> bytes | None:
        try:
            return self.fs.cat_file(f"{self.root}/{path}")
        except FileNotFoundError:
            return None

    async def remove(self, path: str) -> None:
        await asyncio.to_thread(self._remove, path)

    def _remove(self, path: str) -> None:
        with suppress(FileNotFoundError):
            self.fs.rm_file(f"{self.root}/{path}")

    async def drop(self, folder: str) -> None:
        await asyncio.to_thread(self._drop, folder)

    def _drop(self, folder: str) -> None:
        whole = f"{self.root}/{folder}"
        try:
            self.fs.invalidate_cache()
            if self.fs.exists(whole):
                self.fs.rm(whole, recursive=True)
        except FileNotFoundError:
            return
        tenant = posixpath.dirname(whole)
        with suppress(OSError, NotImplementedError):
            self.fs.rmdir(tenant)  # its last concept takes the tenant's folder along; buckets have no folders

    async def folders(self) -> list[str]:
        return await asyncio.to_thread(self._folders)

    def _folders(self) -> list[str]:
        self.fs.invalidate_cache()
        try:
            tenants = [entry["name"] for entry in self.fs.ls(self.root, detail=True) if entry["type"] == "directory"]
        except FileNotFoundError:
            return []
        found = []
        for tenant in tenants:
            names = [entry["name"] for entry in self.fs.ls(tenant, detail=True) if entry["type"] == "directory"]
            found += [f"{posixpath.basename(tenant)}/{posixpath.basename(name)}" for name in names]
        return sorted(found)


class Store:
    """Blobs behind a vault: all that goes in is sealed for its path."""

    def __init__(self, blobs: Blobs, vault: Vault) -> None:
        self.blobs, self.vault = blobs, vault

    async def put(self, folder: str, name: str, plain: bytes) -> None:
        """Seal and keep; `folder` is `<tenant>/<id>`."""
        path = f"{folder}/{name}"
        await self.blobs.put(path, await asyncio.to_thread(self.vault.seal, plain, path))

    async def get(self, folder: str, name: str) -> bytes:
        """
        Raises:
            Problem: 404, it is not there.
            StorageError: it does not open.
        """
        path = f"{folder}/{name}"
        sealed = await self.blobs.get(path)
        if sealed is None:
            raise Problem.of(404, "gone", "it is not in the store any more; it may have expired or been deleted")
        return await asyncio.to_thread(self.vault.open, sealed, path)

    async def drop(self, folder: str) -> None:
        """All of a folder, and the folder."""
        await self.blobs.drop(folder)


def open_blobs(spec: StoreSpec) -> MemoryBlobs | FolderBlobs:
    """The place that the settings name, of this process."""
    return MemoryBlobs(spec.max_bytes) if spec.url == "memory" else FolderBlobs(spec.url)
