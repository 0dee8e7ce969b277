"""The main job on a real Ray with a small random backbone: to its end, and through every kind of kill."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from job_processes import ONE_WORKER, WAIT_S, Job, ray_head
from safetensors.torch import load_file
from small_shards import write_shards

from imprint.backbone import Backbone
from imprint.methods.e4t.artifact import load_encoder
from imprint.pipelines.writer import Sample
from imprint.training.checkpoint import latest_checkpoint, load_checkpoint

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory, tiny_sd15: Path, tiny_clip: Path) -> Job:
    root, backbone, clip = tmp_path_factory.mktemp("pretrain"), tiny_sd15, tiny_clip
    spec = {
        "job": "pretrain_encoder", "seed": 3, "backbone": str(backbone),
        "method": {"domain_word": "face", "encoder": {"clip": str(clip)}, "offsets": {"vector_width": 4}},
        "data": {
            "shards": [str(write_shards(root / "shards", [13, 9, 18]))], "image_size": 16, "shuffle_buffer": 15,
        },
        "training": {
            "steps": 12, "batch_size": 4, "log_every": 1,
            "optimizer": {"learning_rate": 1e-3, "warmup_steps": 3}, "ema": {"decay": 0.9},
        },
        "checkpoint": {"every": 2, "keep": 2},
        "tracking": {"enabled": False},
    }  # fmt: skip
    return Job(root, spec)


@pytest.fixture(scope="module")
def cluster(job: Job) -> Iterator[None]:
    with ray_head(job):
        yield


LONG = {"steps": 120, "batch_size": 4, "log_every": 1, "optimizer": {"learning_rate": 1e-3}, "ema": {"decay": 0.9}}


def test_killed_worker_and_killed_job_end_bit_for_bit_like_a_quiet_run(job: Job, cluster: None) -> None:
    quiet = job.start("quiet", training=LONG, **ONE_WORKER)
    job.finish("quiet", quiet)

    first = job.start("killed", training=LONG, **ONE_WORKER)
    job.wait_for("killed", first, lambda: max(job.losses("killed"), default=0) >= 9)
    os.kill(int(job.starts("killed")[0]["pid"]), signal.SIGKILL)
    job.wait_for("killed", first, lambda: len(job.starts("killed")) == 2 and max(job.losses("killed")) >= 40)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    job.finish("killed", job.start("killed", training=LONG, **ONE_WORKER))

    begun = [int(record["step"]) for record in job.starts("killed")]
    assert begun[0] == 0
    assert 8 <= begun[1] < 40 <= begun[2] < 120, "each start goes on from the newest checkpoint"
    assert job.losses("killed") == job.losses("quiet")
    assert set(job.losses("quiet")) == set(range(1, 121))
    for file in ("parameters", "optimizer", "ema"):
        one, other = (
            load_file(job.runs / name / "checkpoints" / "step-00000120" / f"{file}.safetensors")
            for name in ("quiet", "killed")
        )
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
    assert sorted(path.name for path in (job.runs / "killed" / "checkpoints").iterdir()) == [
        "step-00000118", "step-00000120",
    ]  # fmt: skip


def test_sigterm_saves_and_stops_and_a_second_submit_ends_the_run(job: Job, cluster: None) -> None:
    first = job.start("stopped", training=LONG, **ONE_WORKER)
    job.wait_for("stopped", first, lambda: max(job.losses("stopped"), default=0) >= 5)
    first.terminate()
    assert first.wait(WAIT_S) == 1
    assert "as asked; submit it again" in (job.root / "stopped.log").read_text().replace("\n", " ")
    reached = max(job.losses("stopped"))
    assert latest_checkpoint(job.runs / "stopped" / "checkpoints").step == reached < 120
    assert not (job.runs / "stopped" / "encoder").exists()
    job.finish("stopped", job.start("stopped", training=LONG, **ONE_WORKER))
    assert [int(record["step"]) for record in job.starts("stopped")] == [0, reached]


def test_as_many_workers_as_there_is_room_for(job: Job, cluster: None) -> None:
    """[1, 2] takes two here, with the losses of one worker that makes two passes a step."""
    split = {**job.spec["training"], "gradient_accumulation": 2}
    job.finish("one", job.start("one", training=split, **ONE_WORKER))
    job.finish("elastic", job.start("elastic", cluster={"workers": [1, 2], "cpus_per_worker": 0.25}))
    assert job.starts("elastic")[0]["workers"] == 2
    assert job.losses("elastic") == pytest.approx(job.losses("one"), rel=1e-4)
    record = next(line for line in reversed(job.journal("elastic")) if "loss" in line)
    assert record["teraflops"] > 0 and record["memory_gb"] > 0.1 and "checkpoint_blocked_seconds" in record
    assert any(name.startswith("loss_by_timestep/") for line in job.journal("elastic") for name in line)


def test_too_many_bad_samples_end_the_job_at_once_with_one_clear_message(job: Job, cluster: None) -> None:
    def spoil(number: int, one: Sample) -> Sample:
        return Sample(one.key, {**one.members, "png": b"spoilt"}) if number % 3 == 0 else one

    folder = write_shards(job.root / "spoilt", [12], spoil)
    data = {**job.spec["data"], "shards": [str(folder)]}
    process = job.start("bad", data=data, **ONE_WORKER)
    assert process.wait(WAIT_S) == 1
    text = " ".join((job.root / "bad.log").read_text().split())
    assert "4 of 12 are bad (corrupt-picture: 4)" in text
    assert "data.reader.max_bad_share" in text
    assert len(job.starts("bad")) == 1, "bad data comes back at every retry, so there is none"


@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")  # MLflow's own, of SQLAlchemy 2.1
def test_two_deepspeed_workers_train_an_encoder_that_loads_and_is_tracked(job: Job) -> None:
    from mlflow.tracking import MlflowClient

    def spoil(number: int, one: Sample) -> Sample:
        return Sample(one.key, {**one.members, "png": b"spoilt"}) if number == 5 else one

    folder = write_shards(job.root / "one-bad", [13, 27], spoil)
    changes = {
        "data": {**job.spec["data"], "shards": [str(folder)], "reader": {"max_bad_share": 0.1}},
        "engine": {"name": "deepspeed", "zero_stage": 2},
        "grid": {"every": 6, "shards": [str(folder)], "split": "train", "concepts": 2, "sampling": {"steps": 2}},
        "tracking": {"experiment": "tests"},
    }
    job.finish("two", job.start("two", **changes))
    run = job.runs / "two"
    parts = load_encoder(run, Backbone.load(job.spec["backbone"]))
    average = load_checkpoint(run / "checkpoints" / "step-00000012").ema
    for name, value in parts.encoder.state_dict().items():
        assert torch.equal(value, average[f"encoder.{name}"])
    assert set(job.losses("two")) == set(range(1, 13))
    assert sorted(path.name for path in (run / "samples").iterdir()) == ["step-00000006.png", "step-00000012.png"]
    assert "images/s" in (job.root / "two.log").read_text()

    client = MlflowClient(f"sqlite:///{job.runs / 'mlflow.db'}")
    tracked = client.get_run(json.loads((run / "mlflow.json").read_text())["run_id"])
    assert tracked.info.status == "FINISHED"
    assert tracked.data.params["engine.zero_stage"] == "2"
    logged = {m.step: m.value for m in client.get_metric_history(tracked.info.run_id, "loss")}
    assert logged == pytest.approx(job.losses("two"), abs=1e-6)
    assert any(name.startswith("system/") for name in tracked.data.metrics)
    assert tracked.data.metrics["quarantine/samples"] == tracked.data.metrics["quarantine/corrupt-picture"] == 1
    folders = ("", "samples", "quarantine")
    places = {file.path for place in folders for file in client.list_artifacts(tracked.info.run_id, place)}
    assert {"job.yaml", "samples/step-00000012.png"} <= places
    assert any(place.startswith("quarantine/") for place in places)
    (model,) = client.search_logged_models([tracked.info.experiment_id])
    files = [path for path in Path(model.artifact_location.removeprefix("file://")).rglob("*") if path.is_file()]
    assert {"encoder.safetensors", "encoder.json", "MLmodel"} <= {path.name for path in files}
    assert not any(path.suffix in (".pkl", ".pickle", ".pt", ".bin") for path in files)

    began = time.monotonic()
    job.finish("two", job.start("two", **changes))
    assert len(job.starts("two")) == 1, f"a finished run starts nothing ({time.monotonic() - began:.0f} s)"
