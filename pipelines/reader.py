"""`read_webdataset`: webdataset shards as a Ray Data set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import ray
from ray.data import Dataset, Datasource
from ray.data.block import Block, BlockAccessor, BlockMetadata
from ray.data.context import DataContext
from ray.data.datasource import ReadTask

from imprint.pipelines.order import Slice, plan
from imprint.pipelines.pacing import PacedScheduling
from imprint.pipelines.reading import MEBIBYTE, ReadOptions, Row, read_slice
from imprint.pipelines.shards import Shard, counted, find_shards

# About 256 pictures of 64 px with their masks: small enough that stages overlap, large enough that Ray's work for
# a block (some milliseconds) is little beside decoding it.
BLOCK_BYTES = 4 * MEBIBYTE


def read_webdataset(
    shards: str | Sequence[str] | Sequence[Shard],
    options: ReadOptions | None = None,
    *,
    split: str | None = None,
    start: int = 0,
    stop: int | None = None,
    cpus: float = 1.0,
) -> Dataset:
    """Read rows [start, stop) of the order that `options` gives (see `imprint.pipelines.order`).

    Args:
        shards: folders with a manifest, paths or URLs of .tar files with braces, or shards already found.
        options: order, sizes and limits; a row has the columns of `imprint.pipelines.reading.Row`.
        split: which shards of a manifest; None takes all.
        start: position of the first row.
        stop: position after the last row, None for the end of the first epoch; past it the next epoch begins.
        cpus: what one read task takes from the cluster.

    Raises:
        DataError: no shards there.
        ShardError: one is missing or cut (here where samples must be counted, else when it is read).
    """
    found = _as_shards(shards, split)
    options = options or ReadOptions()
    counts = [shard.samples or 0 for shard in found]
    slices = list(
        plan(counts, seed=options.seed, shuffle_buffer=options.shuffle_buffer, start=start,
             stop=sum(counts) if stop is None else stop)
    )  # fmt: skip
    with DataContext.current(_our_context()):  # a data set keeps a copy of the context that it was made under
        return ray.data.read_datasource(
            WebDatasetDatasource(found, slices, options), override_num_blocks=max(1, len(slices)), num_cpus=cpus
        )


def _our_context() -> DataContext:
    context = DataContext.get_current().copy()
    context.target_max_block_size = BLOCK_BYTES
    context.execution_options.preserve_order = True
    if PacedScheduling not in context.custom_execution_callback_classes:
        context.custom_execution_callback_classes.append(PacedScheduling)
    return context


class WebDatasetDatasource(Datasource):
    """A read task for each slice of the order."""

    def __init__(self, shards: Sequence[Shard], slices: Sequence[Slice], options: ReadOptions) -> None:
        super().__init__()
        self._shards, self._slices, self._options = list(shards), list(slices), options

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
                partial(_read_blocks, {n: self._shards[n] for n in part.shards}, part, self._options, total),
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
        return 4 * (self._options.image_size or 0) ** 2 + 512


def _read_blocks(shards: Mapping[int, Shard], part: Slice, options: ReadOptions, total: int) -> Iterator[Block]:
    rows: list[Row] = []
    size = 0
    for row in read_slice(shards, part, options, total=total):
        rows.append(row)
        size += row["image"].nbytes + row["mask"].nbytes
        if size >= BLOCK_BYTES:
            yield to_block(rows)
            rows, size = [], 0
    if rows:
        yield to_block(rows)


def to_block(rows: Sequence[Row]) -> Block:
    """An Arrow table of rows; pictures of one shape lie side by side, others as ragged tensors."""
    return BlockAccessor.batch_to_block({name: _column([row[name] for row in rows]) for name in rows[0]})


def _column(values: list[Any]) -> np.ndarray:
    first = values[0]
    if not isinstance(first, np.ndarray) or all(value.shape == first.shape for value in values):
        return np.stack(values) if isinstance(first, np.ndarray) else np.array(values)
    ragged = np.empty(len(values), dtype=object)
    ragged[:] = values
    return ragged


def _as_shards(shards: str | Sequence[str] | Sequence[Shard], split: str | None) -> list[Shard]:
    if isinstance(shards, str):
        shards = [shards]
    ready = [shard for shard in shards if isinstance(shard, Shard)]
    return counted(ready or find_shards([str(place) for place in shards], split))
