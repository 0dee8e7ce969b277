"""The denoising loss that every method trains with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


def diffusion_loss(
    output: Float[Tensor, "b c h w"],
    target: Float[Tensor, "b c h w"],
    masks: Float[Tensor, "b 1 h2 w2"] | None = None,
) -> Float[Tensor, ""]:
    """Mean squared error between a raw network output and its target; DDPM Eq. 14, E4T Eq. 4.

    The squared norm of Eq. 4 is taken as a mean over elements, as the code of latent diffusion does. `masks`, of any
    size, in [0, 1], are averaged down to the latents and weight the error; each picture's weights sum to one, so a
    small subject counts as much as a large one.
    """
    error = (output.float() - target.float()).square()
    if masks is None:
        return error.mean()
    weights = F.adaptive_avg_pool2d(masks.to(error), error.shape[-2:])
    total = weights.sum(dim=(1, 2, 3)).clamp(min=1e-4) * error.shape[1]
    return ((weights * error).sum(dim=(1, 2, 3)) / total).mean()


def stratified_timesteps(batch: int, num_timesteps: int, generator: torch.Generator) -> Int[Tensor, "b"]:
    """One uniform timestep from each of `batch` equal slices of the schedule, in random order.

    Each timestep is as likely as under independent draws, and a batch of 16 always sees noise of every strength.
    """
    within = torch.rand(batch, generator=generator, device=generator.device, dtype=torch.float64)
    slices = torch.randperm(batch, generator=generator, device=generator.device)
    return ((slices + within) / batch * num_timesteps).long().clamp(max=num_timesteps - 1)


def random_noise(like: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal noise from `generator`, on the device and in the dtype of `like`."""
    noise = torch.randn(like.shape, generator=generator, device=generator.device, dtype=torch.float32)
    return noise.to(like.device, like.dtype)
