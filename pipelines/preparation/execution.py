"""Where the two passes run: on Ray Data, or in this process, which small sets are done in before Ray has started."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import ray
from ray.data import Dataset, Datasource
from ray.data.block import Block, BlockAccessor, BlockMetadata
from ray.data.context import DataContext
from ray.data.datasource import ReadTask

from imprint.config.jobs.shards import PrepareShards
from imprint.pipelines.captions import CaptionStage
from imprint.pipelines.masks import MaskStage
from imprint.pipelines.pools import pool_options
from imprint.pipelines.preparation.stages import Encode, StoreFeatures
from imprint.pipelines.reader import BLOCK_BYTES, reading_context

Task = Callable[[], Iterator[Block]]


class Executor(Protocol):
    """Runs tasks that give blocks and passes on their rows in the order of the tasks."""

    def rows(self, tasks: Sequence[Task], counts: Sequence[int]) -> Iterator[dict[str, Any]]:
        """The rows as they are; `counts` is the number of rows of each task."""
        ...

    def encoded(self, tasks: Sequence[Task], counts: Sequence[int]) -> Iterator[dict[str, Any]]:
        """The rows captioned, masked and encoded, with their features."""
        ...


class InProcess:
    """One task after the other, here."""

    def __init__(self, spec: PrepareShards) -> None:
        self.spec = spec

    def rows(self, tasks: Sequence[Task], counts: Sequence[int]) -> Iterator[dict[str, Any]]:
        for task in tasks:
            for block in task():
                yield from BlockAccessor.for_block(block).to_arrow().to_pylist()

    def encoded(self, tasks: Sequence[Task], counts: Sequence[int]) -> Iterator[dict[str, Any]]:
        stages: list[Callable[[Any], Any]] = []
        if self.spec.captions is not None:
            stages.append(CaptionStage(self.spec.captions))
        if self.spec.masks is not None:
            stages.append(MaskStage(self.spec.masks))
        encode = Encode(self.spec.pictures.quality)
        features = None if self.spec.features is None else StoreFeatures(self.spec.features)
        for task in tasks:
            for block in task():
                batch: Any = BlockAccessor.for_block(block).to_batch_format("numpy")
                for stage in stages:
                    batch = stage(batch)
                encoded = encode(batch)
                yield from (encoded if features is None else features(encoded)).to_pylist()


class OnRay:
    """Tasks and actors of Ray Data, so that reading, captions, masks and encoding overlap. Ray must be running."""

    def __init__(self, spec: PrepareShards) -> None:
        self.spec = spec

    def rows(self, tasks: Sequence[Task], counts: Sequence[int]) -> Iterator[dict[str, Any]]:
        return _rows(self._read(tasks, counts))

    def encoded(self, tasks: Sequence[Task], counts: Sequence[int]) -> Iterator[dict[str, Any]]:
        data = self._read(tasks, counts)
        for stage, section in ((CaptionStage, self.spec.captions), (MaskStage, self.spec.masks)):
            if section is not None:
                data = data.map_batches(
                    stage, fn_constructor_args=(section,), batch_size=None, batch_format="numpy",
                    **pool_options(section),
                )  # fmt: skip
        encode = Encode(self.spec.pictures.quality)
        data = data.map_batches(encode, batch_size=None, batch_format="numpy", num_cpus=self.spec.reader.cpus)
        if self.spec.features is not None:
            data = data.map_batches(
                StoreFeatures, fn_constructor_args=(self.spec.features,), batch_size=None, batch_format="pyarrow",
                **pool_options(self.spec.features),
            )  # fmt: skip
        return _rows(data)

    def _read(self, tasks: Sequence[Task], counts: Sequence[int]) -> Dataset:
        with DataContext.current(reading_context(BLOCK_BYTES)):
            return ray.data.read_datasource(
                _Tasks(tasks, counts), override_num_blocks=len(tasks), num_cpus=self.spec.reader.cpus,
                concurrency=self.spec.reader.tasks and min(self.spec.reader.tasks, max(1, len(tasks))),
            )  # fmt: skip


def _rows(data: Dataset) -> Iterator[dict[str, Any]]:
    for batch in data.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=2):
        yield from batch.to_pylist()


class _Tasks(Datasource):
    """A read task for each of `tasks`."""

    def __init__(self, tasks: Sequence[Task], counts: Sequence[int]) -> None:
        super().__init__()
        self._tasks, self._counts = list(tasks), list(counts)

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: DataContext | None = None
    ) -> list[ReadTask]:
        """One task each, whatever `parallelism` says: the order of rows is that of the tasks."""
        return [
            ReadTask(task, BlockMetadata(num_rows=count, size_bytes=None, exec_stats=None), per_task_row_limit=None)
            for task, count in zip(self._tasks, self._counts, strict=True)
        ]
