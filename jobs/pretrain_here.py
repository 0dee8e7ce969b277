"""`pretrain_encoder` with `in_process`: this process alone, without Ray, on pictures that fit into its memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from torch import Tensor

from imprint.config.data import DataSpec
from imprint.config.jobs.pretrain import PretrainEncoder
from imprint.errors import DataError
from imprint.jobs.local import draw, require_finished, run_training
from imprint.jobs.sample_grid import SampleGrid
from imprint.methods.pretraining import EncoderObjective
from imprint.objective import Batch
from imprint.pipelines.order import plan
from imprint.pipelines.reading import ReadOptions, Row, read_slice
from imprint.pipelines.shards import check_present, counted, find_shards
from imprint.training.batches import collate
from imprint.training.checkpoint import TrainingState
from imprint.training.ema import Ema


def train_here(spec: PretrainEncoder, objective: EncoderObjective, source: str) -> TrainingState:
    """Train to the end with the plain engine, on from the newest checkpoint of a run of this name.

    Raises:
        DataError, ShardError: shards are missing or cut, or hold nothing.
        TrainingError: it was asked to stop before its last step, or the loss is not finite.
    """
    make_batches = partial(_batches, *read_rows(spec.data), spec.training.batch_size, spec.seed)
    grid = SampleGrid(spec.grid, objective, spec.data.image_size) if spec.grid else None
    on_step = _draws(spec, objective, grid) if grid and spec.grid else None
    state = run_training(spec, objective, make_batches, source, on_step)
    require_finished(spec, state.step)
    return state


def read_rows(data: DataSpec) -> tuple[list[Row], np.ndarray]:
    """All rows of all sources, and each one's chance to be drawn, which sums to 1 over all.

    Raises:
        DataError, ShardError: shards are missing or cut, or hold nothing.
    """
    rows: list[Row] = []
    chances: list[float] = []
    sources = [(one.shards, one.split) for one in data.sources] or [(data.shards, data.split)]
    for (places, split), weight in zip(sources, data.weights, strict=True):
        shards = counted(find_shards(places, split))
        check_present(shards)
        counts = [shard.samples or 0 for shard in shards]
        options = ReadOptions(image_size=data.image_size)
        first = len(rows)
        for part in plan(counts, seed=0, shuffle_buffer=0, start=0, stop=sum(counts)):
            rows += read_slice({n: shards[n] for n in part.shards}, part, options, total=sum(counts))
        count = len(rows) - first
        if not count:
            raise DataError(f"reading {list(places)}: no sample of split {split!r} could be read")
        chances += [weight / sum(data.weights) / count] * count
    for row in rows:
        if not row["has_mask"]:
            row["mask"] = np.full_like(row["mask"], 255)
    return rows, np.asarray(chances)


def _batches(rows: list[Row], chances: np.ndarray, batch_size: int, seed: int, first_step: int) -> Iterator[Batch]:
    """Batches without end, from `first_step` on."""
    step = first_step
    while True:
        yield collate([rows[i] for i in draw(chances, batch_size, seed, step)])
        step += 1


def _draws(spec: PretrainEncoder, objective: EncoderObjective, grid: SampleGrid) -> Callable[[int, Ema | None], None]:
    """A hook that draws the grid every so many steps, from the average where one is kept."""

    def on_step(step: int, ema: Ema | None) -> None:
        if spec.grid and (step % spec.grid.every == 0 or step == spec.training.steps):
            now: dict[str, Tensor] = dict(ema.shadow) if ema else _parameters(objective)
            grid.draw(now, Path(spec.runs) / spec.name / "samples" / f"step-{step:08d}.png")

    return on_step


def _parameters(objective: EncoderObjective) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in objective.named_parameters()}
