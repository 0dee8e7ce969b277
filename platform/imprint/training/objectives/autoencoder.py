"""Train an autoencoder: pictures to latents and back."""

from __future__ import annotations

import torch
from diffusers import AutoencoderTiny
from jaxtyping import Float
from torch import Tensor

from imprint.config.jobs.tiny import AutoencoderLoss
from imprint.objective import Batch, Objective, StepOutput


class AutoencoderObjective(Objective):
    """Absolute and squared error of pixels, absolute error of differences of neighbours, noise on the latents.

    Noise together with a small weight on the latents' square keeps near latents alike, as the KL term of latent
    diffusion does (arXiv:2112.10752, Appendix G); the scale is set afterwards by `latent_scale`.
    The network is convolutions only, so most steps train on crops: what is learnt in a second counts by steps, not
    by pixels. Whole pictures now and then teach the borders.
    """

    def __init__(self, vae: AutoencoderTiny, loss: AutoencoderLoss) -> None:
        super().__init__()
        self.vae = vae
        self.spec = loss

    def forward(self, batch: Batch, generator: torch.Generator) -> StepOutput:
        spec = self.spec
        pictures = batch["pixel_values"]
        if spec.crop_size is not None and torch.rand((), generator=generator) >= spec.whole_share:
            pictures = random_crop(pictures, spec.crop_size, generator)
        pictures = pictures.contiguous(memory_format=torch.channels_last)
        latents = self.vae.encode(pictures).latents
        noise = torch.randn(latents.shape, generator=generator).to(latents)
        decoded = self.vae.decode(latents + spec.latent_noise * noise).sample.float()
        error = decoded - pictures
        pixels, square = error.abs().mean(), error.square().mean()
        edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
        size = latents.float().square().mean()
        loss = pixels + spec.square_weight * square + spec.edge_weight * edges + spec.latent_weight * size
        psnr = -10 * (((decoded.detach().clamp(-1, 1) - pictures) / 2).square().mean()).log10()
        metrics = {"pixels": pixels.detach(), "edges": edges.detach(), "latent_square": size.detach(), "psnr": psnr}
        return StepOutput(loss, metrics)


def random_crop(
    pictures: Float[Tensor, "b c h w"], size: int, generator: torch.Generator
) -> Float[Tensor, "b c size size"]:
    """One square for the whole batch; pictures that are no larger stay as they are."""
    top, left = (int(torch.randint(max(0, side - size) + 1, (), generator=generator)) for side in pictures.shape[-2:])
    return pictures[..., top : top + size, left : left + size]


@torch.no_grad()
def latent_scale(vae: AutoencoderTiny, pictures: Float[Tensor, "b 3 h w"]) -> float:
    """1 / standard deviation of the latents of some pictures, so that scaled latents have unit variance."""
    return float(1 / vae.encode(pictures).latents.std())
