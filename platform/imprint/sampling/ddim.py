"""DDIM, arXiv:2010.02502."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from imprint.sampling.denoiser import Denoised, Denoiser

StepCallback = Callable[[int, Tensor], None]
"""Called after each step with its number, from 0, and the latents."""


def ddim(
    denoiser: Denoiser,
    noise: Float[Tensor, "b c h w"],
    timesteps: Int[Tensor, "steps"],
    alphas_cumprod: Float[Tensor, "T"],
    *,
    eta: float = 0.0,
    final_alpha_cumprod: float = 1.0,
    generator: torch.Generator | list[torch.Generator] | None = None,
    callback: StepCallback | None = None,
) -> Float[Tensor, "b c h w"]:
    """Sample latents from `noise` along descending `timesteps`; Eq. 12 with sigma of Eq. 16.

    Args:
        eta: 0 is deterministic; 1 is DDPM's ancestral sampler on the same timesteps.
        final_alpha_cumprod: abar after the last step; 1 ends at x_0 itself, abar_0 is Stable Diffusion's habit.
        generator: where the noise of eta > 0 comes from; one for all, or one for each picture.
    """
    x = noise
    abar = alphas_cumprod.to(x.device, torch.float64)
    for number, t in enumerate(timesteps.tolist()):
        prediction = denoiser(x, torch.full((len(x),), t, device=x.device, dtype=torch.long))
        last = number + 1 == len(timesteps)
        a_t = abar[t]
        a_next = torch.tensor(final_alpha_cumprod).to(abar) if last else abar[timesteps[number + 1]]
        x = ddim_step(prediction, a_next, ddim_sigma(a_t, a_next, eta), generator)
        if callback is not None:
            callback(number, x)
    return x


def ddim_sigma(a_t: Float[Tensor, ""], a_next: Float[Tensor, ""], eta: float) -> Float[Tensor, ""]:
    """sigma of Eq. 16, from abar of this timestep and of the next one visited."""
    return eta * ((1 - a_next) / (1 - a_t)).sqrt() * (1 - a_t / a_next).clamp(min=0).sqrt()


def ddim_step(
    prediction: Denoised,
    a_next: Float[Tensor, ""],
    sigma: Float[Tensor, ""],
    generator: torch.Generator | list[torch.Generator] | None = None,
) -> Float[Tensor, "b c h w"]:
    """One step to abar `a_next` with noise of strength sigma, Eq. 12."""
    dtype = prediction.x0.dtype
    direction = (1 - a_next - sigma**2).clamp(min=0).sqrt()
    x = a_next.sqrt().to(dtype) * prediction.x0 + direction.to(dtype) * prediction.eps
    if float(sigma) > 0:
        x = x + sigma.to(dtype) * fresh_noise(x, generator)
    return x


def fresh_noise(
    like: Float[Tensor, "b c h w"], generator: torch.Generator | list[torch.Generator] | None
) -> Float[Tensor, "b c h w"]:
    """Standard normal noise; from one generator a picture, a picture does not depend on its neighbours."""
    if isinstance(generator, list):
        assert len(generator) == len(like), "one generator for each picture"
        return torch.stack([fresh_noise(row, g) for row, g in zip(like, generator, strict=True)])
    device = like.device if generator is None else generator.device
    noise = torch.randn(like.shape, generator=generator, device=device, dtype=torch.float32)
    return noise.to(like.device, like.dtype)
