"""Offset noise and min-SNR weighting: off they change nothing, on they do what their sources say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from imprint.backbone import Backbone
from imprint.backbone.published import build_published
from imprint.config.methods import E4TSpec
from imprint.features.clip import ClipFeatures
from imprint.methods.diffusion_loss import random_noise
from imprint.methods.e4t.objective import E4TObjective
from imprint.objective import Batch
from imprint.training.objectives.denoising import DenoisingObjective


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(5)


def test_offset_noise_has_one_value_a_channel() -> None:
    like = torch.zeros(64, 4, 16, 16)
    plain, offset = random_noise(like, seeded()), random_noise(like, seeded(), 0.1)
    added = offset - plain
    torch.testing.assert_close(added, added[:, :, :1, :1].expand_as(added), rtol=0, atol=1e-6)
    assert float(added[:, :, 0, 0].std()) == pytest.approx(0.1, rel=0.2)


def backbone(prediction: str) -> Backbone:
    torch.manual_seed(0)
    return build_published("sd21" if prediction == "v_prediction" else "sd15", reduced=True)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_min_snr_weighs_each_picture_by_its_own_timestep(prediction: str) -> None:
    """The weights of arXiv:2303.09556 from SNR = abar / (1 - abar), on the errors that the objective itself reports."""
    made = backbone(prediction)
    made.unet.requires_grad_(True)
    latents = torch.randn(6, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    batch: Batch = {"pixel_values": latents, "captions": ["a"] * 6, "keys": ["k"] * 6, "latent_mean": latents,
                    "latent_std": torch.zeros_like(latents)}  # type: ignore[typeddict-unknown-key]  # fmt: skip
    plain = DenoisingObjective(made)(batch, seeded())
    weighted = DenoisingObjective(made, min_snr_gamma=5.0)(batch, seeded())
    assert plain.by_timestep is not None
    places, errors = plain.by_timestep
    torch.testing.assert_close(plain.loss, errors.mean())
    abar = made.schedule.alphas_cumprod[(places * 1000).round().long()]
    snr = abar / (1 - abar)
    weights = snr.clamp(max=5) / (snr if prediction == "epsilon" else snr + 1)
    torch.testing.assert_close(weighted.loss, (errors * weights).mean().float())


def test_pretraining_takes_both(tiny_sd15: Path, tiny_clip: Path) -> None:
    clip, losses = ClipFeatures.load(tiny_clip), {}
    batch: Batch = {"pixel_values": torch.zeros(4, 3, 16, 16), "captions": [""] * 4, "keys": ["k"] * 4}
    for name, options in {"plain": {}, "snr": {"min_snr_gamma": 1.0}, "offset": {"offset_noise": 0.5}}.items():
        torch.manual_seed(0)
        objective = E4TObjective(Backbone.load(tiny_sd15), E4TSpec(domain_word="face", **options), clip)
        output = objective(batch, seeded())
        losses[name] = float(output.metrics["loss_diffusion"])
        assert output.by_timestep is not None and output.by_timestep[0].shape == (4,)
        assert not output.by_timestep[1].requires_grad
    assert losses["snr"] < losses["plain"] != losses["offset"]
