"""What a training run outlives on a real Ray: a rank that hangs, a node that is lost, one that comes, a lost head."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import httpx2
import pytest
from job_processes import ONE_WORKER, WAIT_S, Job, kill_all, ray_head, ray_node
from small_shards import write_shards

from imprint.training.checkpoint import latest_checkpoint

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(1200)]
TRAINING = {"batch_size": 4, "log_every": 1, "optimizer": {"learning_rate": 1e-3}, "ema": {"decay": 0.9}}
STEPS = 120


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory, tiny_sd15: Path, tiny_clip: Path) -> Job:
    root = tmp_path_factory.mktemp("failures")
    spec = {
        "job": "pretrain_encoder", "seed": 3, "backbone": str(tiny_sd15),
        "method": {"domain_word": "face", "encoder": {"clip": str(tiny_clip)}, "offsets": {"vector_width": 4}},
        "data": {
            "shards": [str(write_shards(root / "shards", [13, 9, 18]))], "image_size": 16, "shuffle_buffer": 15,
        },
        "training": {**TRAINING, "steps": STEPS},
        "checkpoint": {"every": 2, "keep": 2},
        "tracking": {"enabled": False},
    }  # fmt: skip
    return Job(root, spec)


def reaches(job: Job, name: str, process: subprocess.Popen[bytes], step: int, *, start: int = 1) -> None:
    """Wait until the workers started that often, and this step is done."""
    job.wait_for(
        name, process, lambda: len(job.starts(name)) >= start and max(job.losses(name), default=0) >= step
    )  # fmt: skip


def test_a_rank_that_hangs_is_noticed_and_all_start_again(job: Job) -> None:
    """Rank 1 is stopped, as a broken link or a stuck driver would: rank 0 waits for it and ends itself."""
    two = {"workers": 2, "cpus_per_worker": 0.25, "hang_timeout_s": 30}
    with ray_head(job):
        process = job.start("hung", cluster=two)
        reaches(job, "hung", process, 5)
        os.kill(int(job.starts("hung")[0]["pids"][1]), signal.SIGSTOP)
        job.finish("hung", process)
    assert len(job.starts("hung")) == 2 and set(job.losses("hung")) == set(range(1, STEPS + 1))
    assert "rank 0 hangs: in a forward or backward pass" in (job.root / "hung.log").read_text()


def test_a_new_node_is_used_and_a_lost_one_done_without(job: Job) -> None:
    """[1, 2] with room for one worker on each of two nodes; Prometheus sees the run meanwhile.

    Beside a worker a node has room left for the data plane.
    """
    elastic = {"workers": [1, 2], "cpus_per_worker": 1.6, "resize_interval_s": 5}
    with ray_head(job, cpus=3) as head:
        process = job.start("elastic", training={**TRAINING, "steps": 20_000}, cluster=elastic)
        reaches(job, "elastic", process, 5)
        with ray_node(job, cpus=3) as node:
            reaches(job, "elastic", process, 0, start=2)
            joined = max(job.losses("elastic"))
            reaches(job, "elastic", process, joined + 10)
            reported = wait_for_metric(head.metrics, "imprint_loss{", 'run="elastic"')
            kill_all(node)
            reaches(job, "elastic", process, 0, start=3)
        lost = max(job.losses("elastic"))
        reaches(job, "elastic", process, lost + 10)
        process.terminate()
        assert process.wait(WAIT_S) == 1
        split = {**TRAINING, "steps": lost + 10, "gradient_accumulation": 2}
        job.finish("one", job.start("one", training=split, **ONE_WORKER))
    begun = [(int(record["workers"]), int(record["step"])) for record in job.starts("elastic")]
    assert [workers for workers, _ in begun] == [1, 2, 1]
    assert 0 == begun[0][1] < 4 <= begun[1][1] <= joined < begun[2][1] <= lost, "on from the newest checkpoint"
    found, expected = job.losses("elastic"), job.losses("one")
    assert set(expected) == set(range(1, lost + 11))
    assert {step: found[step] for step in expected} == pytest.approx(expected, rel=1e-4)
    assert min(expected.values()) / 10 < reported < 10 * max(expected.values())


def wait_for_metric(url: str, *parts: str) -> float:
    """The value of the first line that has all of `parts`."""
    deadline = time.monotonic() + 60  # Ray hands metrics on every ten seconds
    while time.monotonic() < deadline:
        for line in httpx2.get(url, timeout=10).text.splitlines():
            if all(part in line for part in parts) and not line.startswith("#"):
                return float(line.rpartition(" ")[2])
        time.sleep(1)
    raise AssertionError(f"no metric with {parts} at {url}")


def test_a_lost_head_takes_the_run_with_it_and_a_second_submit_ends_it(job: Job) -> None:
    with ray_head(job) as head:
        process = job.start("headless", **ONE_WORKER)
        reaches(job, "headless", process, 9)
        kill_all(head.process)
        assert process.wait(WAIT_S) != 0
    reached = latest_checkpoint(job.runs / "headless" / "checkpoints")
    assert reached is not None and 8 <= reached.step < STEPS
    with ray_head(job):
        job.finish("headless", job.start("headless", **ONE_WORKER))
        job.finish("quiet", job.start("quiet", **ONE_WORKER))
    assert [int(record["step"]) for record in job.starts("headless")] == [0, reached.step]
    assert job.losses("headless") == job.losses("quiet")
