"""Which shards there are, how many samples each one holds, and how to open one."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import fsspec
from braceexpand import braceexpand

from imprint.config.data import DataSpec
from imprint.config.paths import is_url, resolve_path
from imprint.errors import DataError, ShardError
from imprint.pipelines.samples import group_members
from imprint.pipelines.storage import DEFAULT_RETRY, Retry, copy_remote, with_retry
from imprint.pipelines.tar import iter_members

log = logging.getLogger(__name__)
MANIFEST = "manifest.json"
_ABSENT = "nothing is there; check data.shards in the job file"
_REFUSED = (".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tar.xz")
_AT_ONCE = 16  # remote shards that are looked for at the same time


@dataclass(frozen=True, slots=True)
class Shard:
    """One tar. `samples`, `bytes` and `sha256` come from a manifest; None where there is none.

    `source` is the number of the weighted source that it belongs to.
    """

    url: str
    samples: int | None = None
    bytes: int | None = None
    sha256: str | None = None
    source: int = 0


def find_shards(places: Sequence[str], split: str | None = None) -> list[Shard]:
    """The shards of folders with a manifest, of .tar paths and of URLs, braces expanded, in the order given.

    A `split` leaves out the manifest's shards of other splits; without a manifest it cannot be checked and all are
    taken.

    Raises:
        DataError: a folder has no manifest, or nothing of the split.
    """
    shards: list[Shard] = []
    manifests: dict[str, list[dict[str, Any]] | None] = {}  # by folder: many paths lie beside one manifest
    for place in places:
        for url in braceexpand(place):
            url = resolve_path(url)
            if url.endswith(".tar"):
                shards.append(_from_neighbouring_manifest(url, manifests))
            elif url.endswith(_REFUSED):
                raise DataError("listing shards: compressed tars are not read; unpack it to a .tar", shard=url)
            else:
                shards += _of_folder(url, split)
    if not shards:
        raise DataError(f"listing shards: nothing found in {list(places)}; give folders with a manifest or .tar paths")
    return shards


def find_sources(data: DataSpec) -> list[Shard]:
    """The shards of a job's data, each with the number of its source.

    Raises:
        DataError: a folder has no manifest, or nothing of the split.
    """
    if not data.sources:
        return find_shards(data.shards, data.split)
    return [
        replace(shard, source=number)
        for number, source in enumerate(data.sources)
        for shard in find_shards(source.shards, source.split)
    ]


def counted(shards: Sequence[Shard], retry: Retry = DEFAULT_RETRY) -> list[Shard]:
    """The same shards with every `samples` known: those without a manifest are opened and their headers counted.

    Raises:
        ShardError: one is missing or cut.
    """
    unknown = sum(shard.samples is None for shard in shards)
    if unknown:
        log.warning(
            "%d shards have no manifest: counting their samples first. A shard cut at the end of a sample is told by "
            "tar's end mark only; write a manifest to be sure",
            unknown,
        )
    return [shard if shard.samples is not None else replace(shard, samples=_count(shard, retry)) for shard in shards]


def check_present(shards: Sequence[Shard], retry: Retry = DEFAULT_RETRY) -> None:
    """Look for each shard without reading it, and compare its size with the manifest's.

    Raises:
        ShardError: one is missing, or its size is another: it was cut or replaced.
    """
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        for shard, size in zip(shards, threads.map(lambda shard: _size(shard.url, retry), shards), strict=True):
            if size is None:
                raise ShardError(f"looking for a shard: {_ABSENT}", shard=shard.url)
            _check_size(shard, size)


@contextmanager
def open_shard(shard: Shard, retry: Retry = DEFAULT_RETRY, *, verify: bool = False) -> Iterator[int]:
    """A file descriptor of the whole shard. A remote one is copied to a temporary file, so memory stays flat.

    The temporary file has no name and goes with the process; TMPDIR says where it lies. With `verify` the bytes are
    compared with the manifest's SHA-256 before anything is read from them.

    Raises:
        ShardError: it is missing, cannot be read, or is not what its manifest says.
        StorageError: no space for the copy.
    """
    descriptor = _open(shard.url, retry)
    try:
        _check_size(shard, os.fstat(descriptor).st_size)
        if verify and shard.sha256 is not None:
            _check_bytes(shard, descriptor)
        yield descriptor
    finally:
        os.close(descriptor)


def _open(url: str, retry: Retry) -> int:
    try:
        if not is_url(url):
            return os.open(url, os.O_RDONLY)
        with tempfile.TemporaryFile() as copy:
            copy_remote(url, copy, retry)
            copy.flush()
            return os.dup(copy.fileno())
    except FileNotFoundError as error:
        raise ShardError(f"opening a shard: {_ABSENT}", shard=url) from error
    except (OSError, ImportError) as error:
        raise ShardError(f"opening a shard: {error}", shard=url) from error


def _check_bytes(shard: Shard, descriptor: int) -> None:
    with open(os.dup(descriptor), "rb") as file:
        file.seek(0)
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != shard.sha256:
        raise ShardError(
            f"opening a shard: its sha256 is {found} and its manifest says {shard.sha256}, so bytes of it were "
            "changed; copy it again",
            shard=shard.url,
        )


def _check_size(shard: Shard, size: int) -> None:
    if shard.bytes is not None and size != shard.bytes:
        raise ShardError(
            f"opening a shard: it has {size} bytes and its manifest says {shard.bytes}, so it was cut or replaced; "
            "copy it again or write the manifest anew",
            shard=shard.url,
        )


def _of_folder(url: str, split: str | None) -> list[Shard]:
    place = f"{url.rstrip('/')}/{MANIFEST}"
    manifest = _read_manifest(place)
    if manifest is None:
        raise DataError(
            f"listing shards: {url} is not a folder with a {MANIFEST}; expected one, or paths that end in .tar "
            "(train-{000000..000009}.tar)"
        )
    entries = [entry for entry in manifest if split is None or entry.get("split", split) == split]
    if not entries:
        found = sorted({str(entry.get("split")) for entry in manifest})
        raise DataError(f"listing shards: {place} has no shards of split {split!r}; it has {found}")
    return [_entry(url.rstrip("/"), entry) for entry in entries]


def _from_neighbouring_manifest(url: str, manifests: dict[str, list[dict[str, Any]] | None]) -> Shard:
    folder, _, name = url.rpartition("/")
    if folder not in manifests:
        manifests[folder] = _read_manifest(f"{folder}/{MANIFEST}")
    for entry in manifests[folder] or []:
        if entry["name"] == name:
            return _entry(folder, entry)
    return Shard(url)


def _entry(folder: str, entry: dict[str, Any]) -> Shard:
    return Shard(f"{folder}/{entry['name']}", int(entry["samples"]), int(entry["bytes"]), entry.get("sha256") or None)


def _read_manifest(place: str) -> list[dict[str, Any]] | None:
    def read() -> bytes:
        with fsspec.open(place, "rb") as source:
            return source.read()

    try:
        document = json.loads(with_retry(read, "reading", place, DEFAULT_RETRY))
        shards = document["shards"]
        if not all({"name", "samples", "bytes"} <= set(entry) for entry in shards):
            raise ValueError("a shard lacks name, samples or bytes")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ImportError) as error:
        raise DataError(f"reading {place}: {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"reading {place}: not a manifest of shards ({error})") from error
    return shards


def _size(url: str, retry: Retry) -> int | None:
    try:
        if not is_url(url):
            return os.stat(url).st_size
        filesystem, path = fsspec.core.url_to_fs(url)
        return with_retry(lambda: filesystem.info(path)["size"], "looking for a shard", url, retry)
    except FileNotFoundError:
        return None
    except (OSError, ImportError) as error:
        raise ShardError(f"looking for a shard: {error}", shard=url) from error


def _count(shard: Shard, retry: Retry) -> int:
    with open_shard(shard, retry) as descriptor:
        return sum(1 for _ in group_members(iter_members(descriptor, shard.url)))
