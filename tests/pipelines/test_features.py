"""What is computed before the trainer: the same losses as live, stored and read back, latents drawn anew."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from reading_shards import read
from small_shards import write_shards
from some_pictures import write_folder

from imprint.backbone import Backbone
from imprint.config.jobs.shards import PrepareShards
from imprint.config.methods import E4TSpec
from imprint.errors import DataError
from imprint.features.clip import ClipFeatures
from imprint.methods.e4t import E4TObjective
from imprint.methods.pretraining import batch_latents
from imprint.pipelines.features import Columns, feature_rows, stored
from imprint.pipelines.preparation.run import prepare_shards
from imprint.pipelines.reading import ReadOptions
from imprint.pipelines.writer import Sample
from imprint.training.batches import collate


def rows_of(batch: Columns) -> list[dict[str, object]]:
    return [{name: values[i] for name, values in batch.items()} for i in range(len(batch["__key__"]))]


def pictures() -> Columns:
    generator = np.random.default_rng(0)
    return {
        "__key__": np.array([f"s-{i:04d}" for i in range(4)]),
        "image": generator.integers(0, 255, (4, 16, 16, 3), np.uint8),
        "mask": generator.integers(0, 255, (4, 16, 16), np.uint8),
        "caption": np.array(["a photo of a cat"] * 4),
        "json": np.array([json.dumps({"caption_context": "on red"})] * 4),
    }


@pytest.mark.parametrize("mask_reference", [False, True])
def test_losses_are_those_of_live_features_for_the_same_noise(
    tiny_sd15: Path, tiny_clip: Path, mask_reference: bool
) -> None:
    backbone, clip = Backbone.load(tiny_sd15), ClipFeatures.load(tiny_clip)
    torch.manual_seed(0)
    objective = E4TObjective(backbone, E4TSpec(mask_reference=mask_reference, mask_loss=True), clip)
    batch = pictures()
    ready = feature_rows(batch, ("clip", "vae"), backbone=backbone, clip=clip, mask_reference=mask_reference)
    found = collate(rows_of(ready))
    assert found["latent_mean"].shape == (4, 4, 8, 8) and found["clip_layers"].shape == (4, 2, 32)
    assert float(found["latent_logvar"].exp().min()) > 0
    for seed in range(3):
        live = objective(collate(rows_of(batch)), torch.Generator().manual_seed(seed)).loss
        before = objective(found, torch.Generator().manual_seed(seed)).loss
        torch.testing.assert_close(before, live, rtol=1e-5, atol=1e-6)
    found["clip_layers"] = found["clip_layers"].flip(0)
    assert not torch.equal(objective(found, torch.Generator().manual_seed(0)).loss, live)


def test_moments_are_those_of_the_autoencoder_and_are_drawn_from_anew(tiny_sd15: Path) -> None:
    backbone = Backbone.load(tiny_sd15)
    batch = feature_rows(pictures(), ("vae",), backbone=backbone)
    posterior = backbone.vae.encode(torch.from_numpy(batch["image"]).permute(0, 3, 1, 2) / 127.5 - 1).latent_dist
    scale = backbone.vae.config.scaling_factor
    mean, logvar = (torch.from_numpy(batch[f"features.latent_{name}"]) for name in ("mean", "logvar"))
    torch.testing.assert_close(mean, (posterior.mean * scale).detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(logvar, (posterior.logvar + 2 * np.log(scale)).detach(), rtol=1e-4, atol=1e-4)
    found = collate(rows_of(batch))
    other = torch.zeros(4, 3, 16, 16)  # the moments that came with the batch count, not these
    draws = [batch_latents(backbone, found, other, torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    assert not torch.equal(draws[0], draws[1])
    deviation = (draws[0] - mean) / (0.5 * logvar).exp()
    assert deviation.abs().max() < 6


def test_an_autoencoder_without_a_posterior_gives_its_mean() -> None:
    backbone = Backbone.load("imprint-tiny")
    batch = {**pictures(), "image": np.random.default_rng(0).integers(0, 255, (4, 64, 64, 3), np.uint8)}
    ready = feature_rows(batch, ("vae",), backbone=backbone)
    assert np.isfinite(ready["features.latent_logvar"]).all()
    assert float(np.exp(0.5 * ready["features.latent_logvar"]).max()) < 1e-12


def test_stored_features_are_read_back_as_the_same_columns(tmp_path: Path, tiny_sdxl: Path, tiny_clip: Path) -> None:
    backbone, clip = Backbone.load(tiny_sdxl), ClipFeatures.load(tiny_clip)
    ready = feature_rows(pictures(), ("clip", "vae", "text"), backbone=backbone, clip=clip)
    text = backbone.encode_text(["a photo of a cat"] * 4)
    assert text.pooled is not None
    torch.testing.assert_close(torch.from_numpy(ready["features.text_hidden"]), text.hidden.detach())
    torch.testing.assert_close(torch.from_numpy(ready["features.text_pooled"]), text.pooled.detach())

    def with_features(number: int, sample: Sample) -> Sample:
        return Sample(sample.key, {**sample.members, "features.safetensors": stored(ready, number)})

    folder = write_shards(tmp_path / "shards", [4], with_features)
    rows = read(folder, ReadOptions(further=("features.safetensors",)))
    for i, row in enumerate(rows):
        columns = {name for name in row if name.startswith("features.")}
        assert columns == {name for name in ready if name.startswith("features.")}
        for name in columns:
            assert np.array_equal(row[name], ready[name][i])  # type: ignore[literal-required]
    assert collate(rows)["clip_layers"].shape == (4, 2, 32)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context")  # Ray warns of what its own copy() sets
def test_prepared_shards_hold_the_features_of_their_own_pictures(
    tmp_path: Path, tiny_sd15: Path, tiny_clip: Path
) -> None:
    """Of the picture that a reader decodes, after it was resized and encoded as JPEG."""
    spec = prepared(tmp_path, {"backbone": str(tiny_sd15), "clip": str(tiny_clip), "batch_size": 3})
    assert prepare_shards(spec).written == 5
    rows: list[Any] = read(tmp_path / "out", ReadOptions(further=("features.safetensors",)))
    backbone, clip = Backbone.load(tiny_sd15), ClipFeatures.load(tiny_clip)
    batch = {name: np.stack([row[name] for row in rows]) for name in ("image", "mask")}
    expected = feature_rows(batch, ("clip", "vae"), backbone=backbone, clip=clip)
    for name in ("latent_mean", "latent_logvar", "clip_layers"):
        found = np.stack([row[f"features.{name}"] for row in rows])
        np.testing.assert_allclose(found, expected[f"features.{name}"], rtol=1e-4, atol=1e-5)
    header = json.loads((tmp_path / "out" / "manifest.json").read_text())["header"]
    assert header["origin"]["spec"]["features"]["backbone"] == str(tiny_sd15)
    with pytest.raises(DataError, match="of pictures of 16 x 16 px, and the job trains on 32 x 32"):
        batch_latents(backbone, collate(rows), torch.zeros(5, 3, 32, 32), torch.Generator())


def prepared(folder: Path, features: dict[str, Any], **sections: Any) -> PrepareShards:
    given = {
        "job": "prepare_shards", "name": "small", "out_dir": str(folder / "out"), "run_on": "process",
        "input": {"folder": {"path": str(write_folder(folder / "in", 5))}}, "features": features,
        "pictures": {"mode": "square", "size": 16}, **sections,
    }  # fmt: skip
    return PrepareShards.model_validate(given)


def test_features_are_stored_only_of_what_is_trained_on(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=r"pictures\.mode=buckets: they hold for the square"):
        prepared(tmp_path, {}, pictures={"mode": "buckets"})
    with pytest.raises(ValidationError, match="mask_reference needs the mask of every picture"):
        prepared(tmp_path, {"mask_reference": True})
    assert prepared(tmp_path, {"mask_reference": True}, masks={"kind": "embedded"}).features is not None
