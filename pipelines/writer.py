"""Writes webdataset shards and their manifest: each file whole or not at all, byte for byte the same every time.

A folder holds `<split>-NNNNNN.tar` and, once all of them are there, `manifest.json`. While shards are being written
`.progress.json` lists the finished ones, so that a killed run goes on where it was.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

from imprint.errors import DataError, StorageError

MANIFEST = "manifest.json"
_PROGRESS = ".progress.json"
_PARTIAL = ".partial"
_FORMAT = 1
_SHARD_NAME = re.compile(r"[a-z]+-[0-9]{6}\.tar")


class Sample(NamedTuple):
    """`members` maps an extension without the first dot, as in `mask.png`, to the bytes of that file."""

    key: str
    members: dict[str, bytes]


@dataclass(frozen=True)
class ShardInfo:
    """One line of a manifest."""

    name: str
    split: str
    samples: int
    bytes: int
    sha256: str


def shard_name(split: str, index: int) -> str:
    """The file name of a shard: `train-000042.tar`."""
    return f"{split}-{index:06d}.tar"


def write_shard(path: Path, split: str, samples: Iterable[Sample]) -> ShardInfo:
    """Writes one tar under a temporary name and renames it when it is whole.

    Headers carry no time, owner or mode of this machine, so the bytes depend on the samples alone.

    Raises:
        StorageError: no space, no permission; nothing is left behind.
    """
    count = 0
    with _whole_file(path) as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for sample in samples:
                for extension, content in sample.members.items():
                    header = tarfile.TarInfo(f"{sample.key}.{extension}")
                    header.size = len(content)
                    tar.addfile(header, io.BytesIO(content))
                count += 1
        file.flush()
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = file.tell()
    return ShardInfo(path.name, split, count, size, digest)


class ShardFolder:
    """A folder of shards on its way to a manifest. `header` says what the shards hold and how they were made.

    Two headers that are equal mean equal shards, so what is there already under the same header is kept; under
    another header it is removed.

    Raises:
        StorageError: the folder cannot be made, read or written.
        DataError: it holds a manifest or progress file that is not one of ours.
    """

    def __init__(self, path: Path, header: dict[str, Any]) -> None:
        self.path = path
        self.header = json.loads(json.dumps(header))
        self._shards: dict[str, ShardInfo] = {}
        with storage_errors("making the folder of shards", path):
            path.mkdir(parents=True, exist_ok=True)
            for leftover in path.glob(f".*{_PARTIAL}"):
                leftover.unlink()
        self._take_over()

    def is_finished(self, name: str) -> bool:
        """Whether the shard is there, whole, from this run or an earlier one with the same header."""
        return name in self._shards

    def record(self, info: ShardInfo) -> None:
        """Notes a finished shard, so that a later run keeps it."""
        self._shards[info.name] = info
        self._write(_PROGRESS)

    def finish(self, names: list[str]) -> dict[str, Any]:
        """Writes the manifest, listing `names` in this order, and returns it."""
        missing = [name for name in names if name not in self._shards]
        if missing:
            raise DataError(
                f"writing a manifest: {len(missing)} of {len(names)} shards were not recorded, "
                f"the first is {missing[0]}; write them first",
                folder=str(self.path),
            )
        self._shards = {name: self._shards[name] for name in names}
        manifest = self._write(MANIFEST)
        with storage_errors("removing the progress file", self.path):
            (self.path / _PROGRESS).unlink(missing_ok=True)
        return manifest

    def _take_over(self) -> None:
        """Keeps what an earlier run with the same header finished, and removes the shards of any other."""
        for name in (MANIFEST, _PROGRESS):
            earlier = _read_listing(self.path / name)
            if earlier is None:
                continue
            header, infos = earlier
            if header == self.header:
                self._shards.update({info.name: info for info in infos if self._is_whole(info)})
                continue
            with storage_errors("removing shards made from another job file", self.path):
                (self.path / name).unlink()
                for info in infos:
                    if info.name not in self._shards:
                        (self.path / info.name).unlink(missing_ok=True)

    def _is_whole(self, info: ShardInfo) -> bool:
        path = self.path / info.name
        with storage_errors("checking a finished shard", path):
            if not path.is_file() or path.stat().st_size != info.bytes:
                return False
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest() == info.sha256

    def _write(self, name: str) -> dict[str, Any]:
        shards = [asdict(info) for info in self._shards.values()]
        document = {"format": _FORMAT, "header": self.header, "shards": shards}
        with _whole_file(self.path / name) as file:
            file.write((json.dumps(document, indent=1, sort_keys=True) + "\n").encode())
        return document


@contextmanager
def storage_errors(doing: str, path: Path) -> Iterator[None]:
    """Turns the operating system's refusals into a StorageError that says what was being done where."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{doing}: {error.strerror or error}; free some space, or name a folder that may be written",
            path=str(path),
        ) from error


@contextmanager
def _whole_file(path: Path) -> Iterator[IO[bytes]]:
    """A file that appears under `path` when the block ends well, and not at all otherwise."""
    partial = path.with_name(f".{path.name}{_PARTIAL}")
    with storage_errors("writing", path):
        try:
            with partial.open("wb+") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def _read_listing(path: Path) -> tuple[dict[str, Any], list[ShardInfo]] | None:
    """Header and shards of a manifest or progress file, None if there is none."""
    with storage_errors("reading", path):
        if not path.exists():
            return None
        text = path.read_bytes()
    try:
        document = json.loads(text)
        infos = [ShardInfo(**shard) for shard in document["shards"]]
        if document["format"] != _FORMAT:
            raise ValueError(f"format is {document['format']}, expected {_FORMAT}")
        # Shards of another header are deleted by name, so a name must not lead out of the folder.
        odd = [info.name for info in infos if not _SHARD_NAME.fullmatch(info.name)]
        if odd:
            raise ValueError(f"{odd[0]!r} is not the name of a shard")
        return document["header"], infos
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"reading what earlier runs wrote: not a manifest of this writer ({error}); "
            "remove the file or name another folder",
            path=str(path),
        ) from error
