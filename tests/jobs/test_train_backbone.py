"""`train_backbone` on a finished backbone: what it starts from, what it weights, and the records it keeps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from small_shards import write_shards

from imprint.backbone import Backbone
from imprint.config.jobs.tiny import TrainBackbone
from imprint.jobs.tiny import run_backbone


def spec(shards: Path, start: Path, root: Path, name: str, **changes: object) -> TrainBackbone:
    return TrainBackbone.model_validate(
        {
            "job": "train_backbone", "name": name, "runs": str(root / "runs"), "output": str(root / name),
            "sources": [{"shards": [str(shards)]}], "initialize_from": str(start), "threads": 1,
            "training": {"steps": 2, "batch_size": 3, "log_every": 1}, "engine": {"precision": "fp32"},
        }
        | changes
    )  # fmt: skip


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    return write_shards(tmp_path / "shards", [6])


def weights(folder: Path) -> dict[str, torch.Tensor]:
    backbone = Backbone.load(folder)
    modules = (backbone.unet, *backbone.text_encoders)
    return {f"{i}.{name}": value for i, module in enumerate(modules) for name, value in module.named_parameters()}


def test_without_a_learning_rate_the_start_comes_out_again(tiny_sd15: Path, shards: Path, tmp_path: Path) -> None:
    training = {"steps": 1, "batch_size": 3, "log_every": 1, "optimizer": {"learning_rate": 1e-30}}
    run_backbone(spec(shards, tiny_sd15, tmp_path, "same", training=training), job_file=None, source="")
    before, after = weights(tiny_sd15), weights(tmp_path / "same")
    assert before.keys() == after.keys()
    for name, value in before.items():  # the UNet is saved in fp16, the text encoder in fp32
        expected = value.half().float() if name.startswith("0.") else value
        torch.testing.assert_close(after[name], expected, rtol=0, atol=1e-30)


def test_a_run_from_a_run_keeps_both_records(tiny_sd15: Path, shards: Path, tmp_path: Path) -> None:
    weighted = {"subject_weight": 3.0, "timestep_logits": [-0.5, 1.0]}
    run_backbone(spec(shards, tiny_sd15, tmp_path, "first"), job_file=None, source="first")
    run_backbone(spec(shards, tmp_path / "first", tmp_path, "second", **weighted), job_file=None, source="second")
    record = tmp_path / "second" / "training" / "train_backbone"
    assert (record / "job.yaml").read_text() == "second"
    assert not any(str(tmp_path) in file.read_text() for file in (tmp_path / "second").rglob("config.json"))
    assert (record / "before" / "job.yaml").read_text() == "first"
    lines = [json.loads(line) for line in (record / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert all(line["loss"] != line["unweighted"] for line in lines)
    changed = [
        not torch.equal(value, weights(tmp_path / "first")[name])
        for name, value in weights(tmp_path / "second").items()
    ]
    assert any(changed)


def test_a_job_starts_either_from_parts_or_from_a_backbone(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="vae and clip: missing; give both, or initialize_from"):
        spec(shards, tmp_path, tmp_path, "none", initialize_from=None)
    with pytest.raises(ValidationError, match="initialize_from brings its own vae, unet"):
        spec(shards, tmp_path, tmp_path, "both", vae="somewhere", unet={})
