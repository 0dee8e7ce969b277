"""One worker of a training run on Ray Train: what every job that trains on a cluster does around its objective.

Heavy to import, since models come with it; the driver's side (`imprint.jobs.ray_fit`) is not.
"""

from __future__ import annotations

import logging
import math
import os
import platform
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import ray.train
import torch
import torch.distributed as dist
from ray.util.metrics import Gauge
from torch import Tensor

from imprint.config.jobs.cluster import ClusterJob
from imprint.config.training import ClusterSpec, EngineSpec, TrainingSpec
from imprint.jobs.early_stream import EarlyStream
from imprint.jobs.ray_fit import Folders
from imprint.objective import Batch, Objective
from imprint.tracking.journal import write_journal
from imprint.training.batches import collate
from imprint.training.checkpoint import TrainingState, latest_checkpoint
from imprint.training.ema import Ema
from imprint.training.engines.base import Engine, on_device
from imprint.training.engines.deepspeed import DeepSpeedEngine
from imprint.training.engines.torch import TorchEngine
from imprint.training.flops import count_first
from imprint.training.loop import Guard, Hooks, train

log = logging.getLogger(__name__)


def start_worker(cluster: ClusterSpec) -> torch.device:
    """Threads, logging and the device of this worker."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if cluster.gpus_per_worker:
        return ray.train.torch.get_device()
    torch.set_num_threads(cluster.threads_per_worker)
    return torch.device("cpu")


def make_engine(objective: Objective, engine: EngineSpec, training: TrainingSpec) -> Engine:
    """The engine that the job file names."""
    if engine.name == "torch":
        return TorchEngine(objective, engine, training.optimizer)
    return DeepSpeedEngine(objective, engine, training.optimizer, accumulation=training.gradient_accumulation)


def micro_batches(
    stream: EarlyStream, *, first_index: int, make_batch: Callable[[Sequence[Mapping[str, Any]]], Batch] = collate
) -> Iterator[Batch]:
    """This rank's micro-batches, as `make_batch` puts rows together.

    `first_index` is the position in the order where this run of the workers begins.

    Raises:
        RuntimeError: the stream begins elsewhere, so samples would be trained twice or left out: another checkpoint
            was written while the workers started. Ray Train starts them again.
    """
    first = True
    for columns in stream:
        if first and dist.get_rank() == 0 and int(columns["__index__"][0]) != first_index:
            raise RuntimeError(
                f"starting the stream: its first sample has position {int(columns['__index__'][0])}, expected "
                f"{first_index}; another checkpoint was written while the workers started"
            )
        first = False
        count = len(columns["__key__"])
        yield make_batch([{name: values[i] for name, values in columns.items()} for i in range(count)])


def train_rank(
    spec: ClusterJob,
    objective: Objective,
    stream: EarlyStream,
    *,
    began: float,
    grid: Grid | None,
    make_batch: Callable[[Sequence[Mapping[str, Any]]], Batch] = collate,
    afresh: Callable[[], None] | None = None,
) -> TrainingState:
    """This rank's part of a job: train the objective, on from the newest checkpoint, and give back the final state.

    `stream` gives the rank's micro-batches. `began` is when the worker started, by `time.perf_counter`; `grid` is rank
    0's; `afresh` is called where there is no checkpoint to go on from.

    Raises:
        DataError, StorageError, TrainingError: see `imprint.training.loop.train`.
    """
    folders = Folders(Path(spec.runs) / spec.name)
    resume = latest_checkpoint(folders.checkpoints)
    if resume is None and afresh is not None:
        afresh()
    training = spec.training.on_workers(dist.get_world_size(), spec.cluster.max_workers)
    device = next(objective.parameters()).device
    how = on_device(spec.engine, device)
    engine = make_engine(objective, how, training)
    batches = micro_batches(stream, first_index=resume.samples if resume else 0, make_batch=make_batch)
    hooks = GridHooks(folders, spec.training, engine, spec.grid.every if spec.grid else None, grid)
    note_start(folders, resume.step if resume else 0, time.perf_counter() - began)
    # Before the engine takes the objective apart, which it does when training begins.
    flops, batches = count_first(objective, batches, how.precision, device)
    return train(
        batches, engine, training, seed=spec.seed, resume=resume,
        checkpoints=(folders.checkpoints, spec.checkpoint), hooks=hooks,
        guard=Guard(spec.cluster.hang_timeout_s, flops, device),
    )  # fmt: skip


def leads() -> bool:
    """Whether this worker is rank 0."""
    return ray.train.get_context().get_world_rank() == 0


def note_start(folders: Folders, step: int, seconds: float) -> None:
    """Write to the journal that the workers (again) begin after `step`, and which processes they are; on every rank."""
    pids: list[int | None] = [None] * dist.get_world_size()
    dist.all_gather_object(pids, os.getpid())
    if dist.get_rank() == 0:
        record = {"workers": len(pids), "host": platform.node(), "pid": os.getpid(), "pids": pids}
        write_journal(folders.run, {"step": step, **record, "setup_seconds": round(seconds, 1)})
        log.info("%s: %d workers go on after step %d", folders.run.name, record["workers"], step)


def metric_name(name: str) -> str:
    """What Ray knows a value of a report as; in Prometheus it is `ray_` and this."""
    return "imprint_" + re.sub(r"\W+", "_", name).strip("_")


class Gauges:
    """The newest report as Ray's metrics `imprint_<name>`, which Ray exports to Prometheus, with the run for a tag."""

    def __init__(self, run: str) -> None:
        self.run = run
        self._gauges: dict[str, Gauge] = {}

    def show(self, record: Mapping[str, float]) -> None:
        for name, value in record.items():
            if not math.isfinite(value):
                continue
            key = metric_name(name)
            if key not in self._gauges:
                self._gauges[key] = Gauge(key, description=f"{name} of a training run", tag_keys=("run",))
            self._gauges[key].set(value, tags={"run": self.run})


class WorkerHooks(Hooks):
    """Rank 0 keeps the journal; all ranks agree on stopping when the `stop` file is there."""

    def __init__(self, folders: Folders, total_steps: int, log_every: int) -> None:
        self.folders, self.total_steps, self.log_every = folders, total_steps, log_every
        self.rank = dist.get_rank()
        self.gauges = Gauges(folders.run.name)
        self._step = 0

    def on_log(self, step: int, record: dict[str, float]) -> None:
        if self.rank == 0:
            self.gauges.show(record | {"step": float(step)})
            finite = {name: round(value, 6) for name, value in record.items() if math.isfinite(value)}
            write_journal(self.folders.run, {"step": step, **finite})

    def on_step(self, step: int, ema: Ema | None) -> None:
        self._step = step

    def should_stop(self) -> bool:
        """Asked at each report only: it takes a collective, since one rank may see the file a step before another."""
        if self._step % self.log_every:
            return False
        asked = torch.tensor([int(self.folders.stop.exists())])
        if dist.get_backend() == "nccl":
            asked = asked.cuda()
        dist.all_reduce(asked, dist.ReduceOp.MAX)
        return bool(asked.item())


class Grid(Protocol):
    """Pictures of held-out concepts from a state of the objective."""

    def draw(self, state: Mapping[str, Tensor], path: Path) -> None: ...


class GridHooks(WorkerHooks):
    """Draws a grid every so many steps as well, from the average where one is kept; rank 0 has the `grid`."""

    def __init__(
        self, folders: Folders, training: TrainingSpec, engine: Engine, every: int | None, grid: Grid | None
    ) -> None:
        super().__init__(folders, training.steps, training.log_every)
        self.engine, self.every, self.grid = engine, every, grid

    def on_step(self, step: int, ema: Ema | None) -> None:
        super().on_step(step, ema)
        if self.every is None or (step % self.every and step != self.total_steps):
            return
        # A collective call under ZeRO: on every rank.
        state = self.engine.whole(ema.shadow) if ema else self.engine.parameters()
        if self.grid is not None:
            path = self.folders.samples / f"step-{step:08d}.png"
            self.grid.draw(state, path)
            write_journal(self.folders.run, {"step": step, "samples": str(path.relative_to(self.folders.run))})
