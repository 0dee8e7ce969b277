"""The denoising loss that every method trains with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from imprint.backbone import NoiseSchedule


def diffusion_loss(
    output: Float[Tensor, "b c h w"],
    target: Float[Tensor, "b c h w"],
    masks: Float[Tensor, "b 1 h2 w2"] | None = None,
    weights: Float[Tensor, "b"] | None = None,
) -> Float[Tensor, ""]:
    """Mean squared error between a raw network output and its target; DDPM Eq. 14, E4T Eq. 4.

    The squared norm of Eq. 4 is taken as a mean over elements, as the code of latent diffusion does. `masks`, of any
    size, in [0, 1], are averaged down to the latents and weight the error; each picture's weights sum to one, so a
    small subject counts as much as a large one. `weights`, one a picture, are w_t of its timestep.
    """
    error = (output.float() - target.float()).square()
    if masks is None:
        each = error.mean(dim=(1, 2, 3))
    else:
        shares = F.adaptive_avg_pool2d(masks.to(error), error.shape[-2:])
        total = shares.sum(dim=(1, 2, 3)).clamp(min=1e-4) * error.shape[1]
        each = (shares * error).sum(dim=(1, 2, 3)) / total
    return each.mean() if weights is None else (each * weights.to(each)).mean()


@torch.no_grad()
def errors_by_timestep(
    output: Float[Tensor, "b c h w"], target: Float[Tensor, "b c h w"], timesteps: Int[Tensor, "b"], num_timesteps: int
) -> tuple[Float[Tensor, "b"], Float[Tensor, "b"]]:
    """t / T of each picture and its mean squared error, to be reported by timestep."""
    return timesteps.to(output.device) / num_timesteps, (output.float() - target.float()).square().mean(dim=(1, 2, 3))


def min_snr_weights(
    schedule: NoiseSchedule, timesteps: Int[Tensor, "b"], gamma: float | None
) -> Float[Tensor, "b"] | None:
    """w_t of each timestep's squared error; None, which is one for all, without gamma.

    min(SNR, gamma) on the error of x_0, arXiv:2303.09556 Eq. 4; on the raw output, section 3.4, that is
    min(SNR, gamma) / SNR for eps and min(SNR, gamma) / (SNR + 1) for v.
    """
    if gamma is None:
        return None
    abar = schedule.alphas_cumprod.to(timesteps.device)[timesteps]
    snr = abar / (1 - abar)
    clipped = snr.clamp(max=gamma)
    if schedule.prediction_type == "epsilon":
        return (clipped / snr).float()
    if schedule.prediction_type == "v_prediction":
        return (clipped / (snr + 1)).float()
    return clipped.float()


def stratified_timesteps(
    batch: int, num_timesteps: int, generator: torch.Generator, logits: tuple[float, float] | None = None
) -> Int[Tensor, "b"]:
    """One timestep from each of `batch` equally likely slices of the schedule, in random order.

    Each timestep is as likely as under independent draws, and a batch of 16 always sees noise of every strength.
    With `logits`, t / T is the logistic function of a normal with that mean and standard deviation, which draws the
    middle of the schedule more often than its ends: arXiv:2403.03206, Eq. 19; without, t is uniform.
    """
    within = torch.rand(batch, generator=generator, device=generator.device, dtype=torch.float64)
    slices = torch.randperm(batch, generator=generator, device=generator.device)
    quantiles = (slices + within) / batch
    if logits is not None:
        mean, deviation = logits
        quantiles = (mean + deviation * torch.special.ndtri(quantiles)).sigmoid()
    return (quantiles * num_timesteps).long().clamp(max=num_timesteps - 1)


def random_noise(like: Tensor, generator: torch.Generator, offset: float = 0.0) -> Tensor:
    """Standard normal noise from `generator`, on the device and in the dtype of `like`.

    `offset` adds so much noise with one value for each whole channel of a picture, as the schedule's end still shows a
    picture's mean, and a network trained without takes it for granted (offset noise, N. Guttenberg, 2023).
    """
    noise = torch.randn(like.shape, generator=generator, device=generator.device, dtype=torch.float32)
    if offset:
        shape = (*like.shape[:2], *(1 for _ in like.shape[2:]))
        noise += offset * torch.randn(shape, generator=generator, device=generator.device, dtype=torch.float32)
    return noise.to(like.device, like.dtype)
