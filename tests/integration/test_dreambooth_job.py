"""DreamBooth over workers on a real Ray with a small random backbone: through a kill, with ZeRO, full and LoRA."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from job_processes import BIN, ONE_WORKER, Job, ray_head
from safetensors.torch import load_file
from small_shards import write_shards

from imprint.backbone import Backbone
from imprint.config.methods import SampleSpec
from imprint.methods.low_rank import read_factors
from imprint.pipelines.writer import Sample
from imprint.training.checkpoint import load_checkpoint
from imprint.tuning import Concept, sample_concept

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(900)]


def one_identity(number: int, sample: Sample) -> Sample:
    record = json.dumps({"identity": "rex", "caption_context": f"on ground {number}"})
    return Sample(sample.key, {**sample.members, "json": record.encode()})


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory, tiny_sd15: Path) -> Job:
    root = tmp_path_factory.mktemp("dreambooth")
    spec = {
        "job": "dreambooth", "seed": 3, "backbone": str(tiny_sd15), "class_noun": "cat",
        "method": method(root, "class-images"),
        "data": {"shards": [str(write_shards(root / "subject", [3, 2], one_identity))], "image_size": 24,
                 "shuffle_buffer": 5},
        "training": {
            "steps": 12, "batch_size": 4, "log_every": 1, "ema": {"decay": 0.9},
            "optimizer": {"learning_rate": 1e-3, "weight_decay": 0.0},
        },
        "engine": {"name": "deepspeed", "zero_stage": 2},
        "checkpoint": {"every": 2, "keep": 2},
        "tracking": {"enabled": False},
    }  # fmt: skip
    return Job(root, spec)


def method(root: Path, cache: str, **keys: object) -> dict[str, object]:
    prior = {"images": 5, "cache_dir": str(root / cache), "sampling": {"steps": 2}}
    return {"prior": prior, "identifier": {"rare_share": 1.0}, "storage": "fp32", **keys}


@pytest.fixture(scope="module")
def cluster(job: Job) -> Iterator[None]:
    with ray_head(job):
        yield


def test_two_zero_workers_through_a_kill_end_as_one_worker_in_peace(job: Job, cluster: None) -> None:
    """Crops, noise, prompts and class images are functions of seed and position, whatever workers compute them."""
    training = {**job.spec["training"], "steps": 40}
    alone = {"training": {**training, "gradient_accumulation": 2}, "engine": {"name": "torch"}, **ONE_WORKER}
    job.finish("quiet", job.start("quiet", **alone))
    changes = {"training": training, "method": method(job.root, "other-class-images")}  # those are drawn by two
    process = job.start("killed", **changes)
    job.wait_for("killed", process, lambda: max(job.losses("killed"), default=0) >= 9)
    os.kill(int(job.starts("killed")[0]["pids"][1]), signal.SIGKILL)  # type: ignore[index]
    job.finish("killed", process)
    assert [start["workers"] for start in job.starts("killed")] == [2, 2]
    assert job.starts("killed")[1]["step"] >= 8, "it goes on from a checkpoint"
    quiet, killed = job.losses("quiet"), job.losses("killed")
    assert list(killed) == list(quiet) == list(range(1, 41))
    assert [killed[step] for step in quiet] == pytest.approx(list(quiet.values()), rel=1e-3)
    subjects = [json.loads((job.runs / name / "subject.json").read_text()) for name in ("quiet", "killed")]
    assert subjects[0] == subjects[1] and subjects[0]["pictures"] == 5
    one, other = (load_file(job.runs / name / "concept" / "concept.safetensors") for name in ("quiet", "killed"))
    assert one.keys() == other.keys()
    change = max(float(value.abs().max()) for value in one.values())
    assert max(float((value - other[name]).abs().max()) for name, value in one.items()) < 0.05 * change
    drawn = [load_file(next((job.root / name).rglob("*.safetensors")))["images"].int()
             for name in ("class-images", "other-class-images")]  # fmt: skip
    assert int((drawn[0] - drawn[1]).abs().max()) <= 1


@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")  # MLflow's own, of SQLAlchemy 2.1
@pytest.mark.parametrize("name", ["stage-3", "lora"])
def test_two_deepspeed_workers_leave_a_concept_that_is_drawn_and_is_tracked(job: Job, cluster: None, name: str) -> None:
    from mlflow.tracking import MlflowClient

    keys: dict[str, object] = {"train": "lora"} if name == "lora" else {"text_encoder": True}
    changes = {
        "method": method(job.root, "class-images", **keys),
        "engine": {"name": "deepspeed", "zero_stage": 2 if name == "lora" else 3, "precision": "bf16"},
        "grid": {"every": 6, "concepts": 2, "sampling": {"steps": 2}},
        "tracking": {"experiment": "tests"},
    }
    job.finish(name, job.start(name, **changes))
    run = job.runs / name
    backbone = Backbone.load(job.spec["backbone"])
    concept = Concept.load(run / "concept")
    concept.require(backbone)
    phrase = json.loads((run / "subject.json").read_text())["phrase"]
    assert concept.learned.settings["phrases"] == [phrase] and phrase.endswith(" cat")
    assert concept.learned.settings["tune"]["steps"] == 12
    average = load_checkpoint(run / "checkpoints" / "step-00000012").ema
    assert average is not None
    if name == "lora":
        factors = read_factors(concept.learned.tensors)
        assert len(average) == 2 * len(factors)
        assert all(torch.equal(pair.down, average[f"{key}.lora_A.default.weight"]) for key, pair in factors.items())
    else:
        own = dict(backbone.unet.named_parameters())
        assert concept.learned.tensors.keys() == average.keys()
        assert {key.partition(".")[0] for key in average} == {"unet", "text_encoder"}
        for key in ("conv_in.weight", "conv_out.bias"):
            assert torch.equal(concept.learned.tensors[f"unet.{key}"], average[f"unet.{key}"] - own[key])
    assert set(job.losses(name)) == set(range(1, 13))
    assert all({"loss_subject", "loss_prior"} <= record.keys() for record in job.journal(name) if "loss" in record)
    assert sorted(path.name for path in (run / "samples").iterdir()) == ["step-00000006.png", "step-00000012.png"]

    command = [BIN / "imprint", "sample", "--concept", run / "concept", "--prompt", "a photo of <concept> on blue"]
    out = job.root / f"{name}-pictures"
    subprocess.run([*command, "--out", out, "--num-images", "1", "--steps", "2"], env=job.env, check=True, timeout=600)
    assert list(out.glob("*.png"))
    drawn = sample_concept(backbone, concept, ["a photo of <concept>"], SampleSpec(steps=2))
    assert bool(drawn.isfinite().all())

    client = MlflowClient(f"sqlite:///{job.runs / 'mlflow.db'}")
    tracked = client.get_run(json.loads((run / "mlflow.json").read_text())["run_id"])
    assert tracked.info.status == "FINISHED" and tracked.data.params["class_noun"] == "cat"
    places = {file.path for place in ("", "samples", "concept") for file in
              client.list_artifacts(tracked.info.run_id, place)}  # fmt: skip
    assert {"job.yaml", "samples/step-00000012.png", "concept/concept.json", "concept/concept.safetensors"} <= places

    job.finish(name, job.start(name, **changes))
    assert len(job.starts(name)) == 1, "a finished run starts nothing"
