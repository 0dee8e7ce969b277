"""Training in one process without Ray: pictures in memory, the plain engine, checkpoints, a log."""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.progress import track

from imprint.config.jobs.pretrain import PretrainEncoder
from imprint.config.jobs.tiny import LocalTraining, ShardSource
from imprint.config.paths import resolve_path
from imprint.errors import DataError, SampleError, TrainingError
from imprint.objective import Batch, Objective
from imprint.pipelines.decode import decode_sample
from imprint.pipelines.samples import group_members, read_parts
from imprint.pipelines.shards import find_shards, open_shard
from imprint.pipelines.tar import iter_members
from imprint.training.batches import to_pixel_values
from imprint.training.checkpoint import TrainingState, latest_checkpoint
from imprint.training.ema import Ema
from imprint.training.engines.base import on_device
from imprint.training.engines.torch import TorchEngine
from imprint.training.flops import count_first
from imprint.training.loop import Guard, Hooks, train

log = logging.getLogger(__name__)
_MAX_PART_BYTES = 32 << 20
_MAX_PIXELS = 1 << 24
_LONG = ("eta_seconds", "step_seconds", "images_per_second_per_worker", "checkpoint_blocked_seconds",
         "checkpoint_write_seconds", "skipped_steps", "memory_gb")  # fmt: skip


@dataclass(frozen=True)
class Pictures:
    """A data set in memory. `weights` is each picture's chance to be drawn."""

    images: np.ndarray  # uint8 [n, h, w, 3]
    captions: list[str]
    keys: list[str]
    weights: np.ndarray  # [n], sums to 1
    masks: np.ndarray | None = None  # uint8 [n, h, w]; 255 on the subject, and everywhere where a sample has none


def load_pictures(sources: Sequence[ShardSource], *, with_masks: bool = False) -> Pictures:
    """Read whole shards; a bad sample is left out with a warning.

    Raises:
        DataError: nothing readable is there, or the pictures differ in size.
    """
    images: list[np.ndarray] = []
    captions, keys, weights, masks = [], [], [], []
    total = sum(source.weight for source in sources)
    for source in sources:
        first = len(images)
        for shard in track(find_shards(source.shards, source.split), description="reading shards"):
            with open_shard(shard) as descriptor:
                for entry in group_members(iter_members(descriptor, shard.url)):
                    if source.limit is not None and len(images) - first >= source.limit:
                        break
                    try:
                        parts = read_parts(descriptor, entry, _MAX_PART_BYTES)
                        sample = decode_sample(parts, size=None, max_pixels=_MAX_PIXELS)
                    except SampleError as error:
                        log.warning("left out: %s", error)
                        continue
                    images.append(sample["image"])
                    captions.append(sample["caption"])
                    keys.append(entry.key)
                    if with_masks:
                        mask = sample["mask"]
                        masks.append(np.full(images[-1].shape[:2], 255, np.uint8) if mask is None else mask)
        count = len(images) - first
        if not count:
            raise DataError(f"reading {list(source.shards)}: no sample of split {source.split!r} could be read")
        weights += [source.weight / total / count] * count
    if len({image.shape for image in images}) > 1:
        raise DataError("reading shards into memory: the pictures differ in size; give shards of one size")
    return Pictures(np.stack(images), captions, keys, np.asarray(weights), np.stack(masks) if with_masks else None)


def draw(weights: np.ndarray, batch_size: int, seed: int, step: int) -> np.ndarray:
    """Indices of the batch of one step: a pure function of (seed, step), so that a resumed run sees the same."""
    return np.random.default_rng([seed, step]).choice(len(weights), batch_size, p=weights)


def batches(pictures: Pictures, batch_size: int, seed: int, first_step: int) -> Iterator[Batch]:
    """Batches without end, from `first_step` on."""
    step = first_step
    while True:
        index = draw(pictures.weights, batch_size, seed, step)
        yield {
            "pixel_values": to_pixel_values(pictures.images[index]),
            "captions": [pictures.captions[i] for i in index],
            "keys": [pictures.keys[i] for i in index],
        }
        step += 1


class LocalHooks(Hooks):
    """A line on the console and a line of JSON in `log.jsonl` at each report; SIGTERM asks to stop."""

    def __init__(self, folder: Path, total_steps: int) -> None:
        self.file = folder / "log.jsonl"
        self.total_steps = total_steps
        self.stop = threading.Event()
        signal.signal(signal.SIGTERM, lambda *_: self.stop.set())

    def on_log(self, step: int, record: dict[str, float]) -> None:
        finite = {name: round(value, 6) for name, value in record.items() if math.isfinite(value)}
        with open(self.file, "a") as out:
            out.write(json.dumps({"step": step} | finite) + "\n")
        shown = " ".join(
            f"{name}={value:.4g}" for name, value in finite.items() if name not in _LONG and "/" not in name
        )
        minutes = record["eta_seconds"] / 60
        log.info("step %d/%d %s eta=%.1fmin", step, self.total_steps, shown, minutes)

    def should_stop(self) -> bool:
        return self.stop.is_set()


def run_training(
    spec: LocalTraining | PretrainEncoder,
    objective: Objective,
    make_batches: Callable[[int], Iterator[Batch]],
    source: str,
    on_step: Callable[[int, Ema | None], None] | None = None,
) -> TrainingState:
    """Train `objective` to the end, going on from the newest checkpoint of a run of this name."""
    folder = Path(resolve_path(spec.runs)) / spec.name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "job.yaml").write_text(source)
    checkpoints = folder / "checkpoints"
    resume = latest_checkpoint(checkpoints)
    if resume:
        log.info("%s: going on from step %d", spec.name, resume.step)
    hooks = LocalHooks(folder, spec.training.steps)
    if on_step:
        hooks.on_step = on_step  # type: ignore[method-assign]
    device = next(objective.parameters()).device
    stream = make_batches(resume.step if resume else 0)
    engine = on_device(spec.engine, device)
    flops, stream = count_first(objective, stream, engine.precision, device)
    state = train(
        stream,
        TorchEngine(objective, engine, spec.training.optimizer),
        spec.training,
        seed=spec.seed,
        resume=resume,
        checkpoints=(checkpoints, spec.checkpoint),
        hooks=hooks,
        guard=Guard(flops_per_image=flops, device=device),
    )
    load_average(objective, state)
    return state


def load_average(objective: Objective, state: TrainingState) -> None:
    """Put the average (the last weights where none is kept) into the objective's modules."""
    values = state.ema or state.parameters
    with torch.no_grad():
        for name, parameter in objective.named_parameters():
            parameter.copy_(values[name])


def require_finished(spec: LocalTraining | PretrainEncoder, step: int) -> None:
    """A run that was asked to stop leaves a checkpoint and no weights.

    Raises:
        TrainingError: it is not at its last step.
    """
    if step < spec.training.steps:
        raise TrainingError(f"{spec.name}: stopped at step {step} of {spec.training.steps}; run it again to go on")


def write_whole(folder: Path, write: Callable[[Path], None]) -> None:
    """Have `write` fill a temporary folder, then put it in place."""
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    temporary.mkdir(parents=True)
    try:
        write(temporary)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def keep_record(spec: LocalTraining, folder: Path) -> None:
    """Beside the weights: the job as it ran and its log."""
    record = folder / "training" / spec.job  # type: ignore[attr-defined]
    record.mkdir(parents=True, exist_ok=True)
    for name in ("job.yaml", "log.jsonl"):
        shutil.copyfile(Path(resolve_path(spec.runs)) / spec.name / name, record / name)
