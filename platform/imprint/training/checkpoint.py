"""Checkpoints: a folder a step, whole or not there, checked by hash when read.

<directory>/step-00000100/
    parameters.safetensors    what trains, fp32
    optimizer.safetensors     the optimizer's moments, `<moment>/<parameter>`
    ema.safetensors           where the job keeps an average
    state.json                step, samples seen, what the job adds, sha256 and bytes of the files above
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from imprint.errors import CheckpointError, StorageError

if TYPE_CHECKING:  # torch takes seconds, and a driver that only looks needs none
    from torch import Tensor

log = logging.getLogger(__name__)
FORMAT = 1
_NAME = "step-{step:08d}"
ReadT = TypeVar("ReadT")


@dataclass(frozen=True)
class TrainingState:
    """All that a run needs to go on. `samples` counts pictures over all ranks; `extra` is the job's own, JSON.

    `loss` is the mean since the checkpoint before, by which the best is chosen.
    """

    step: int
    samples: int
    parameters: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    ema: dict[str, Tensor] | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    loss: float | None = None


def save_checkpoint(directory: Path, state: TrainingState, *, keep: int, keep_best: bool = False) -> Path:
    """Write a checkpoint under a temporary name, rename it into place, then drop all but the newest `keep`.

    With `keep_best` the one with the least loss stays as well.

    Raises:
        StorageError: the disk is full or may not be written; nothing half-written is left.
    """
    from safetensors.torch import save_file

    final = directory / _NAME.format(step=state.step)
    temporary = directory / f".{final.name}.{os.getpid()}"
    try:
        temporary.mkdir(parents=True, exist_ok=True)
        tensors: dict[str, Mapping[str, Tensor] | None] = {
            "parameters": state.parameters, "optimizer": state.optimizer, "ema": state.ema,
        }  # fmt: skip
        files = {}
        for name, values in tensors.items():
            if values is not None:
                path = temporary / f"{name}.safetensors"
                save_file({key: value.detach().cpu().contiguous() for key, value in values.items()}, path)
                files[path.name] = {"sha256": _sha256(path), "bytes": path.stat().st_size}
        record = {
            "format": FORMAT, "step": state.step, "samples": state.samples, "loss": state.loss, "extra": state.extra,
            "files": files,
        }  # fmt: skip
        with open(temporary / "state.json", "w") as out:
            json.dump(record, out, indent=1)
            out.flush()
            os.fsync(out.fileno())
        if final.exists():
            shutil.rmtree(final)
        os.replace(temporary, final)
    except Exception as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError) or "No space left" in str(error):
            reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
            hint = "free some space" if getattr(error, "errno", errno.ENOSPC) == errno.ENOSPC else "check the folder"
            raise StorageError(f"writing checkpoint {final}: {reason}; {hint}", step=state.step) from error
        raise
    _drop_old(directory, keep, keep_best=keep_best)
    return final


def _drop_old(directory: Path, keep: int, *, keep_best: bool) -> None:
    found = sorted(directory.glob("step-*"))
    losses = {path: loss for path in found if keep_best and (loss := _loss_of(path)) is not None}
    best = min(losses, key=lambda path: losses[path], default=None)
    for old in found[:-keep]:
        if old != best:
            shutil.rmtree(old)
    for half_written in directory.glob(".step-*"):  # of a process that was killed; this one has renamed its own
        shutil.rmtree(half_written, ignore_errors=True)


def best_checkpoint(directory: Path) -> Path | None:
    """The checkpoint whose steps had the least mean loss; None where no loss was noted."""
    losses = {path: loss for path in directory.glob("step-*") if (loss := _loss_of(path)) is not None}
    return min(losses, key=lambda path: losses[path], default=None)


def _loss_of(path: Path) -> float | None:
    try:
        return json.loads((path / "state.json").read_text()).get("loss")
    except (OSError, json.JSONDecodeError):
        return None


def check_checkpoint(path: Path) -> dict[str, Any]:
    """The record of a checkpoint whose every file has its hash; no tensor is loaded, and torch is not needed.

    Raises:
        CheckpointError: a file is missing, cut or changed, or the format is another one.
    """
    try:
        record = json.loads((path / "state.json").read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise CheckpointError(f"reading checkpoint {path}: state.json cannot be read ({error})") from error
    if record.get("format") != FORMAT:
        raise CheckpointError(f"reading checkpoint {path}: format {record.get('format')}, expected {FORMAT}")
    for name, expected in record["files"].items():
        file = path / name
        if not file.is_file() or file.stat().st_size != expected["bytes"] or _sha256(file) != expected["sha256"]:
            raise CheckpointError(f"reading checkpoint {path}: {name} is missing, cut or changed since it was written")
    return record


def load_checkpoint(path: Path) -> TrainingState:
    """Read a checkpoint and check every file against its hash.

    Raises:
        CheckpointError: a file is missing, cut or changed, or the format is another one.
    """
    from safetensors.torch import load_file

    record = check_checkpoint(path)
    ema = path / "ema.safetensors"
    return TrainingState(
        step=record["step"],
        samples=record["samples"],
        parameters=load_file(path / "parameters.safetensors"),
        optimizer=load_file(path / "optimizer.safetensors"),
        ema=load_file(ema) if ema.name in record["files"] else None,
        extra=record["extra"],
        loss=record.get("loss"),
    )


@dataclass(frozen=True)
class Position:
    """Where a run stands: steps done, and pictures seen over all ranks."""

    step: int
    samples: int


def latest_position(directory: Path) -> Position | None:
    """Where `latest_checkpoint` would go on, without loading it."""
    found = _newest_whole(directory, check_checkpoint)
    return None if found is None else Position(found["step"], found["samples"])


def latest_checkpoint(directory: Path) -> TrainingState | None:
    """The newest checkpoint that is whole; a broken one is named in the log and the one before it is used."""
    return _newest_whole(directory, load_checkpoint)


def _newest_whole(directory: Path, read: Callable[[Path], ReadT]) -> ReadT | None:
    for path in sorted(directory.glob("step-*"), reverse=True):
        try:
            return read(path)
        except CheckpointError as error:
            log.warning("%s; using the one before it", error)
    return None


def _sha256(path: Path) -> str:
    with open(path, "rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()
