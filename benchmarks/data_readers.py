"""The three readers that the data benchmark compares, each in a process of its own with two workers.

`python benchmarks/data_readers.py '{"reader": "ours", "folder": ..., "passes": 3, ...}'` prints one JSON line. Every
reader decodes picture, caption and json and hands batches to the consumer, of which four are prepared ahead.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from data_processes import CpuMeter, MemoryWatch

WORKERS = 2
AHEAD = 4  # batches
# Ray gives up on its own processes after half a minute or one, which is short on a busy machine.
_PATIENCE = {
    "RAY_raylet_start_wait_time_s": "300",
    "RAY_DASHBOARD_STARTUP_TIMEOUT_S": "300",
    "RAY_worker_register_timeout_seconds": "300",
    "RAY_agent_register_timeout_ms": "300000",
}
STORE_BYTES = 600 << 20  # Ray's object store; what a worker maps of it counts into its resident memory


@dataclass
class Passes:
    """What one reader did: seconds and CPU seconds of each whole pass, and the memory of its workers."""

    reader: str
    images: int
    seconds: list[float]
    cpu_seconds: list[float]
    consumer_cpu_seconds: list[float]
    peak_resident_mb: float
    peak_private_mb: float


OnePass = Callable[[], Iterator[Any]]  # a whole pass over a folder, in batches of pictures


def ours(folder: str, batch_size: int) -> OnePass:
    from imprint.pipelines import read_webdataset
    from imprint.pipelines.reading import ReadOptions

    def one_pass() -> Iterator[Any]:
        data = read_webdataset(folder, ReadOptions(masks=False))
        for batch in data.iter_batches(batch_size=batch_size, batch_format="numpy", prefetch_batches=AHEAD):
            yield batch["image"]

    return one_pass


def rays(folder: str, batch_size: int) -> OnePass:
    import ray

    shards = sorted(str(path) for path in Path(folder).glob("*.tar"))

    def one_pass() -> Iterator[Any]:
        data = ray.data.read_webdataset(shards, override_num_blocks=len(shards))
        for batch in data.iter_batches(batch_size=batch_size, batch_format="numpy", prefetch_batches=AHEAD):
            yield batch["jpg"]

    return one_pass


def webdatasets(folder: str, batch_size: int) -> OnePass:
    import torch
    import webdataset as wds

    shards = sorted(str(path) for path in Path(folder).glob("*.tar"))
    data = wds.WebDataset(shards, shardshuffle=False, empty_check=False).decode("rgb8")
    data = data.to_tuple("jpg", "txt", "json", "__key__").batched(batch_size)
    workers = min(WORKERS, len(shards))
    loader = torch.utils.data.DataLoader(
        data, batch_size=None, num_workers=workers, persistent_workers=True, prefetch_factor=AHEAD
    )

    def one_pass() -> Iterator[Any]:
        for batch in loader:
            yield batch[0]

    return one_pass


def measure(reader: str, folder: str, images: int, passes: int, batch_size: int) -> Passes:
    """Whole passes over a folder, after one that is not counted, in which all workers start."""
    one_pass = {"ours": ours, "ray": rays, "webdataset": webdatasets}[reader](folder, batch_size)
    _consume(one_pass)
    found = Passes(reader, images, [], [], [], 0, 0)
    with MemoryWatch() as memory:
        for _ in range(passes):
            meter, began = CpuMeter(), time.perf_counter()
            seen = _consume(one_pass)
            if seen != images:
                raise RuntimeError(f"{reader} gave {seen} of {images} pictures")
            found.seconds.append(time.perf_counter() - began)
            own, others = meter.read()
            found.cpu_seconds.append(own + others)
            found.consumer_cpu_seconds.append(own)
    found.peak_resident_mb, found.peak_private_mb = memory.resident_mb, memory.private_mb
    return found


def _consume(one_pass: OnePass) -> int:
    """Take every batch and touch each of its pictures."""
    seen, touched = 0, 0
    for images in one_pass():
        seen += len(images)
        touched += sum(int(image[0, 0, 0]) for image in images)
    return seen if touched >= 0 else 0


def start_ray() -> None:
    """Ray on this machine alone, with as many CPUs as the readers may have workers."""
    os.environ["RAY_AUTH_MODE"] = "disabled"
    for name, seconds in _PATIENCE.items():
        os.environ.setdefault(name, seconds)
    import ray

    ray.init(
        num_cpus=WORKERS, include_dashboard=False, object_store_memory=STORE_BYTES, logging_level="error",
        log_to_driver=False,
    )  # fmt: skip
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False


def main(arguments: dict[str, Any]) -> None:
    """Run one reader and print what was measured."""
    if arguments["reader"] != "webdataset":
        start_ray()
    print(json.dumps(asdict(measure(**arguments))), flush=True)
    if arguments["reader"] != "webdataset":
        import ray

        ray.shutdown()


if __name__ == "__main__":
    np.seterr(all="raise")
    main(json.loads(sys.argv[1]))
