"""Checkpoints: whole or refused, newest whole one used, nothing left behind by a full disk."""

import errno
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from imprint.errors import CheckpointError, StorageError
from imprint.training.checkpoint import (
    Position,
    TrainingState,
    latest_checkpoint,
    latest_position,
    load_checkpoint,
    save_checkpoint,
)


def state(step: int) -> TrainingState:
    values = {"weight": torch.full((2, 3), float(step))}
    moments = {"exp_avg/weight": torch.ones(2, 3) * step, "step/weight": torch.tensor(float(step))}
    return TrainingState(step, step * 8, values, moments, {"weight": values["weight"] / 2}, {"epoch": 1})


def test_what_was_saved_is_read(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, state(7), keep=2)
    loaded = load_checkpoint(path)
    assert (loaded.step, loaded.samples, loaded.extra) == (7, 56, {"epoch": 1})
    assert torch.equal(loaded.parameters["weight"], torch.full((2, 3), 7.0))
    assert torch.equal(loaded.optimizer["exp_avg/weight"], torch.full((2, 3), 7.0))
    assert loaded.ema is not None and torch.equal(loaded.ema["weight"], torch.full((2, 3), 3.5))


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 10):
        save_checkpoint(tmp_path, state(step), keep=2)
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["step-00000002", "step-00000010"]


@pytest.mark.parametrize("damage", ["cut", "flip", "missing", "state"])
def test_a_damaged_one_is_refused_and_the_one_before_used(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    save_checkpoint(tmp_path, state(1), keep=5)
    newest = save_checkpoint(tmp_path, state(2), keep=5)
    file = newest / "parameters.safetensors"
    data = file.read_bytes()
    if damage == "cut":
        file.write_bytes(data[:-4])
    elif damage == "flip":
        file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif damage == "missing":
        file.unlink()
    else:
        (newest / "state.json").write_text('{"format": 1, "st')
    with pytest.raises(CheckpointError, match="reading checkpoint"):
        load_checkpoint(newest)
    with caplog.at_level("WARNING"):
        found = latest_checkpoint(tmp_path)
    assert found is not None and found.step == 1
    assert "using the one before it" in caplog.text
    assert latest_position(tmp_path) == Position(found.step, found.samples)


def test_nothing_there_is_none(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path / "never") is None
    assert latest_position(tmp_path / "never") is None


def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path, state(1), keep=2)
    written = []

    def full(tensors: dict, path: Path) -> None:
        written.append(path)
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(StorageError, match="No space left on device; free some space"):
        save_checkpoint(tmp_path, state(2), keep=2)
    assert written
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]


@pytest.mark.skipif(subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode != 0,
                    reason="needs a namespace of its own to mount a small disk in")  # fmt: skip
def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    """A tmpfs with room for one checkpoint and a half, in a namespace that ends with the process."""
    program = """
import sys
from pathlib import Path
import torch
from imprint.errors import StorageError
from imprint.training.checkpoint import TrainingState, latest_checkpoint, save_checkpoint
place = Path(sys.argv[1])
for step in (1, 2):
    state = TrainingState(step, step, {"weight": torch.ones(100_000)}, {"exp_avg/weight": torch.ones(100_000)})
    try:
        save_checkpoint(place, state, keep=5)
    except StorageError as error:
        print(error)
print([path.name for path in place.iterdir()], latest_checkpoint(place).step)
"""
    mount = 'mount -t tmpfs -o size=1200k none "$1" && exec "$2" -c "$3" "$1"'
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", mount, "sh", tmp_path, sys.executable, program],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said, left = done.stdout.strip().splitlines()
    assert "writing checkpoint" in said and "free some space" in said
    assert left == "['step-00000001'] 1"
