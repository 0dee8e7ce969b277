"""`read_webdataset`: webdataset shards as a Ray Data set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import ray
from ray.data import Dataset, Datasource
from ray.data._internal.compute import ComputeStrategy
from ray.data.block import Block, BlockMetadata
from ray.data.context import DataContext
from ray.data.datasource import ReadTask

from imprint.pipelines.blocks import RAYS_TARGET, BlockBuilder, to_blocks
from imprint.pipelines.mixing import Mix, MixedSlice, plan_mix
from imprint.pipelines.pacing import PacedScheduling
from imprint.pipelines.reading import MEBIBYTE, ReadOptions, read_rows
from imprint.pipelines.shards import Shard, counted, find_shards

# 128 pictures of 256 px: Ray's work for a block (some milliseconds) is then little beside decoding it.
BLOCK_BYTES = 24 * MEBIBYTE


def read_webdataset(
    shards: str | Sequence[str] | Sequence[Shard],
    options: ReadOptions | None = None,
    *,
    split: str | None = None,
    start: int = 0,
    stop: int | None = None,
    cpus: float = 1.0,
    tasks: int | None = None,
    block_bytes: int = BLOCK_BYTES,
) -> Dataset:
    """Read rows [start, stop) of the order that `options` gives (see `imprint.pipelines.order`).

    Args:
        shards: folders with a manifest, paths or URLs of .tar files with braces, or shards already found.
        options: order, sizes and limits; a row has the columns of `imprint.pipelines.reading.Row`.
        split: which shards of a manifest; None takes all.
        start: position of the first row.
        stop: position after the last row, None for as many rows as there are samples; past them the next epoch
            begins.
        cpus: what one read task takes from the cluster.
        tasks: how many read at once at the most; None for as many as the cluster has CPUs for.
        block_bytes: size of the blocks that rows come in, whatever their pictures' size.

    Raises:
        DataError: no shards there.
        ShardError: one is missing or cut (here where samples must be counted, else when it is read).
    """
    options = options or ReadOptions()
    found = _as_shards(shards, split, options)
    counts = [shard.samples or 0 for shard in found]
    slices = list(
        plan_mix(counts, [shard.source for shard in found], Mix(options.weights), seed=options.seed,
                 shuffle_buffer=options.shuffle_buffer, start=start, stop=sum(counts) if stop is None else stop)
    )  # fmt: skip
    # A data set keeps a copy of the context that it was made under.
    with DataContext.current(reading_context(block_bytes)):
        return ray.data.read_datasource(
            WebDatasetDatasource(found, slices, options, block_bytes),
            override_num_blocks=max(1, len(slices)),
            num_cpus=cpus,
            concurrency=tasks and min(tasks, max(1, len(slices))),
        )


def reading_tasks(rows: Dataset) -> ComputeStrategy:
    """How many of the read tasks of `read_webdataset` run at once; a map that says the same is joined with them."""
    return rows._logical_plan.dag.compute


def reading_context(block_bytes: int) -> DataContext:
    """Ray Data's context for blocks of this size that come in the order of their tasks."""
    context = DataContext.get_current().copy()
    context.target_max_block_size = int(RAYS_TARGET * block_bytes)
    context.execution_options.preserve_order = True
    if PacedScheduling not in context.custom_execution_callback_classes:
        context.custom_execution_callback_classes.append(PacedScheduling)
    return context


class WebDatasetDatasource(Datasource):
    """A read task for each slice of the order."""

    def __init__(
        self, shards: Sequence[Shard], slices: Sequence[MixedSlice], options: ReadOptions, block_bytes: int
    ) -> None:
        super().__init__()
        self._shards, self._slices, self._options = list(shards), list(slices), options
        self._block_bytes = block_bytes

    def estimate_inmemory_data_size(self) -> int | None:
        if self._options.image_size is None:
            return None
        return sum(part.rows for part in self._slices) * self._row_bytes()

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: DataContext | None = None
    ) -> list[ReadTask]:
        """One task a slice, whatever `parallelism` says: a slice is the unit of the order."""
        exact = self._options.on_bad == "substitute"
        total = sum(shard.samples or 0 for shard in self._shards)
        return [
            ReadTask(
                partial(
                    _read_blocks,
                    {n: self._shards[n] for n in part.shards},
                    part,
                    self._options,
                    total,
                    self._block_bytes,
                ),
                BlockMetadata(
                    num_rows=part.rows if exact else None,
                    size_bytes=part.rows * self._row_bytes() if self._options.image_size else None,
                    exec_stats=None,
                ),
                per_task_row_limit=per_task_row_limit,
            )
            for part in self._slices
        ]

    def _row_bytes(self) -> int:
        return _pixel_bytes(self._options) * (self._options.image_size or 0) ** 2 + 512


def _read_blocks(
    shards: Mapping[int, Shard], part: MixedSlice, options: ReadOptions, total: int, block_bytes: int
) -> Iterator[Block]:
    builder = BlockBuilder(block_bytes, pixel_bytes=_pixel_bytes(options))
    yield from to_blocks(read_rows(shards, part, options, total=total, room=builder.room), builder)


def _pixel_bytes(options: ReadOptions) -> int:
    """What a pixel takes in a row: colours, mask, and both of the object's picture where there is one."""
    own = 4 if options.masks else 3
    return 2 * own if options.cross_reference else own


def _as_shards(shards: str | Sequence[str] | Sequence[Shard], split: str | None, options: ReadOptions) -> list[Shard]:
    if isinstance(shards, str):
        shards = [shards]
    ready = [shard for shard in shards if isinstance(shard, Shard)]
    return counted(ready or find_shards([str(place) for place in shards], split), options.retry)
