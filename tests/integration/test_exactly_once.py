"""The same with Ray: workers and their streams are killed at twenty random points, on one worker, two, one again."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from exactly_once import Notes, assert_taken_once
from ray.data import DataIterator
from small_shards import write_shards

from imprint.config.data import DataSpec
from imprint.pipelines.shards import counted, find_sources
from imprint.pipelines.stream import StreamDataConfig, StreamPlan
from imprint.pipelines.writer import Sample

pytestmark = [
    pytest.mark.integration,
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning"),
]
KILLS, WORKERS, BATCH, STEPS = 20, (1, 2, 1), 4, 150
WAIT_S = 300
HERE = Path(__file__).parent


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("PYTHONPATH", os.pathsep.join(map(str, (HERE, HERE.parent))))  # the workers import this module
        ray.init(
            num_cpus=4, include_dashboard=False, logging_level="error", log_to_driver=False,
            object_store_memory=200_000_000,
        )  # fmt: skip
        ray.data.DataContext.get_current().enable_progress_bars = False
        yield
        ray.shutdown()


@ray.remote(num_cpus=0.1, max_restarts=0)
class Rank:
    """A worker of a training job: takes its batches and notes what was in them."""

    def pid(self) -> int:
        return os.getpid()

    def train(self, iterator: DataIterator, folder: str, rank: int, ranks: int, first: int) -> None:
        notes = Notes(Path(folder))
        batches = iterator.iter_batches(batch_size=BATCH // ranks, batch_format="numpy", prefetch_batches=2)
        for step, rows in enumerate(batches, start=first):
            pairs = zip(rows["__index__"].tolist(), rows["__key__"].tolist(), strict=True)
            notes.take(step, rank, ranks, list(pairs))


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def gone(pids: list[int]) -> None:
    """Wait until these processes have ended."""
    deadline = time.monotonic() + WAIT_S
    while any(is_running(pid) for pid in pids):
        assert time.monotonic() < deadline, "a killed worker goes on"
        time.sleep(0.02)


def test_twenty_kills_lose_no_sample_and_give_none_twice(tmp_path: Path) -> None:
    def rename(_: int, one: Sample) -> Sample:
        return Sample(one.key.replace("s-", "g-"), one.members)

    places = [write_shards(tmp_path / "faces", [31, 52, 40, 27]), write_shards(tmp_path / "general", [33, 17], rename)]
    sources = [{"shards": [str(place)], "weight": weight} for place, weight in zip(places, (3, 1), strict=True)]
    data = DataSpec.model_validate({"sources": sources, "image_size": 16, "shuffle_buffer": 60})
    shards = tuple(counted(find_sources(data)))
    notes, chance = Notes(tmp_path / "run"), random.Random(7)

    for kill in range(KILLS + 1):
        ranks, first = WORKERS[kill % len(WORKERS)], notes.roll_back()
        plan = StreamPlan(shards, data, seed=11, batch_size=BATCH, start=first * BATCH, stop=STEPS * BATCH)
        iterators = [one["train"] for one in StreamDataConfig().configure({"train": plan}, ranks, None, None)]
        workers: list[Any] = [Rank.remote() for _ in range(ranks)]  # type: ignore[attr-defined]
        pids = ray.get([worker.pid.remote() for worker in workers], timeout=WAIT_S)
        done = [
            worker.train.remote(iterator, str(notes.folder), rank, ranks, first)
            for rank, (worker, iterator) in enumerate(zip(workers, iterators, strict=True))
        ]
        if kill == KILLS:
            ray.get(done, timeout=WAIT_S)
            break
        notes.wait_for(min(first + chance.randint(1, 7), STEPS - 2), WAIT_S)  # it may be about to end
        time.sleep(chance.uniform(0, 0.1))
        os.kill(chance.choice(pids), signal.SIGKILL)
        for worker in workers:
            ray.kill(worker)  # as Ray Train ends the others when one is lost
        gone(pids)  # until then a rank may take the step that it has fetched
        del iterators, workers, done

    assert_taken_once(notes.all(), STEPS * BATCH)
