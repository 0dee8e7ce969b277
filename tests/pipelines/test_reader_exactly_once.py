"""Kills at twenty random points, one worker, two, one again: every sample of an epoch is taken exactly once.

Real processes that read and are killed with SIGKILL. tests/integration/test_exactly_once.py does the same with Ray's
streams.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
from exactly_once import Notes, assert_taken_once, train_rank
from small_shards import write_shards

from imprint.pipelines.reading import ReadOptions
from imprint.pipelines.shards import counted, find_shards
from imprint.pipelines.writer import Sample

KILLS, WORKERS, BATCH, STEPS = 20, (1, 2, 1), 4, 150
WAIT_S = 240


@pytest.mark.integration
@pytest.mark.timeout(900)
def test_twenty_kills_lose_no_sample_and_give_none_twice(tmp_path: Path) -> None:
    def rename(_: int, one: Sample) -> Sample:
        return Sample(one.key.replace("s-", "g-"), one.members)

    faces = counted(find_shards([str(write_shards(tmp_path / "faces", [31, 52, 40, 27]))]))
    general = counted(find_shards([str(write_shards(tmp_path / "general", [33, 17], rename))]))
    shards = [*faces, *(replace(shard, source=1) for shard in general)]
    options = ReadOptions(seed=11, shuffle_buffer=60, weights=(3, 1), on_bad="substitute")
    notes, chance = Notes(tmp_path / "run"), random.Random(7)
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["exactly_once"])

    for kill in range(KILLS + 1):
        ranks = WORKERS[kill % len(WORKERS)]
        first = notes.roll_back()
        running = [
            processes.Process(target=train_rank, args=(str(notes.folder), shards, options, r, ranks, BATCH, STEPS))
            for r in range(ranks)
        ]
        for process in running:
            process.start()
        if kill < KILLS:
            notes.wait_for(min(first + chance.randint(1, 7), STEPS - 2), WAIT_S)  # it may be about to end
            time.sleep(chance.uniform(0, 0.02))
            assert any(process.is_alive() for process in running), "it ended before it was killed; more STEPS"
        for process in running:
            if kill < KILLS and process.pid is not None:
                os.kill(process.pid, signal.SIGKILL)
            process.join(WAIT_S)
            assert process.exitcode == (-signal.SIGKILL if kill < KILLS else 0)

    assert_taken_once(notes.all(), STEPS * BATCH)
