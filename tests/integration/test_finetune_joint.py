"""Joint finetuning on a real Ray with a small random backbone: through a kill, and with ZeRO on two workers."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from job_processes import ONE_WORKER, Job, ray_head
from safetensors.torch import load_file
from small_shards import write_shards

from imprint.backbone import Backbone
from imprint.config.methods import SampleSpec, TamingTuneSpec
from imprint.methods.base import Pictures
from imprint.methods.taming import load_encoder
from imprint.training.checkpoint import load_checkpoint
from imprint.tuning import personalize, sample_concept

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory, tiny_sd15: Path, tiny_clip: Path) -> Job:
    root = tmp_path_factory.mktemp("joint")
    domain, general = write_shards(root / "domain", [13, 9, 18]), write_shards(root / "general", [10, 10])
    spec = {
        "job": "finetune_joint", "seed": 3, "backbone": str(tiny_sd15),
        "method": {"domain_word": "face", "object_encoder": {"clip": str(tiny_clip)}},
        "triplets": {"cross_reference": 0.5},
        "data": {
            "sources": [{"shards": [str(domain)], "weight": 3}, {"shards": [str(general)], "weight": 1}],
            "image_size": 16, "shuffle_buffer": 15,
        },
        "training": {
            "steps": 12, "batch_size": 8, "log_every": 1,
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


def test_a_killed_worker_ends_bit_for_bit_like_a_quiet_run(job: Job, cluster: None) -> None:
    """Triplets, dropping and noise are functions of the position: nothing is drawn anew after a resume."""
    training = {**job.spec["training"], "steps": 60}
    job.finish("quiet", job.start("quiet", training=training, **ONE_WORKER))
    process = job.start("killed", training=training, **ONE_WORKER)
    job.wait_for("killed", process, lambda: max(job.losses("killed"), default=0) >= 9)
    os.kill(int(job.starts("killed")[0]["pid"]), signal.SIGKILL)
    job.finish("killed", process)
    assert len(job.starts("killed")) == 2
    assert job.losses("killed") == job.losses("quiet")
    networks = [job.runs / name / "network" for name in ("quiet", "killed")]
    for file in ("parts/taming.safetensors", "model/unet/diffusion_pytorch_model.safetensors"):
        one, other = (load_file(network / file) for network in networks)
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")  # MLflow's own, of SQLAlchemy 2.1
@pytest.mark.parametrize(("name", "stage", "whole"), [("stage-3", 3, True), ("attentions", 2, False)])
def test_two_deepspeed_workers_train_a_network_that_loads_and_is_tracked(
    job: Job, cluster: None, name: str, stage: int, whole: bool
) -> None:
    from mlflow.tracking import MlflowClient

    changes = {
        "method": {**job.spec["method"], "whole_network": whole},
        "engine": {"name": "deepspeed", "zero_stage": stage, "precision": "bf16"},
        "grid": {
            "every": 6, "shards": job.spec["data"]["sources"][0]["shards"], "split": "train", "concepts": 2,
            "sampling": {"steps": 2},
        },
        "tracking": {"experiment": "tests"},
    }  # fmt: skip
    job.finish(name, job.start(name, **changes))
    run = job.runs / name
    backbone = Backbone.load(job.spec["backbone"])
    parts = load_encoder(run, backbone)
    average = load_checkpoint(run / "checkpoints" / "step-00000012").ema
    trained = {f"attentions.{key}": value for key, value in parts.attentions.state_dict().items()}
    if whole:
        trained |= {f"unet.{key}": value for key, value in parts.backbone.unet.state_dict().items()}
    assert trained.keys() == average.keys()
    assert all(torch.equal(trained[key], average[key]) for key in trained)
    assert (run / "network" / "model").is_dir() == whole
    assert set(job.losses(name)) == set(range(1, 13))
    assert all({"loss_domain", "loss_general"} <= record.keys() for record in job.journal(name) if "loss" in record)
    assert sorted(path.name for path in (run / "samples").iterdir()) == ["step-00000006.png", "step-00000012.png"]

    concept = personalize(backbone, Pictures(torch.zeros(1, 3, 16, 16)), TamingTuneSpec(), encoder=run)
    drawn = sample_concept(backbone, concept, ["a photo of <concept>"], SampleSpec(steps=2))
    assert bool(drawn.isfinite().all())

    client = MlflowClient(f"sqlite:///{job.runs / 'mlflow.db'}")
    tracked = client.get_run(json.loads((run / "mlflow.json").read_text())["run_id"])
    assert tracked.info.status == "FINISHED"
    assert tracked.data.params["triplets.cross_reference"] == "0.5"
    places = {file.path for place in ("", "samples", "network/parts") for file in
              client.list_artifacts(tracked.info.run_id, place)}  # fmt: skip
    assert {"job.yaml", "samples/step-00000012.png", "network/parts/taming.json"} <= places

    job.finish(name, job.start(name, **changes))
    assert len(job.starts(name)) == 1, "a finished run starts nothing"
