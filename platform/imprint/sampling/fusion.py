"""Fusion sampling: at each step information of all conditions is fused into x_t before the step is taken.

Source: ProFusion, arXiv:2305.13579, Algorithm 1. Legend: abar_t = alphas_cumprod[t]; x~_t the sample that is fused, z
fresh noise, eps~ the guided noise; sigma_t = s sqrt(1 - abar_{t-1}) with s the share of its largest value.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from imprint.config.methods import FusionSpec
from imprint.sampling.ddim import StepCallback, ddim_sigma, ddim_step, fresh_noise
from imprint.sampling.denoiser import Denoiser

Generators = torch.Generator | list[torch.Generator] | None


def fuse(
    xt: Float[Tensor, "b c h w"],
    eps: Float[Tensor, "b c h w"],
    abar: Float[Tensor, ""],
    share: float,
    noise: Float[Tensor, "b c h w"],
) -> Float[Tensor, "b c h w"]:
    """One update of the fusion stage, Eq. 11.

    Eq. 11 holds abar_{t-1} in two ratios alone, sigma_t^2 / (1 - abar_{t-1}) = s^2 and (2 - 2 abar_{t-1} - sigma_t^2) /
    (1 - abar_{t-1}) = 2 - s^2, so that it has a value also where abar_{t-1} = 1, at the last step. s = 1 is Eq. 7,
    fresh noise on the predicted x_0.
    """
    sigma = (1 - abar).sqrt().to(xt.dtype)
    return xt - share**2 * sigma * eps + share * (2 - share**2) ** 0.5 * sigma * noise


def fusion_sampling(
    fused: Denoiser,
    refined: Denoiser,
    noise: Float[Tensor, "b c h w"],
    timesteps: Int[Tensor, "steps"],
    alphas_cumprod: Float[Tensor, "T"],
    spec: FusionSpec,
    *,
    eta: float = 0.0,
    generator: Generators = None,
    callback: StepCallback | None = None,
) -> Float[Tensor, "b c h w"]:
    """Sample latents from `noise` along descending `timesteps` by Algorithm 1, with DDIM as its sampler.

    `fused` gives eps~(x_t, gamma S*, C) of Eq. 3 and `refined` that of Eq. 6. Without the refinement stage x_{t-1} is
    drawn by Eq. 8 from the first of them.
    """
    x = noise
    abar = alphas_cumprod.to(x.device, torch.float64)
    for number, t in enumerate(timesteps.tolist()):
        at = torch.full((len(x),), t, device=x.device, dtype=torch.long)
        last = number + 1 == len(timesteps)
        a_t, a_next = abar[t], torch.ones_like(abar[0]) if last else abar[timesteps[number + 1]]
        if spec.refinement:
            for _ in range(spec.steps):
                x = fuse(x, fused(x, at).eps, a_t, spec.sigma, fresh_noise(x, generator))
            x = ddim_step(refined(x, at), a_next, ddim_sigma(a_t, a_next, eta), generator)
        else:
            x = ddim_step(fused(x, at), a_next, spec.sigma * (1 - a_next).sqrt(), generator)
        if callback is not None:
            callback(number, x)
    return x
