"""Train an autoencoder: pictures to latents and back."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL
from jaxtyping import Float
from torch import Tensor

from imprint.objective import Batch, Objective, StepOutput


class AutoencoderObjective(Objective):
    """L1 on pixels and on differences of neighbours, with a small KL to a standard normal.

    The KL only keeps the latents from drifting: as in latent diffusion (arXiv:2112.10752, Appendix G) its weight is
    tiny and the scale is set afterwards by `latent_scale`.
    """

    def __init__(self, vae: AutoencoderKL, *, kl_weight: float, edge_weight: float) -> None:
        super().__init__()
        self.vae = vae
        self.kl_weight = kl_weight
        self.edge_weight = edge_weight

    def forward(self, batch: Batch, generator: torch.Generator) -> StepOutput:
        pictures = batch["pixel_values"].contiguous(memory_format=torch.channels_last)
        posterior = self.vae.encode(pictures).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator).to(posterior.mean)
        decoded = self.vae.decode(posterior.mean + posterior.std * noise).sample.float()
        pixels = (decoded - pictures).abs().mean()
        edges = _edge_difference(decoded, pictures)
        kl = posterior.kl().float().mean()
        with torch.no_grad():
            mse = ((decoded.clamp(-1, 1) - pictures) / 2).square().mean()
        metrics = {"pixels": pixels.detach(), "edges": edges.detach(), "kl": kl.detach(), "psnr": -10 * mse.log10()}
        return StepOutput(pixels + self.edge_weight * edges + self.kl_weight * kl, metrics)


def _edge_difference(a: Float[Tensor, "b c h w"], b: Float[Tensor, "b c h w"]) -> Float[Tensor, ""]:
    rows = (a.diff(dim=-2) - b.diff(dim=-2)).abs().mean()
    columns = (a.diff(dim=-1) - b.diff(dim=-1)).abs().mean()
    return rows + columns


@torch.no_grad()
def latent_scale(vae: AutoencoderKL, pictures: Float[Tensor, "b 3 h w"]) -> float:
    """1 / standard deviation of the latents of some pictures, so that scaled latents have unit variance."""
    return float(1 / vae.encode(pictures).latent_dist.mean.std())
