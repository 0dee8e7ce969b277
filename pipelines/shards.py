"""Which shards there are, how many samples each one holds, and how to open one."""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import fsspec
from braceexpand import braceexpand

from imprint.config.paths import is_url, resolve_path
from imprint.errors import DataError, ShardError
from imprint.pipelines.tar import iter_members

log = logging.getLogger(__name__)
MANIFEST = "manifest.json"
_ABSENT = "nothing is there; check data.shards in the job file"


@dataclass(frozen=True, slots=True)
class Shard:
    """One tar. `samples` and `bytes` come from a manifest; None where there is none."""

    url: str
    samples: int | None = None
    bytes: int | None = None


def find_shards(places: Sequence[str], split: str | None = None) -> list[Shard]:
    """The shards of folders with a manifest, of .tar paths and of URLs, braces expanded, in the order given.

    A `split` leaves out the manifest's shards of other splits; without a manifest it cannot be checked and all are
    taken.

    Raises:
        DataError: a folder has no manifest, or nothing of the split.
    """
    shards: list[Shard] = []
    for place in places:
        for url in braceexpand(place):
            url = resolve_path(url)
            if url.endswith(".tar"):
                shards.append(_from_neighbouring_manifest(url))
            elif url.endswith((".tar.gz", ".tgz", ".tar.zst")):
                raise DataError("listing shards: compressed tars are not read; unpack it to a .tar", shard=url)
            else:
                shards += _of_folder(url, split)
    if not shards:
        raise DataError(f"listing shards: nothing found in {list(places)}; give folders with a manifest or .tar paths")
    return shards


def counted(shards: Sequence[Shard]) -> list[Shard]:
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
    return [shard if shard.samples is not None else replace(shard, samples=_count(shard)) for shard in shards]


def check_present(shards: Sequence[Shard]) -> None:
    """Look for each shard without reading it, and compare its size with the manifest's.

    Raises:
        ShardError: one is missing, or its size is another: it was cut or replaced.
    """
    for shard in shards:
        size = _size(shard.url)
        if size is None:
            raise ShardError(f"looking for a shard: {_ABSENT}", shard=shard.url)
        _check_size(shard, size)


@contextmanager
def open_shard(shard: Shard) -> Iterator[int]:
    """A file descriptor of the whole shard; a remote one is copied to a temporary file first, so memory stays flat.

    Raises:
        ShardError: it is missing, cannot be read, or has another size than its manifest says.
    """
    try:
        if not is_url(shard.url):
            descriptor = os.open(shard.url, os.O_RDONLY)
        else:
            with tempfile.TemporaryFile() as copy, fsspec.open(shard.url, "rb") as source:
                shutil.copyfileobj(source, copy, 1 << 20)
                copy.flush()
                descriptor = os.dup(copy.fileno())
    except FileNotFoundError as error:
        raise ShardError(f"opening a shard: {_ABSENT}", shard=shard.url) from error
    except OSError as error:
        raise ShardError(f"opening a shard: {error}", shard=shard.url) from error
    try:
        _check_size(shard, os.fstat(descriptor).st_size)
        yield descriptor
    finally:
        os.close(descriptor)


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


def _from_neighbouring_manifest(url: str) -> Shard:
    folder, _, name = url.rpartition("/")
    for entry in _read_manifest(f"{folder}/{MANIFEST}") or []:
        if entry["name"] == name:
            return _entry(folder, entry)
    return Shard(url)


def _entry(folder: str, entry: dict[str, Any]) -> Shard:
    return Shard(f"{folder}/{entry['name']}", samples=int(entry["samples"]), bytes=int(entry["bytes"]))


def _read_manifest(place: str) -> list[dict[str, Any]] | None:
    try:
        with fsspec.open(place, "rb") as source:
            document = json.loads(source.read())
        shards = document["shards"]
        if not all({"name", "samples", "bytes"} <= set(entry) for entry in shards):
            raise ValueError("a shard lacks name, samples or bytes")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"reading {place}: not a manifest of shards ({error})") from error
    return shards


def _size(url: str) -> int | None:
    try:
        if not is_url(url):
            return os.stat(url).st_size
        filesystem, path = fsspec.core.url_to_fs(url)
        return filesystem.info(path)["size"]
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ShardError(f"looking for a shard: {error}", shard=url) from error


def _count(shard: Shard) -> int:
    from imprint.pipelines.samples import group_members

    with open_shard(shard) as descriptor:
        return sum(1 for _ in group_members(iter_members(descriptor, shard.url)))
