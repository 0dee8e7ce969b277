"""Ancestral samplers: DDPM's (arXiv:2006.11239) on any subset of timesteps, and Euler's (k-diffusion)."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from imprint.sampling.ddim import StepCallback, fresh_noise
from imprint.sampling.denoiser import Denoiser


def ddpm_ancestral(
    denoiser: Denoiser,
    noise: Float[Tensor, "b c h w"],
    timesteps: Int[Tensor, "steps"],
    alphas_cumprod: Float[Tensor, "T"],
    *,
    generator: torch.Generator | list[torch.Generator] | None = None,
    callback: StepCallback | None = None,
) -> Float[Tensor, "b c h w"]:
    """Sample the posterior q(x_s | x_t, x_0) at each step, DDPM Eqs. 6 and 7 for s the next timestep visited.

    With a_ts = abar_t / abar_s: mean = sqrt(abar_s) (1 - a_ts) / (1 - abar_t) x_0
    + sqrt(a_ts) (1 - abar_s) / (1 - abar_t) x_t; variance = (1 - abar_s) / (1 - abar_t) (1 - a_ts).
    """
    x = noise
    abar = alphas_cumprod.to(x.device, torch.float64)
    for number, t in enumerate(timesteps.tolist()):
        x0 = denoiser(x, torch.full((len(x),), t, device=x.device, dtype=torch.long)).x0
        if number + 1 == len(timesteps):
            x = x0
        else:
            a_t, a_s = abar[t], abar[timesteps[number + 1]]
            a_ts = a_t / a_s
            to_x0 = a_s.sqrt() * (1 - a_ts) / (1 - a_t)
            to_xt = a_ts.sqrt() * (1 - a_s) / (1 - a_t)
            deviation = ((1 - a_s) / (1 - a_t) * (1 - a_ts)).sqrt()
            x = to_x0.to(x.dtype) * x0 + to_xt.to(x.dtype) * x + deviation.to(x.dtype) * fresh_noise(x, generator)
        if callback is not None:
            callback(number, x)
    return x


def euler_ancestral(
    denoiser: Denoiser,
    noise: Float[Tensor, "b c h w"],
    timesteps: Int[Tensor, "steps"],
    alphas_cumprod: Float[Tensor, "T"],
    *,
    eta: float = 1.0,
    generator: torch.Generator | list[torch.Generator] | None = None,
    callback: StepCallback | None = None,
) -> Float[Tensor, "b c h w"]:
    """Euler steps in sigma = sqrt((1 - abar) / abar) with noise put back after each; `sample_euler_ancestral`.

    A step from sigma to sigma_next goes down to sigma_down and back up by sigma_up, where
    sigma_up = min(sigma_next, eta sqrt(sigma_next^2 (sigma^2 - sigma_next^2) / sigma^2)) and
    sigma_down^2 + sigma_up^2 = sigma_next^2. At a timestep of pure noise (abar = 0) sigma would be infinite, so the
    state is kept as the variance-preserving x_t and each step is computed from x_0 and eps.
    """
    x = noise
    abar = alphas_cumprod.to(x.device, torch.float64)
    for number, t in enumerate(timesteps.tolist()):
        prediction = denoiser(x, torch.full((len(x),), t, device=x.device, dtype=torch.long))
        if number + 1 == len(timesteps):
            x = prediction.x0
        else:
            a_t, a_s = abar[t], abar[timesteps[number + 1]]
            next_squared = (1 - a_s) / a_s
            # (sigma^2 - sigma_next^2) / sigma^2, finite also for abar_t = 0
            share = 1 - next_squared * a_t / (1 - a_t)
            up = torch.minimum(next_squared.sqrt(), eta * (next_squared * share).clamp(min=0).sqrt())
            down = (next_squared - up**2).clamp(min=0).sqrt()
            in_sigma_space = prediction.x0 + down.to(x.dtype) * prediction.eps
            in_sigma_space = in_sigma_space + up.to(x.dtype) * fresh_noise(x, generator)
            x = a_s.sqrt().to(x.dtype) * in_sigma_space
        if callback is not None:
            callback(number, x)
    return x
