"""The objectives that make a backbone, against their formulas."""

import math
from pathlib import Path

import pytest
import torch

from imprint.backbone import Backbone, NoiseSchedule
from imprint.backbone.tiny import build_autoencoder
from imprint.config.jobs.tiny import AutoencoderLoss, AutoencoderModel
from imprint.methods.diffusion_loss import stratified_timesteps
from imprint.training.objectives.autoencoder import AutoencoderObjective, latent_scale, random_crop
from imprint.training.objectives.contrastive import ContrastiveObjective
from imprint.training.objectives.denoising import DenoisingObjective, min_snr_weights

CONFIG = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def test_min_snr_weights_are_those_of_the_paper() -> None:
    timesteps = torch.tensor([0, 100, 500, 999])
    for prediction_type in ("epsilon", "v_prediction", "sample"):
        schedule = NoiseSchedule.from_scheduler(CONFIG | {"prediction_type": prediction_type})
        weights = min_snr_weights(schedule, timesteps, 5.0)
        for t, weight in zip(timesteps.tolist(), weights.tolist(), strict=True):
            abar = float(schedule.alphas_cumprod[t])
            snr = abar / (1 - abar)
            divisor = {"epsilon": snr, "v_prediction": snr + 1, "sample": 1.0}[prediction_type]
            assert abs(weight - min(snr, 5.0) / divisor) < 1e-5


def test_the_subject_weighs_more_and_the_mean_weight_is_one(tiny_sd15: Path) -> None:
    backbone = Backbone.load(tiny_sd15)
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(2, *backbone.latent_shape, generator=generator)
    masks = (torch.rand(2, 1, *backbone.latent_shape[1:], generator=generator) > 0.6).float()
    batch = {"latent_mean": latents, "latent_std": torch.zeros_like(latents), "masks": masks,
             "captions": ["a cat", "a face"], "keys": ["1", "2"]}  # fmt: skip
    errors = []

    def weighted(weight: float) -> float:
        objective = DenoisingObjective(backbone, caption_dropping=0, subject_weight=weight)
        return float(objective(batch, torch.Generator().manual_seed(5)).loss)

    original = backbone.schedule.target
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(backbone.schedule), "target", lambda *a: errors.append(original(*a[1:])) or errors[-1])
        patch.setattr(type(backbone), "denoise", lambda self, noisy, *a, **k: torch.zeros_like(noisy))
        plain, three = weighted(1.0), weighted(3.0)
    square = errors[0].double().square()
    assert plain == pytest.approx(float(square.mean()), rel=1e-5)
    each = [
        sum((3 if masks[i, 0, y, x] else 1) * square[i, :, y, x].mean() for y in range(8) for x in range(8))
        / sum(3 if masks[i, 0, y, x] else 1 for y in range(8) for x in range(8))
        for i in range(2)
    ]
    assert three == pytest.approx(float(sum(each)) / 2, rel=1e-5)


def test_logit_normal_timesteps_have_the_quantiles_of_eq_19() -> None:
    mean, deviation = -0.5, 1.0
    timesteps = torch.cat(
        [stratified_timesteps(64, 1000, torch.Generator().manual_seed(s), (mean, deviation)) for s in range(200)]
    ).double()
    for t in (100, 300, 500, 900):
        logit = math.log(t / (1000 - t))
        expected = 0.5 * (1 + math.erf((logit - mean) / deviation / math.sqrt(2)))
        assert float((timesteps < t).double().mean()) == pytest.approx(expected, abs=0.004)
    assert timesteps.min() >= 0
    assert timesteps.max() <= 999


def test_contrast_equals_cross_entropy_by_hand_and_forgives_equal_captions() -> None:
    class Clip(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.logit_scale = torch.nn.Parameter(torch.tensor(1.0))
            images = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
            self.images = torch.nn.functional.normalize(images, dim=-1)

        def encode_image(self, x: torch.Tensor, normalize: bool) -> torch.Tensor:
            return self.images

        def encode_text(self, tokens: torch.Tensor, normalize: bool) -> torch.Tensor:
            return self.images[[0, 1, 1]]

    clip = Clip()
    objective = ContrastiveObjective(clip, lambda captions: torch.tensor([[len(c)] for c in captions]))
    batch = {"pixel_values": torch.zeros(3, 3, 2, 2), "captions": ["a", "bb", "bb"], "keys": ["1", "2", "3"]}
    loss = objective(batch, torch.Generator()).loss
    logits = torch.e * clip.images @ clip.images[[0, 1, 1]].T
    rows, columns = logits.log_softmax(1), logits.log_softmax(0)
    target = torch.tensor([[1.0, 0, 0], [0, 0.5, 0.5], [0, 0.5, 0.5]])
    expected = -((target * rows).sum(1).mean() + (target * columns).sum(0).mean()) / 2
    torch.testing.assert_close(loss, expected)


def test_the_autoencoder_loss_is_the_sum_of_its_terms() -> None:
    torch.manual_seed(0)
    vae = build_autoencoder(AutoencoderModel(width=8, latent_channels=4, blocks=(1, 1)))
    spec = AutoencoderLoss(square_weight=2, edge_weight=0.5, latent_weight=0.1, latent_noise=0, crop_size=None)
    pictures = torch.rand(2, 3, 8, 8) * 2 - 1
    batch = {"pixel_values": pictures, "captions": ["", ""], "keys": ["1", "2"]}
    loss = AutoencoderObjective(vae, spec)(batch, torch.Generator()).loss
    latents = vae.encode(pictures).latents
    error = (vae.decode(latents).sample - pictures).double()
    edges = (error[..., 1:] - error[..., :-1]).abs().mean() + (error[..., 1:, :] - error[..., :-1, :]).abs().mean()
    expected = error.abs().mean() + 2 * (error**2).mean() + 0.5 * edges + 0.1 * (latents.double() ** 2).mean()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
    assert abs(float((latents.detach() * latent_scale(vae, pictures)).std()) - 1) < 1e-5


def test_crops_lie_inside_and_reach_every_place() -> None:
    pictures = torch.arange(36.0).reshape(1, 1, 6, 6)
    generator = torch.Generator().manual_seed(0)
    corners = {int(random_crop(pictures, 4, generator)[0, 0, 0, 0]) for _ in range(200)}
    assert corners == {row * 6 + column for row in range(3) for column in range(3)}
    assert torch.equal(random_crop(pictures, 8, generator), pictures)
