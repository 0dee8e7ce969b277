"""A folder of one safetensors file and one JSON file: written whole or not at all, checked when read.

The JSON carries `format`, `format_version` and the sha256 of the tensors. Concepts and encoders are such folders.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imprint.errors import ImprintError, StorageError

if TYPE_CHECKING:  # torch takes seconds, and a driver that only looks needs none
    from torch import Tensor

_LIBRARIES = ("imprint", "torch", "diffusers", "transformers", "open_clip_torch")


def library_versions() -> dict[str, str]:
    """The versions that made an artifact, for its provenance."""
    return {name: version(name) for name in _LIBRARIES}


def write_folder(
    path: Path, name: str, tensors: Mapping[str, Tensor], record: Mapping[str, Any], *, format_version: int
) -> Path:
    """Write `<name>.safetensors` and `<name>.json` into the folder `path`, replacing an older one as a whole.

    Raises:
        StorageError: the disk is full or may not be written; nothing half-written is left.
    """
    from safetensors.torch import save_file

    ours = {f"{name}.safetensors", f"{name}.json"}
    with replaced_folder(path, name, ours) as fresh:
        file = fresh / f"{name}.safetensors"
        save_file({key: value.detach().cpu().contiguous() for key, value in tensors.items()}, file)
        whole = {"format": f"imprint-{name}", "format_version": format_version, **record, "sha256": _sha256(file)}
        (fresh / f"{name}.json").write_text(json.dumps(whole, indent=1) + "\n")
    return path.absolute()


@contextmanager
def replaced_folder(path: Path, name: str, parts: Collection[str]) -> Iterator[Path]:
    """A new folder that takes the place of `path` as a whole where the block ends well, and is gone where it does not.

    `name` is what messages call it; a folder that holds anything but `parts` is never replaced.

    Raises:
        StorageError: the disk is full or may not be written; nothing half-written is left.
    """
    path = path.absolute()
    fresh = path.with_name(f".{path.name}.{os.getpid()}.new")
    stale = path.with_name(f".{path.name}.{os.getpid()}.old")
    try:
        fresh.mkdir(parents=True)
        yield fresh
        if path.exists():
            _refuse_foreign(path, name, parts)
            os.replace(path, stale)
        os.replace(fresh, path)
    except Exception as error:
        if stale.exists() and not path.exists():
            os.replace(stale, path)
        # safetensors reports a full disk as an error of its own, with the system's text in it.
        if isinstance(error, OSError) or "os error" in str(error).lower() or "No space left" in str(error):
            raise StorageError(
                f"writing the {name} {path}: {error}; nothing was written. Free some space, or choose another folder"
            ) from error
        raise
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(stale, ignore_errors=True)


def _refuse_foreign(path: Path, name: str, ours: Collection[str]) -> None:
    """Only an empty folder or an older artifact of the same kind may be replaced, never somebody's files."""
    others = [entry.name for entry in path.iterdir() if entry.name not in ours] if path.is_dir() else [path.name]
    if others:
        raise StorageError(
            f"writing the {name} {path}: it holds {', '.join(sorted(others)[:3])}, which are not parts of one; "
            "choose another folder"
        )


def read_folder(
    path: Path, name: str, error: type[ImprintError], *, format_version: int
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write_folder` wrote: the tensors and the record.

    Raises:
        ImprintError: of the kind `error`: not such a folder, another format version, cut or changed since written.
    """
    doing = f"reading the {name} {path}"
    try:
        record = json.loads((path / f"{name}.json").read_text())
    except FileNotFoundError:
        raise error(f"{doing}: there is no {name}.json; expected a folder that imprint wrote") from None
    except (OSError, ValueError) as problem:
        raise error(f"{doing}: {name}.json cannot be read ({problem})") from problem
    if not isinstance(record, dict) or record.get("format") != f"imprint-{name}":
        raise error(f"{doing}: {name}.json is not the record of an imprint {name}")
    if record.get("format_version") != format_version:
        raise error(
            f"{doing}: format version {record.get('format_version')}, this imprint reads {format_version}; make it "
            "anew, or install the version of imprint named in its record"
        )
    file = path / f"{name}.safetensors"
    if not file.is_file() or _sha256(file) != record.get("sha256"):
        raise error(f"{doing}: {file.name} is missing, cut or changed since it was written; copy it again")
    from safetensors.torch import load_file

    return load_file(file), record


def contents_sha256(path: Path) -> str:
    """A hash over the names and bytes of a file, or of all files below a folder; read again only where one changed.

    Logs and checkpoints that lie beside weights, in `training` and `checkpoints`, do not count.
    """
    files = [path] if path.is_file() else sorted(
        file for file in path.rglob("*")
        if file.is_file() and not {"training", "checkpoints"} & set(file.relative_to(path).parts[:-1])
    )  # fmt: skip
    digest = hashlib.sha256()
    for file in files:
        stat = file.stat()
        digest.update(f"{file.relative_to(path)}:{_sha256_at(file, stat.st_mtime_ns, stat.st_size)}\n".encode())
    return digest.hexdigest()


@lru_cache(maxsize=4096)
def _sha256_at(path: Path, changed: int, size: int) -> str:
    """Of a file as it is at that time, so that it is read once for as long as it stays so."""
    return _sha256(path)


def _sha256(path: Path) -> str:
    with open(path, "rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()
