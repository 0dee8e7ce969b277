"""The stream of a training job: shards -> captions -> masks -> one exact sequence of rows for each worker.

Row blocks of one worker's share of a step are dealt to the workers in turn, so step s of any number of workers takes
the same rows of the order: [s B, (s + 1) B) for a global batch of B.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ray.data import DataIterator, Dataset, TaskPoolStrategy
from ray.data._internal.logical.interfaces import LogicalPlan
from ray.data._internal.logical.operators import StreamingRepartition
from ray.train import DataConfig

from imprint.config.data import DataSpec
from imprint.pipelines.captions import CaptionStage, keep_captions
from imprint.pipelines.masks import MaskStage, mask_batch
from imprint.pipelines.pools import pool_options
from imprint.pipelines.reader import read_webdataset, reading_tasks
from imprint.pipelines.reading import MEBIBYTE, ReadOptions
from imprint.pipelines.samples import FEATURES_PART
from imprint.pipelines.shards import Shard
from imprint.pipelines.storage import Retry
from imprint.pipelines.triplets import CrossReference

_BLOCK_BYTES = 4 * MEBIBYTE  # about 256 pictures of 64 px with their masks: small enough that stages overlap
# Each reads faster than most trainers train; more are more processes to start, and rows read ahead of their turn.
_TASKS_PER_WORKER = 2
_CUTTING_CPUS = 0.1


@dataclass(frozen=True)
class FrozenModels:
    """The trainer's own models, for what is computed before it: names or folders, and whether CLIP sees masks."""

    backbone: str
    clip: str
    mask_reference: bool


@dataclass(frozen=True)
class StreamPlan:
    """Rows [start, stop) of the order of `seed` over counted shards, in steps of `batch_size` rows."""

    shards: tuple[Shard, ...]
    data: DataSpec
    seed: int
    batch_size: int
    start: int
    stop: int
    quarantine: str | None = None
    cross_reference: CrossReference | None = None
    models: FrozenModels | None = None

    def read_options(self) -> ReadOptions:
        reader = self.data.reader
        return ReadOptions(
            seed=self.seed,
            shuffle_buffer=self.data.shuffle_buffer,
            image_size=self.data.image_size,
            on_bad="substitute",
            max_member_bytes=int(reader.max_member_mb * MEBIBYTE),
            max_pixels=int(reader.max_megapixels * 1e6),
            max_bad_share=reader.max_bad_share,
            quarantine=self.quarantine,
            weights=self.data.weights,
            further=(FEATURES_PART,) if self.data.precompute.source == "shards" else (),
            verify=reader.verify,
            cross_reference=self.cross_reference,
            retry=Retry(tries=reader.storage_tries),
        )


def training_stream(plan: StreamPlan, workers: int) -> Dataset:
    """The data set whose blocks, dealt out in turn, give each of `workers` its rows step by step.

    Raises:
        ValueError: the batch does not divide by the number of workers.
    """
    share, rest = divmod(plan.batch_size, workers)
    if rest:
        raise ValueError(f"batch_size={plan.batch_size} does not divide by {workers} workers")
    captions, masks, cpus = plan.data.captions, plan.data.masks, plan.data.reader.cpus
    rows = read_webdataset(
        plan.shards, plan.read_options(), start=plan.start, stop=plan.stop, cpus=cpus,
        tasks=plan.data.reader.tasks or _TASKS_PER_WORKER * workers, block_bytes=_BLOCK_BYTES,
    )  # fmt: skip
    # What takes no model runs in the tasks that read: Ray joins it with them where both take the same.
    reading = {"batch_size": None, "batch_format": "numpy", "num_cpus": cpus, "compute": reading_tasks(rows)}
    if captions.is_light:
        rows = rows.map_batches(keep_captions, **reading)
    else:
        rows = rows.map_batches(
            CaptionStage, fn_constructor_args=(captions,), batch_size=None, batch_format="numpy",
            **pool_options(captions),
        )  # fmt: skip
    if captions.is_light and masks.is_light:
        rows = rows.map_batches(mask_batch, fn_args=(masks,), **reading)
    else:
        rows = rows.map_batches(
            MaskStage, fn_constructor_args=(masks,), batch_size=share, batch_format="numpy", **pool_options(masks)
        )
    if plan.data.precompute.source == "stream":
        rows = _with_features(rows, plan, share)
    return _in_shares(rows, share, _TASKS_PER_WORKER * workers)


def _with_features(rows: Dataset, plan: StreamPlan, share: int) -> Dataset:
    from imprint.pipelines.features import FeatureStage

    models, spec = plan.models, plan.data.precompute
    if models is None:
        raise ValueError("data.precompute.source=stream: this job names no models to compute with; set it to trainer")
    return rows.map_batches(
        FeatureStage, fn_constructor_args=(spec, models.backbone, models.clip, models.mask_reference, spec.parts),
        batch_size=share, batch_format="numpy", **pool_options(spec),
    )  # fmt: skip


def _in_shares(rows: Dataset, share: int, tasks: int) -> Dataset:
    """Blocks of exactly one worker's share each, where Ray cuts them by bytes.

    As `Dataset.repartition`, which has no arguments for what its tasks take and how many run at once (Ray 2.60): each
    takes a whole CPU, and waits for ever where the workers leave none. They only cut Arrow tables.
    """
    cut = StreamingRepartition(
        target_num_rows_per_block=share, strict=True, input_dependencies=[rows._logical_plan.dag],
        ray_remote_args={"num_cpus": _CUTTING_CPUS}, compute=TaskPoolStrategy(size=tasks),
    )  # fmt: skip
    return Dataset._from_parent(rows, LogicalPlan(cut, rows.context))


class StreamDataConfig(DataConfig):
    """Makes Ray Train split a `StreamPlan` and not a data set.

    Ray Train asks for the data set before it knows how many workers there will be; the stream must know it.
    """

    def configure(
        self,
        datasets: dict[str, StreamPlan],
        world_size: int,
        worker_handles: Sequence[Any] | None,
        worker_node_ids: Sequence[str] | None,
        **kwargs: Any,
    ) -> list[dict[str, DataIterator]]:
        """The iterators of each rank by the name of its plan."""
        ranks: list[dict[str, DataIterator]] = [{} for _ in range(world_size)]
        for name, plan in datasets.items():
            dataset = training_stream(plan, world_size)
            dataset.set_name(name)
            for rank, part in zip(ranks, dataset.streaming_split(world_size, equal=True), strict=True):
                rank[name] = part
        return ranks
