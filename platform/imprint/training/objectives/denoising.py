"""Train a text-to-image backbone: the simple diffusion loss on precomputed latents."""

from __future__ import annotations

from typing import Any, NotRequired

import torch
from jaxtyping import Float
from torch import Tensor, nn

from imprint.backbone import Backbone
from imprint.methods.diffusion_loss import min_snr_weights, random_noise, stratified_timesteps
from imprint.objective import Batch, Objective, StepOutput


class LatentBatch(Batch):
    """A batch with the moments of its latents, resampled at each use."""

    latent_mean: NotRequired[Float[Tensor, "b c h w"]]
    latent_std: NotRequired[Float[Tensor, "b c h w"]]


class DenoisingObjective(Objective):
    """UNet and text encoders train together on || target - network(x_t, t, text) ||^2 (DDPM Eq. 14).

    `min_snr_gamma` weights each timestep's error by min-SNR. `subject_weight` weights the subject's part of the
    picture, by the batch's masks, against 1 for the background; each picture's weights have the mean 1.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        caption_dropping: float = 0.1,
        min_snr_gamma: float | None = None,
        subject_weight: float = 1.0,
        timestep_logits: tuple[float, float] | None = None,
    ) -> None:
        super().__init__()
        self.unet = backbone.unet
        self.text_encoders = nn.ModuleList(backbone.text_encoders)
        self.backbone = (backbone,)  # in a tuple: the autoencoder must not register as a submodule
        self.caption_dropping = caption_dropping
        self.min_snr_gamma = min_snr_gamma
        self.subject_weight = subject_weight
        self.timestep_logits = timestep_logits

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The text encoders know the words already and move at a fifth of the UNet's rate."""
        return [
            {"params": list(self.unet.parameters()), "lr_scale": 1.0},
            {"params": list(self.text_encoders.parameters()), "lr_scale": 0.2},
        ]

    def forward(self, batch: LatentBatch, generator: torch.Generator) -> StepOutput:
        (backbone,) = self.backbone
        mean, std = batch["latent_mean"], batch["latent_std"]
        latents = mean + std * random_noise(mean, generator)
        noise = random_noise(latents, generator)
        timesteps = stratified_timesteps(len(latents), backbone.schedule.num_timesteps, generator, self.timestep_logits)
        dropped = torch.rand(len(latents), generator=generator) < self.caption_dropping
        captions = ["" if drop else c for drop, c in zip(dropped.tolist(), batch["captions"], strict=True)]
        noisy = backbone.schedule.add_noise(latents, noise, timesteps)
        conditioning = backbone.encode_text(captions).sized(batch.get("time_ids"))
        output = backbone.denoise(noisy, timesteps, conditioning).float()
        errors = (output - backbone.schedule.target(latents, noise, timesteps)).square()
        each = errors.mean(dim=(1, 2, 3))
        if self.subject_weight != 1:
            emphasis = 1 + (self.subject_weight - 1) * batch["masks"]
            each = (errors * emphasis).mean(dim=(1, 2, 3)) / emphasis.mean(dim=(1, 2, 3))
        weights = min_snr_weights(backbone.schedule, timesteps, self.min_snr_gamma)
        loss = each.mean() if weights is None else (each * weights).mean()
        return StepOutput(loss, {"unweighted": errors.detach().mean()})
