"""How the stages of the data plane overlap, and how long a trainer on prepared shards waits for data.

`python benchmarks/data_stages.py '{"small": true, "folder": ...}'` prints one JSON line.

Both are measured from the first batch that reaches the consumer to the last: until then models are loaded, which a
run of hours does once; how long that takes is a number of its own.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from data_pictures import write_jpegs
from data_readers import start_ray
from ray.data import Dataset
from ray.data.block import Block
from ray.data.datasource import ReadTask

from imprint.config.data import CaptionerSpec, DataSpec, MaskerSpec, StagePool
from imprint.config.jobs.shards import PrepareShards
from imprint.pipelines import reader
from imprint.pipelines.captions import CaptionStage
from imprint.pipelines.masks import MaskStage
from imprint.pipelines.pools import pool_options
from imprint.pipelines.preparation.run import prepare_shards
from imprint.pipelines.reading import ReadOptions
from imprint.pipelines.shards import counted, find_shards
from imprint.pipelines.stream import StreamPlan, training_stream

Columns = dict[str, np.ndarray]
Work = tuple[float, float, float]  # when a batch began and ended, and the CPU seconds between
Interval = tuple[float, float]


class Timed:
    """A stage that notes in each row when its batch began and ended, and its CPU time."""

    def __init__(self, name: str, make: Callable[[], Callable[[Columns], Columns]]) -> None:
        self.name, self.stage = name, make()
        torch.set_num_threads(1)

    def __call__(self, batch: Columns) -> Columns:
        clock = _Clock()
        rows = self.stage(batch)
        return rows | clock.columns(self.name, len(batch["__key__"]))


class TimedDatasource(reader.WebDatasetDatasource):
    """The reader, noting the same."""

    def get_read_tasks(self, *args: Any, **kwargs: Any) -> list[ReadTask]:
        tasks = super().get_read_tasks(*args, **kwargs)
        return [ReadTask(partial(_timed_blocks, task.read_fn), task.metadata) for task in tasks]


def _timed_blocks(read: Callable[[], Iterator[Block]]) -> Iterator[Block]:
    clock = _Clock()
    for block in read():
        for name, values in clock.columns("read", block.num_rows).items():
            block = block.append_column(name, [values])
        yield block
        clock = _Clock()


class _Clock:
    def __init__(self) -> None:
        self.began, self.cpu = time.time(), time.thread_time()

    def columns(self, name: str, rows: int) -> Columns:
        work = self.began, time.time(), time.thread_time() - self.cpu
        return {f"{name}_{what}": np.full(rows, value) for what, value in zip(_NOTED, work, strict=True)}


_NOTED = ("began", "ended", "cpu")


def overlap(folder: Path, count: int, size: int) -> dict[str, Any]:
    """Read, caption with CLIP's phrases, mask, all at once, in blocks as a training stream has them.

    Each stage has one actor but the masker, which is the slowest and has two.
    """
    write_jpegs(folder / "stages", count, size, 4)
    captions = CaptionerSpec(kind="clip", existing="replace")
    masks = MaskerSpec(kind="embedded", actors=2)
    original = reader.WebDatasetDatasource
    reader.WebDatasetDatasource = TimedDatasource  # the benchmark alone wants to know when a block was read
    try:
        options, block = ReadOptions(), max(16, count // 40) * 4 * size * size
        rows = reader.read_webdataset(str(folder / "stages"), options, cpus=0.25, tasks=2, block_bytes=block)
    finally:
        reader.WebDatasetDatasource = original
    rows = _stage(rows, "caption", partial(CaptionStage, captions), captions)
    rows = _stage(rows, "mask", partial(MaskStage, masks), masks)
    works: dict[str, set[Work]] = {"read": set(), "caption": set(), "mask": set()}
    began, first, pictures = time.time(), 0.0, 0
    for batch in rows.iter_batches(batch_size=None, batch_format="numpy"):
        first = first or time.time()
        pictures += len(batch["__key__"])
        for name, found in works.items():
            found |= set(zip(*(batch[f"{name}_{what}"].tolist() for what in _NOTED), strict=True))
    if pictures != count:
        raise RuntimeError(f"the stages gave {pictures} of {count} pictures")
    return {"pictures": count, "size": size, "start_seconds": first - began} | _measured(works, first, time.time())


def _stage(rows: Dataset, name: str, make: Callable[[], Callable[[Columns], Columns]], spec: StagePool) -> Dataset:
    return rows.map_batches(
        Timed, fn_constructor_args=(name, make), batch_size=None, batch_format="numpy", **pool_options(spec)
    )


def _measured(works: dict[str, set[Work]], first: float, last: float) -> dict[str, Any]:
    """What each stage did between two times; of a batch across one of them, the share that lies between."""
    merged, cpu = {}, {}
    for name, found in works.items():
        within = {(max(a, first), min(b, last)) for a, b, _ in found if b > first and a < last}
        merged[name] = _union(within)
        cpu[name] = sum(c * max(0.0, min(b, last) - max(a, first)) / (b - a) for a, b, c in found if b > a)
    return {
        "wall": last - first,
        "busy": {name: sum(b - a for a, b in found) for name, found in merged.items()},
        "cpu": cpu,
        "together": _together(list(merged.values())) / (last - first),
    }


def _union(intervals: set[Interval]) -> list[Interval]:
    """The times at which any task of a stage was at work."""
    found: list[Interval] = []
    for began, ended in sorted(intervals):
        if found and began <= found[-1][1]:
            found[-1] = found[-1][0], max(ended, found[-1][1])
        else:
            found.append((began, ended))
    return found


def _together(stages: list[list[Interval]]) -> float:
    """Seconds in which two stages or more were at work."""
    changes = sorted((at, step) for found in stages for a, b in found for at, step in ((a, 1), (b, -1)))
    total, working, since = 0.0, 0, 0.0
    for at, step in changes:
        if working >= 2:
            total += at - since
        working, since = working + step, at
    return total


def trainer(folder: Path, size: int, steps: int, batch: int) -> dict[str, float]:
    """A small convolutional network on the training stream: seconds of waiting for a batch, of all seconds.

    The shards are prepared first, with masks, as `prepare_shards` leaves them. The first batch is not counted; how long
    it took to come is `start_seconds`.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    prepared = PrepareShards.model_validate({
        "job": "prepare_shards", "name": "prepared", "out_dir": str(folder / "prepared"), "run_on": "process",
        "input": {"shards": {"places": [str(folder / "stages")]}}, "masks": {"kind": "embedded"},
    })  # fmt: skip
    prepare_shards(prepared)
    spec = DataSpec(shards=(prepared.out_dir,), image_size=size, shuffle_buffer=0)
    shards = tuple(counted(find_shards(spec.shards, spec.split)))
    plan = StreamPlan(shards, spec, seed=0, batch_size=batch, start=0, stop=(steps + 1) * batch)
    asked = time.perf_counter()
    (rows,) = training_stream(plan, 1).streaming_split(1, equal=True)
    step = _Step()
    batches = iter(rows.iter_batches(batch_size=batch, batch_format="numpy", prefetch_batches=spec.prefetch_batches))
    images = next(batches)["image"]
    began = time.perf_counter()
    waits: list[float] = []
    for _ in range(steps):
        step(images)
        wanted = time.perf_counter()
        images = next(batches)["image"]
        waits.append(time.perf_counter() - wanted)
    seconds = time.perf_counter() - began
    return {
        "steps": steps, "batch": batch, "step_seconds": seconds / steps, "data_wait_share": sum(waits) / seconds,
        "longest_wait": max(waits), "start_seconds": began - asked,
    }  # fmt: skip


class _Step:
    """Two updates of a small network on one batch of pictures."""

    def __init__(self) -> None:
        self.network = torch.nn.Sequential(
            torch.nn.Conv2d(3, 32, 5, stride=2), torch.nn.SiLU(), torch.nn.Conv2d(32, 64, 3, stride=2), torch.nn.SiLU(),
            torch.nn.Conv2d(64, 128, 3, stride=2), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
            torch.nn.Linear(128, 3),
        )  # fmt: skip
        self.optimizer = torch.optim.AdamW(self.network.parameters())

    def __call__(self, images: np.ndarray) -> None:
        pixels = torch.from_numpy(images.astype(np.float32)).permute(0, 3, 1, 2) / 255
        for _ in range(2):
            loss = (self.network(pixels) - pixels.mean((2, 3))).square().mean()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()


def main(arguments: dict[str, Any]) -> None:
    """Run both and print what was measured."""
    folder, small = Path(arguments["folder"]), arguments["small"]
    start_ray()
    import ray

    found = overlap(folder, *((96, 64) if small else (1200, 128)))
    found["trainer"] = trainer(folder, found["size"], *((4, 8) if small else (100, 16)))
    print(json.dumps(found), flush=True)
    ray.shutdown()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
