"""The stream of one worker, asked for before the worker imports its models.

The data plane's actors take as long to start as a worker takes to import torch and diffusers. A killed run is back that
much sooner where both happen at once, so nothing heavy is imported here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from threading import Thread
from typing import Any

import ray.train
from ray.data import DataIterator

from imprint.config.training import ClusterSpec, TrainingSpec

Columns = Mapping[str, Any]


class EarlyStream:
    """Micro-batches of this rank; the first is fetched in a thread from the start."""

    def __init__(self, iterator: DataIterator, size: int, prefetch: int) -> None:
        self.size = size
        batches = iterator.iter_batches(batch_size=size, prefetch_batches=prefetch, batch_format="numpy")
        self._batches = iter(batches)
        self._first: Future[Columns | None] = Future()
        # A daemon, so that a worker whose imports fail does not wait for pictures.
        Thread(target=self._fetch, name="first batch", daemon=True).start()

    @classmethod
    def of_this_worker(cls, spec: Mapping[str, Any]) -> EarlyStream:
        """`spec` is a `ClusterJob` as JSON."""
        workers = ray.train.get_context().get_world_size()
        most = ClusterSpec.model_validate(spec["cluster"]).max_workers
        training = TrainingSpec.model_validate(spec["training"]).on_workers(workers, most)
        iterator = ray.train.get_dataset_shard("train")
        return cls(iterator, training.micro_batch_size(workers), spec["data"]["prefetch_batches"])

    def _fetch(self) -> None:
        try:
            self._first.set_result(next(self._batches, None))
        except BaseException as error:
            self._first.set_exception(error)

    def __iter__(self) -> Iterator[Columns]:
        """All batches, once; what the data plane raised is raised here."""
        first = self._first.result()
        if first is not None:
            yield first
            yield from self._batches
