"""How the stages of the data plane overlap, and how long a trainer on prepared shards waits for data.

`python benchmarks/data_stages.py '{"small": true, "folder": ...}'` prints one JSON line.
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
from ray.data import ActorPoolStrategy, Dataset
from ray.data.block import Block
from ray.data.datasource import ReadTask

from imprint.config.data import CaptionerSpec, DataSpec, MaskerSpec
from imprint.pipelines import reader
from imprint.pipelines.captions import CaptionStage
from imprint.pipelines.masks import MaskStage
from imprint.pipelines.reading import ReadOptions
from imprint.pipelines.shards import counted, find_shards
from imprint.pipelines.stream import StreamPlan, training_stream

Columns = dict[str, np.ndarray]
Interval = tuple[float, float]
_WARM_STEPS = 3


class Timed:
    """A stage that notes in each row when its batch began and ended."""

    def __init__(self, name: str, make: Callable[[], Callable[[Columns], Columns]]) -> None:
        self.name, self.stage = name, make()
        torch.set_num_threads(1)

    def __call__(self, batch: Columns) -> Columns:
        began = time.time()
        rows = self.stage(batch)
        return rows | _noted(self.name, began, len(batch["__key__"]))


class TimedDatasource(reader.WebDatasetDatasource):
    """The reader, noting the same."""

    def get_read_tasks(self, *args: Any, **kwargs: Any) -> list[ReadTask]:
        tasks = super().get_read_tasks(*args, **kwargs)
        return [ReadTask(partial(_timed_blocks, task.read_fn), task.metadata) for task in tasks]


def _timed_blocks(read: Callable[[], Iterator[Block]]) -> Iterator[Block]:
    blocks, began = iter(read()), time.time()
    for block in blocks:
        for name, values in _noted("read", began, block.num_rows).items():
            block = block.append_column(name, [values])
        yield block
        began = time.time()


def _noted(name: str, began: float, rows: int) -> Columns:
    return {f"{name}_began": np.full(rows, began), f"{name}_ended": np.full(rows, time.time())}


def overlap(folder: Path, count: int, size: int) -> dict[str, Any]:
    """Read, caption with CLIP's phrases, mask, all at once; when was each at work?"""
    write_jpegs(folder / "stages", count, size, 4)
    captions = CaptionerSpec(kind="clip", existing="replace")
    masks = MaskerSpec(kind="embedded")
    original = reader.WebDatasetDatasource
    reader.WebDatasetDatasource = TimedDatasource  # the benchmark alone wants to know when a block was read
    try:
        rows = reader.read_webdataset(str(folder / "stages"), ReadOptions(), cpus=0.5)
    finally:
        reader.WebDatasetDatasource = original
    for name, make in (("caption", partial(CaptionStage, captions)), ("mask", partial(MaskStage, masks))):
        rows = _stage(rows, name, make)
    times: dict[str, set[Interval]] = {"read": set(), "caption": set(), "mask": set()}
    for batch in rows.iter_batches(batch_size=None, batch_format="numpy"):
        for name, found in times.items():
            found |= set(zip(batch[f"{name}_began"].tolist(), batch[f"{name}_ended"].tolist(), strict=True))
    merged = {name: _union(found) for name, found in times.items()}
    begin = min(interval[0] for found in merged.values() for interval in found)
    end = max(interval[1] for found in merged.values() for interval in found)
    return {
        "pictures": count, "size": size, "wall": end - begin,
        "busy": {name: sum(b - a for a, b in found) for name, found in merged.items()},
        "together": _together(list(merged.values())) / (end - begin),
    }  # fmt: skip


def _stage(rows: Dataset, name: str, make: Callable[[], Callable[[Columns], Columns]]) -> Dataset:
    return rows.map_batches(
        Timed, fn_constructor_args=(name, make), batch_size=None, batch_format="numpy",
        compute=ActorPoolStrategy(size=1), num_cpus=0.25,
    )  # fmt: skip


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
    """A small convolutional network on the training stream: seconds of waiting for a batch, of all seconds."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    spec = DataSpec(shards=(str(folder / "stages"),), image_size=size, shuffle_buffer=0)
    shards = tuple(counted(find_shards(spec.shards, spec.split)))
    plan = StreamPlan(shards, spec, seed=0, batch_size=batch, start=0, stop=(steps + _WARM_STEPS) * batch)
    (rows,) = training_stream(plan, 1).streaming_split(1, equal=True)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 32, 5, stride=2), torch.nn.SiLU(), torch.nn.Conv2d(32, 64, 3, stride=2), torch.nn.SiLU(),
        torch.nn.Conv2d(64, 128, 3, stride=2), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
        torch.nn.Linear(128, 3),
    )  # fmt: skip
    optimizer = torch.optim.AdamW(network.parameters())
    batches = iter(rows.iter_batches(batch_size=batch, batch_format="numpy", prefetch_batches=4))
    waited, began = 0.0, time.perf_counter()
    for step in range(steps + _WARM_STEPS):
        if step == _WARM_STEPS:
            waited, began = 0.0, time.perf_counter()
        asked = time.perf_counter()
        images = next(batches)["image"]
        waited += time.perf_counter() - asked
        pixels = torch.from_numpy(images.astype(np.float32)).permute(0, 3, 1, 2) / 255
        for _ in range(2):
            loss = (network(pixels) - pixels.mean((2, 3))).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    seconds = time.perf_counter() - began
    return {"steps": steps, "batch": batch, "step_seconds": seconds / steps, "data_wait_share": waited / seconds}


def main(arguments: dict[str, Any]) -> None:
    """Run both and print what was measured."""
    folder, small = Path(arguments["folder"]), arguments["small"]
    start_ray()
    import ray

    found = overlap(folder, *((96, 64) if small else (1200, 128)))
    found["trainer"] = trainer(folder, found["size"], *((4, 8) if small else (40, 16)))
    print(json.dumps(found), flush=True)
    ray.shutdown()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
