"""The one training loop: every job, every engine."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from imprint.config.training import CheckpointSpec, TrainingSpec
from imprint.errors import DataError, TrainingError
from imprint.training.batches import Batch
from imprint.training.checkpoint import TrainingState, save_checkpoint
from imprint.training.ema import Ema
from imprint.training.engines.base import Engine
from imprint.training.meters import Meter
from imprint.training.schedule import learning_rate

log = logging.getLogger(__name__)


class Hooks:
    """What a job does around the loop; every method may be overridden, all run on every rank."""

    def on_log(self, step: int, record: dict[str, float]) -> None:
        """Means over ranks and over the steps since the last call."""

    def on_checkpoint(self, step: int, path: Path | None) -> None:
        """A checkpoint was written (`path` is None on other ranks than 0)."""

    def on_step(self, step: int, ema: Ema | None) -> None:
        """After every step."""

    def should_stop(self) -> bool:
        """Ask to stop after this step (SIGTERM, say): a checkpoint is written first."""
        return False


def step_generator(seed: int, step: int, rank: int, micro: int, device: torch.device | str = "cpu") -> torch.Generator:
    """The generator of one micro-batch: a pure function of its arguments, so that no RNG state is ever saved."""
    words = np.random.SeedSequence([seed, step, rank, micro]).generate_state(2, np.uint32)
    return torch.Generator(device).manual_seed(int(words[0]) << 31 | int(words[1]) >> 1)


def train(
    batches: Iterator[Batch],
    engine: Engine,
    spec: TrainingSpec,
    *,
    seed: int = 0,
    resume: TrainingState | None = None,
    checkpoints: tuple[Path, CheckpointSpec] | None = None,
    hooks: Hooks | None = None,
    extra_state: Callable[[], dict[str, Any]] = dict,
) -> TrainingState:
    """Train until `spec.steps`; give back the final state (the caller decides what to keep of it).

    `batches` gives this rank's micro-batches, already placed at the position that `resume` says.

    Raises:
        TrainingError: the loss is not finite.
        DataError: the batches ended early.
        StorageError: a checkpoint could not be written.
    """
    hooks = hooks or Hooks()
    step, samples = (resume.step, resume.samples) if resume else (0, 0)
    if resume:
        engine.load(resume.parameters, resume.optimizer)
    ema = Ema(spec.ema, engine.parameters()) if spec.ema else None
    if ema and resume and resume.ema:
        ema.shadow = {name: value.clone() for name, value in resume.ema.items()}
    meter = Meter(spec.steps)
    while step < spec.steps:
        samples += _optimizer_step(batches, engine, spec, seed, step, meter)
        step += 1
        if ema:
            ema.update(engine.parameters(), step)
        if step % spec.log_every == 0 or step == spec.steps:
            hooks.on_log(step, _mean_record(engine, meter.report(step), step))
        hooks.on_step(step, ema)
        stopping = hooks.should_stop()
        if checkpoints and (step % checkpoints[1].every == 0 or step == spec.steps or stopping):
            state = _state(engine, ema, step, samples, extra_state())
            directory, checkpoint_spec = checkpoints
            path = save_checkpoint(directory, state, keep=checkpoint_spec.keep) if engine.rank == 0 else None
            hooks.on_checkpoint(step, path)
        if stopping:
            log.info("stopping after step %d as asked", step)
            break
    return _state(engine, ema, step, samples, extra_state())


def _optimizer_step(
    batches: Iterator[Batch], engine: Engine, spec: TrainingSpec, seed: int, step: int, meter: Meter
) -> int:
    seen = 0
    for micro in range(spec.gradient_accumulation):
        began = time.perf_counter()
        batch = next(batches, None)
        meter.waited(time.perf_counter() - began)
        if batch is None:
            raise DataError(f"training step {step + 1}: the data ended before step {spec.steps}", rank=engine.rank)
        output = engine.forward(batch, step_generator(seed, step, engine.rank, micro))
        engine.backward(output.loss, spec.gradient_accumulation)
        meter.add({"loss": output.loss, **output.metrics})
        seen += len(batch["keys"]) * engine.world_size
    rate = learning_rate(spec.optimizer, step, spec.steps)
    norm = engine.step(rate)
    meter.add({"gradient_norm": norm})
    meter.stepped(seen)
    return seen


def _mean_record(engine: Engine, record: dict[str, float], step: int) -> dict[str, float]:
    """Means over ranks; a loss that is not finite stops every rank at once, since all see the mean."""
    names: Sequence[str] = sorted(record)
    values = engine.mean(torch.tensor([record[name] for name in names], dtype=torch.float64))
    mean = dict(zip(names, values.tolist(), strict=True))
    if not math.isfinite(mean["loss"]):
        raise TrainingError(
            f"training: the loss is {mean['loss']} in the steps up to {step}; lower training.optimizer.learning_rate "
            "or check the data, then submit again to go on from the last checkpoint",
            rank=engine.rank,
        )
    return mean


def _state(engine: Engine, ema: Ema | None, step: int, samples: int, extra: dict[str, Any]) -> TrainingState:
    return TrainingState(
        step=step,
        samples=samples,
        parameters=engine.parameters(),
        optimizer=engine.optimizer_state(),
        ema=dict(ema.shadow) if ema else None,
        extra=extra,
    )
