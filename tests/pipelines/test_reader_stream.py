"""The training stream on a real Ray: the same rows in the same steps for any number of workers, from any position."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread

import pytest
import ray
from ray.data import DataIterator
from ray.util import placement_group, remove_placement_group

from imprint.config.data import DataSpec
from imprint.pipelines import read_webdataset
from imprint.pipelines.reading import ReadOptions
from imprint.pipelines.shards import counted, find_shards
from imprint.pipelines.stream import StreamDataConfig, StreamPlan

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning"),
]


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    os.environ["RAY_AUTH_MODE"] = "disabled"
    ray.init(num_cpus=2, include_dashboard=False, logging_level="error", log_to_driver=False)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    yield
    ray.shutdown()


def plan_of(folder: Path, start: int = 0, stop: int = 48) -> StreamPlan:
    data = DataSpec(shards=(str(folder),), image_size=16, shuffle_buffer=10)
    shards = tuple(counted(find_shards(data.shards, data.split)))
    return StreamPlan(shards, data, seed=7, batch_size=8, start=start, stop=stop)


def steps(plan: StreamPlan, workers: int) -> list[list[int]]:
    """The positions of each global step, read by `workers` consumers at once."""
    iterators = [rank["train"] for rank in StreamDataConfig().configure({"train": plan}, workers, None, None)]
    share = plan.batch_size // workers
    found: list[list[list[int]]] = [[] for _ in iterators]

    def consume(rank: int, iterator: DataIterator) -> None:
        for rows in iterator.iter_batches(batch_size=share, batch_format="numpy", prefetch_batches=2):
            assert [int(image[0, 0, 0]) for image in rows["image"]] == [int(key[-4:]) for key in rows["__key__"]]
            assert rows["context"].tolist() == [f"context {int(key[-4:])}" for key in rows["__key__"]]
            assert rows["mask"][:, :8].min() == 255
            found[rank].append([int(i) for i in rows["__index__"]])

    threads = [Thread(target=consume, args=(rank, iterator)) for rank, iterator in enumerate(iterators)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [sorted(i for rank in found for i in rank[step]) for step in range(len(found[0]))]


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_a_step_holds_the_same_rows_for_any_number_of_workers(make_shards: Callable[..., Path], workers: int) -> None:
    folder = make_shards([7, 9, 4])
    expected = [list(range(step * 8, step * 8 + 8)) for step in range(6)]
    assert steps(plan_of(folder), workers) == expected


@pytest.mark.timeout(120)
def test_it_flows_where_workers_leave_little(make_shards: Callable[..., Path]) -> None:
    """0.6 of a CPU: 0.25 for reading, 0.1 each for captions, masks and cutting."""
    held = placement_group([{"CPU": 1.4}])
    assert held.wait(60)
    try:
        expected = [list(range(step * 8, step * 8 + 8)) for step in range(6)]
        assert steps(plan_of(make_shards([7, 9, 4])), 2) == expected
    finally:
        remove_placement_group(held)


def test_the_stream_goes_on_at_a_position_in_the_next_epoch(make_shards: Callable[..., Path]) -> None:
    plan = plan_of(make_shards([7, 9, 4]), start=24, stop=40)
    assert steps(plan, 2) == [list(range(24, 32)), list(range(32, 40))]


def test_read_webdataset_gives_rows_in_order_and_ragged_pictures(make_shards: Callable[..., Path]) -> None:
    folder = make_shards([5, 3])
    rows = read_webdataset(str(folder)).take_all()
    assert [row["__key__"] for row in rows] == [f"s-{i:04d}" for i in range(8)]
    assert rows[0]["image"].shape == (16, 16, 3)
    shuffled = read_webdataset(str(folder), ReadOptions(seed=1, shuffle_buffer=8)).take_all()
    assert sorted(row["__key__"] for row in shuffled) == [row["__key__"] for row in rows]
    assert [row["__key__"] for row in shuffled] != [row["__key__"] for row in rows]
    assert json.loads(rows[3]["json"])["identity"] == "id-1"
