"""The objectives that make a backbone, against their formulas."""

import torch

from imprint.backbone import NoiseSchedule
from imprint.backbone.tiny import build_autoencoder
from imprint.config.jobs.tiny import AutoencoderLoss, AutoencoderModel
from imprint.training.objectives.autoencoder import AutoencoderObjective, latent_scale, random_crop
from imprint.training.objectives.contrastive import ContrastiveObjective
from imprint.training.objectives.denoising import min_snr_weights

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
