"""What the two data sets share: pictures drawn once at the largest size, written at every size, in parallel."""

from __future__ import annotations

import importlib.metadata
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from imprint.config.jobs.prepare import Prepare
from imprint.errors import DataError
from imprint.pipelines.datasets.compositing import box_reduce, composite, encode_sample
from imprint.pipelines.writer import Sample, ShardFolder, ShardInfo, shard_name, write_shard

Progress = Callable[[int, int], None]
"""Called with the number of pictures written and the number of all."""


class Picture(NamedTuple):
    """One picture before it is encoded. `fields` become the sample's json."""

    key: str
    subject: NDArray[np.uint8]  # RGBA [size, size, 4]
    background: NDArray[np.uint8]  # RGB [size, size, 3]
    caption: str
    fields: dict[str, Any]


@dataclass(frozen=True)
class ShardPlan:
    """A shard to be written. `items` are what `render` draws from, one a sample; they pickle."""

    split: str
    index: int
    items: tuple[Any, ...]

    @property
    def name(self) -> str:
        return shard_name(self.split, self.index)


Spec = TypeVar("Spec", bound=Prepare)
Render = Callable[[Spec, Any, int], Picture]
"""`render(spec, item, size)`: a module's function, so that it can be sent to another process."""


def plan_shards(split: str, items: Sequence[Any], samples_per_shard: int) -> list[ShardPlan]:
    """`items` in order, cut into shards."""
    starts = range(0, len(items), samples_per_shard)
    return [
        ShardPlan(split, index, tuple(items[start : start + samples_per_shard])) for index, start in enumerate(starts)
    ]


def made_with(*packages: str) -> dict[str, str]:
    """The installed versions of what the bytes of a picture depend on."""
    return {name: importlib.metadata.version(name) for name in packages}


def prepare(
    spec: Spec,
    dataset: str,
    header: dict[str, Any],
    plans: Sequence[ShardPlan],
    render: Render[Spec],
    progress: Progress | None = None,
) -> dict[int, Path]:
    """Writes `plans` at every size of `spec` under `spec.out_dir`; returns the folder of each size.

    Shards that an earlier run finished under the same header are kept. The manifest of a size comes last.

    Raises:
        StorageError: no space or no permission.
        DataError: a picture could not be drawn, or a rendering process died.
    """
    folders = {
        size: ShardFolder(Path(spec.out_dir).expanduser() / f"{dataset}-{size}", {**header, "size": size})
        for size in spec.sizes
    }
    work: list[tuple[ShardPlan, dict[int, Path]]] = []
    for plan in plans:
        missing = {
            size: folder.path / plan.name for size, folder in folders.items() if not folder.is_finished(plan.name)
        }
        if missing:
            work.append((plan, missing))
    total = sum(len(plan.items) for plan in plans)
    done = total - sum(len(plan.items) for plan, _ in work)
    for plan, infos in _run(spec, work, render):
        for size, info in infos.items():
            folders[size].record(info)
        done += len(plan.items)
        if progress is not None:
            progress(done, total)
    for folder in folders.values():
        folder.finish([plan.name for plan in plans])
    return {size: folder.path for size, folder in folders.items()}


def _run(
    spec: Spec, work: Sequence[tuple[ShardPlan, dict[int, Path]]], render: Render[Spec]
) -> Iterator[tuple[ShardPlan, dict[int, ShardInfo]]]:
    workers = min(spec.workers or os.cpu_count() or 1, len(work))
    if workers <= 1:
        for plan, paths in work:
            yield plan, _write_plan(spec, plan, paths, render)
        return
    # spawn, not fork: the caller may have threads (Ray, torch), whose locks a forked child would inherit held.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_parent)
    try:
        futures: dict[Future[dict[int, ShardInfo]], ShardPlan] = {
            pool.submit(_write_plan, spec, plan, paths, render): plan for plan, paths in work
        }
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BrokenProcessPool as error:
        raise DataError(
            f"rendering pictures: one of {workers} processes died, most likely for want of memory; "
            "set workers lower and run again, finished shards are kept"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """Ends this process as soon as its parent is gone: a killed pool would leave its workers writing, then waiting."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def _write_plan(spec: Spec, plan: ShardPlan, paths: dict[int, Path], render: Render[Spec]) -> dict[int, ShardInfo]:
    """Draws the pictures of a shard once and writes them at the sizes of `paths`."""
    samples: dict[int, list[Sample]] = {size: [] for size in paths}
    for item in plan.items:
        picture = render(spec, item, max(spec.sizes))
        pixels = composite(picture.subject, picture.background)
        for size in paths:
            members = encode_sample(
                box_reduce(pixels, size),
                box_reduce(picture.subject[..., 3], size),
                picture.caption,
                picture.fields,
            )
            samples[size].append(Sample(picture.key, members))
    return {size: write_shard(path, plan.split, samples[size]) for size, path in paths.items()}
