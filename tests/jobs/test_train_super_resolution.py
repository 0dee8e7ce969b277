"""`train_super_resolution`: from shards of large pictures to a folder that draws."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_shards import write_shards

from imprint.backbone.super_resolution import SuperResolution
from imprint.config.jobs.super_resolution import TrainSuperResolution
from imprint.config.methods import SuperResolutionSampler
from imprint.errors import DataError
from imprint.jobs.train_super_resolution import Pairs, pair_batches, run
from imprint.pipelines.writer import Sample
from imprint.sampling.super_resolution import upscale


def large(number: int, sample: Sample) -> Sample:
    """The sample with a picture of 256 px in place of its own."""
    pixels = np.random.default_rng(number).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((256, 256), Image.Resampling.NEAREST).save(file, "PNG")
    members = {"png": file.getvalue(), "txt": sample.members["txt"], "json": sample.members["json"]}
    return Sample(sample.key, members)


def spec(shards: Path, root: Path, **changes: object) -> TrainSuperResolution:
    return TrainSuperResolution.model_validate(
        {
            "job": "train_super_resolution", "name": "x4", "runs": str(root / "runs"), "output": str(root / "x4"),
            "sources": [{"shards": [str(shards)]}], "threads": 1, "whole_share": 0.5,
            "model": {"block_out_channels": [16, 16, 32]},
            "training": {"steps": 2, "batch_size": 16, "log_every": 1, "ema": {"decay": 0.5}},
        }
        | changes
    )  # fmt: skip


def test_what_the_job_writes_draws(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "shards", [3], large)
    run(spec(shards, tmp_path), job_file=None, source="as it ran")
    model = SuperResolution.load(tmp_path / "x4")
    assert (model.kind, model.factor, model.image_size, model.max_noise_level) == ("latent", 4, 256, 100)
    assert (tmp_path / "x4" / "training" / "train_super_resolution" / "job.yaml").read_text() == "as it ran"
    small = torch.zeros(1, 3, 64, 64)
    drawn = upscale(model, small, ["a cat"], SuperResolutionSampler(steps=1), seeds=[1])
    assert drawn.shape == (1, 3, 256, 256)
    # latents of unit variance, by the autoencoder's own factor
    pixels = np.stack([np.array(Image.open(io.BytesIO(large(n, Sample("k", {"txt": b"", "json": b""})).members["png"])))
                       for n in range(3)])  # fmt: skip
    pictures = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
    assert float(model.encode_images(pictures).std()) == pytest.approx(1, abs=0.03)


def test_crops_of_both_sizes_are_of_one_place(tmp_path: Path) -> None:
    """A pure function of the step; some steps have whole pictures, of as many pixels."""
    ramp = np.arange(64 * 64, dtype=np.float32).reshape(64, 64)
    low = np.broadcast_to(ramp, (2, 2, 3, 64, 64)).copy()
    low[:, 1] += 0.5  # as decoded
    pairs = Pairs(np.broadcast_to(ramp, (2, 8, 64, 64)), low, ["a", "b"], ["a", "b"], np.array([0.5, 0.5]), 4)
    stream = pair_batches(pairs, spec(Path("x"), tmp_path), 0)
    found = [next(stream) for _ in range(12)]
    shapes = {tuple(batch["latents"].shape) for batch in found}
    assert shapes == {(16, 8, 16, 16), (1, 8, 64, 64)}
    for batch in found:
        difference = batch["low"][:, 0] - batch["latents"][:, 0]
        assert set(difference.unique().tolist()) <= {0.0, 0.5}
    again = next(pair_batches(pairs, spec(Path("x"), tmp_path), 7))
    assert torch.equal(again["low"], found[7]["low"])
    decoded = [float((batch["low"] - batch["latents"][:, :3]).mean() * 2) for batch in found if len(batch["low"]) > 1]
    assert 0.2 < sum(decoded) / len(decoded) < 0.8


def test_pictures_of_another_size_are_refused(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "shards", [2])
    with pytest.raises(DataError, match="they are 16 px, expected 4 times the backbone's 64 px"):
        run(spec(shards, tmp_path), job_file=None, source="")
