"""The one training loop: every job, every engine."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from imprint.config.training import CheckpointSpec, TrainingSpec
from imprint.errors import DataError, TrainingError
from imprint.training.batches import Batch
from imprint.training.checkpoint import TrainingState
from imprint.training.checkpoint_writer import CheckpointWriter
from imprint.training.ema import Ema
from imprint.training.engines.base import Engine
from imprint.training.heap import keep_freed_memory
from imprint.training.meters import Meter
from imprint.training.peaks import peak_flops
from imprint.training.schedule import learning_rate
from imprint.training.watchdog import Watchdog

log = logging.getLogger(__name__)


class Hooks:
    """What a job does around the loop; every method may be overridden, all run on every rank."""

    def on_log(self, step: int, record: dict[str, float]) -> None:
        """Means over ranks and over the steps since the last call."""

    def on_checkpoint(self, step: int, path: Path | None) -> None:
        """A checkpoint of this step is being written in the folder `path` (None on other ranks than 0)."""

    def on_step(self, step: int, ema: Ema | None) -> None:
        """After every step."""

    def should_stop(self) -> bool:
        """Ask to stop after this step (SIGTERM, say): a checkpoint is written first."""
        return False


def step_generator(seed: int, step: int, first: int, device: torch.device | str = "cpu") -> torch.Generator:
    """The generator of one micro-batch, which begins with picture `first` of the step's whole batch.

    A pure function of its arguments, so that no RNG state is ever saved; and since neither rank nor number of ranks is
    among them, micro-batches of one size draw the same numbers wherever they are computed.
    """
    words = np.random.SeedSequence([seed, step, first]).generate_state(2, np.uint32)
    return torch.Generator(device).manual_seed(int(words[0]) << 31 | int(words[1]) >> 1)


@dataclass(frozen=True)
class Guard:
    """What is done about a run that no longer moves, and what its speed is measured by."""

    hang_timeout_s: float | None = None
    flops_per_image: float | None = None
    device: torch.device | None = None


def train(
    batches: Iterator[Batch],
    engine: Engine,
    spec: TrainingSpec,
    *,
    seed: int = 0,
    resume: TrainingState | None = None,
    checkpoints: tuple[Path, CheckpointSpec] | None = None,
    hooks: Hooks | None = None,
    guard: Guard | None = None,
    extra_state: Callable[[], dict[str, Any]] = dict,
) -> TrainingState:
    """Train until `spec.steps`; give back the final state (the caller decides what to keep of it).

    `batches` gives this rank's micro-batches, already placed at the position that `resume` says.

    Raises:
        TrainingError: more steps than `spec.max_skipped_steps` had a loss or gradient that is not finite.
        DataError: the batches ended early.
        StorageError: a checkpoint could not be written.
    """
    return _Run(batches, engine, spec, seed, hooks or Hooks(), guard or Guard(), extra_state).train(resume, checkpoints)


class _Run:
    """One call of `train`."""

    def __init__(
        self,
        batches: Iterator[Batch],
        engine: Engine,
        spec: TrainingSpec,
        seed: int,
        hooks: Hooks,
        guard: Guard,
        extra_state: Callable[[], dict[str, Any]],
    ) -> None:
        self.batches, self.engine, self.spec, self.seed = batches, engine, spec, seed
        self.hooks, self.guard, self.extra_state = hooks, guard, extra_state
        self.meter = Meter(
            spec.steps,
            workers=engine.world_size,
            flops_per_image=guard.flops_per_image,
            peak_flops=peak_flops(guard.device) if guard.device else None,
            device=guard.device or torch.device("cpu"),
        )
        self.step = self.samples = 0
        self.ema: Ema | None = None
        self.writer: CheckpointWriter | None = None
        self.skipped = 0.0
        self.losses: list[float] = []
        self.beat: Callable[..., None] = lambda doing, **_: None

    def train(self, resume: TrainingState | None, checkpoints: tuple[Path, CheckpointSpec] | None) -> TrainingState:
        engine = self.engine
        keep_freed_memory()
        if resume:
            self.step, self.samples = resume.step, resume.samples
            engine.load(resume.parameters, resume.optimizer)
        self.ema = Ema(self.spec.ema, engine.master()) if self.spec.ema else None
        if self.ema and resume and resume.ema:
            self.ema.shadow = engine.parts(resume.ema)
        if checkpoints and engine.rank == 0:
            self.writer = CheckpointWriter(*checkpoints)
        with ExitStack() as stack:
            if self.guard.hang_timeout_s is not None:
                watchdog = stack.enter_context(Watchdog(self.guard.hang_timeout_s, engine.rank))
                self.beat = watchdog.beat
            if self.writer is not None:
                stack.callback(self.writer.finish)
            return self._steps(checkpoints[1].every if checkpoints else None)

    def _steps(self, every: int | None) -> TrainingState:
        spec, state = self.spec, None
        first = self.step
        while self.step < spec.steps:
            state = None
            self.samples += self._optimizer_step(started=self.step > first)
            self.step += 1
            if self.ema:
                self.ema.update(self.engine.master(), self.step)
            saves = every is not None and (self.step % every == 0 or self.step == spec.steps)
            if self.step % spec.log_every == 0 or self.step == spec.steps:
                self._report()
            self.beat("in the job's own hooks")
            self.hooks.on_step(self.step, self.ema)
            stopping = self.hooks.should_stop()
            if saves or (stopping and every is not None):
                state = self._save()
            if stopping:
                log.info("stopping after step %d as asked", self.step)
                break
        return state or self._state()

    def _optimizer_step(self, *, started: bool) -> int:
        engine, spec, meter = self.engine, self.spec, self.meter
        seen = 0
        for micro in range(spec.gradient_accumulation):
            self.beat("waiting for data", started=started)
            began = time.perf_counter()
            batch = next(self.batches, None)
            meter.waited(time.perf_counter() - began)
            if batch is None:
                raise DataError(
                    f"training step {self.step + 1}: the data ended before step {spec.steps}", rank=engine.rank
                )
            self.beat("in a forward or backward pass", started=started)
            size = len(batch["keys"])
            first = (engine.rank * spec.gradient_accumulation + micro) * size
            output = engine.forward(batch, step_generator(self.seed, self.step, first))
            engine.backward(output.loss, spec.gradient_accumulation)
            meter.add({"loss": output.loss, **output.metrics})
            if output.by_timestep is not None:
                meter.add_by_timestep(*output.by_timestep)
            seen += size * engine.world_size
        norm = engine.step(learning_rate(spec.optimizer, self.step, spec.steps))
        meter.add({"gradient_norm": norm, "skipped_steps": (~norm.isfinite()).float()})
        meter.stepped(seen)
        return seen

    def _report(self) -> None:
        """Means over ranks; since all see the same, all stop at once where too many steps had to be left out."""
        steps = self.meter.steps
        record = self.meter.report(self.step)
        # Rank 0 writes; what is not finite is left out of the mean over ranks.
        record["checkpoint_write_seconds"] = math.nan if self.writer is None else self.writer.seconds or 0.0
        mean = _mean_over_ranks(self.engine, record)
        self.skipped += mean["skipped_steps"] * steps
        mean["skipped_steps"] = self.skipped
        if math.isfinite(mean["loss"]):
            self.losses.append(mean["loss"])
        self.hooks.on_log(self.step, mean)
        if round(self.skipped) > self.spec.max_skipped_steps:
            raise TrainingError(
                f"training: the loss is {mean['loss']}; {round(self.skipped)} steps up to {self.step} had no finite "
                f"gradient and were left out, expected training.max_skipped_steps={self.spec.max_skipped_steps} at the "
                "most. Lower training.optimizer.learning_rate or check the data, then submit again to go on from the "
                "last checkpoint",
                rank=self.engine.rank,
            )

    def _save(self) -> TrainingState:
        self.beat("writing a checkpoint")
        began = time.perf_counter()
        state = self._state()
        if self.writer is not None:
            self.writer.save(state)
            self.hooks.on_checkpoint(self.step, self.writer.directory)
        else:
            self.hooks.on_checkpoint(self.step, None)
        self.losses = []
        self.meter.blocked(time.perf_counter() - began)
        return state

    def _state(self) -> TrainingState:
        return TrainingState(
            step=self.step,
            samples=self.samples,
            parameters=self.engine.parameters(),
            optimizer=self.engine.optimizer_state(),
            ema=self.engine.whole(self.ema.shadow) if self.ema else None,
            extra=self.extra_state(),
            loss=sum(self.losses) / len(self.losses) if self.losses else None,
        )


def _mean_over_ranks(engine: Engine, record: dict[str, float]) -> dict[str, float]:
    """Each metric over the ranks that have a finite value of it; NaN where none has."""
    names = sorted(record)
    values = torch.tensor([record[name] for name in names], dtype=torch.float64)
    finite = values.isfinite()
    sums = engine.mean(torch.cat([torch.where(finite, values, 0), finite.double()]))
    total, count = sums.chunk(2)
    return dict(zip(names, (total / count).tolist(), strict=True))
