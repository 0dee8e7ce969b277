"""The denoising loss of a super-resolution model: pairs of small and large pictures, with noise on both.

Source: noise conditioning augmentation, arXiv:2106.15282 section 4; DreamBooth, arXiv:2208.12242, section 4.3.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from imprint.backbone import TextConditioning
from imprint.backbone.super_resolution import SuperResolution
from imprint.methods.augment import spread_evenly
from imprint.methods.diffusion_loss import diffusion_loss, random_noise, stratified_timesteps


@dataclass(frozen=True, eq=False)
class NoisyPair:
    """x_t of a large picture at its timesteps and what the network should put out, with the small picture as seen."""

    xt: Float[Tensor, "b c h w"]
    timesteps: Int[Tensor, "b"]
    target: Float[Tensor, "b c h w"]
    condition: Float[Tensor, "b 3 h w"]
    levels: Int[Tensor, "b"]

    def loss(self, model: SuperResolution, text: TextConditioning) -> Float[Tensor, ""]:
        """|| target - network(x_t, t, small picture, its noise level, text) ||^2, as a mean over elements."""
        output = model.denoise(self.xt, self.timesteps, self.condition, self.levels, text)
        return diffusion_loss(output, self.target)


def noisy_pair(
    model: SuperResolution,
    x0: Float[Tensor, "b c h w"],
    low: Float[Tensor, "b 3 h2 w2"],
    variances: Float[Tensor, "b"],
    levels: Int[Tensor, "b"],
    generator: torch.Generator,
    timestep_logits: tuple[float, float] | None = None,
) -> NoisyPair:
    """Noise of variance `variances` on the small pictures, and noise at stratified timesteps on what is denoised."""
    noise = random_noise(x0, generator)
    timesteps = stratified_timesteps(len(x0), model.schedule.num_timesteps, generator, timestep_logits).to(x0.device)
    augmentation = random_noise(x0.new_empty(model.condition_shape(low)), generator)
    condition = model.condition(low, variances, augmentation)
    xt = model.schedule.add_noise(x0, noise, timesteps)
    return NoisyPair(xt, timesteps, model.schedule.target(x0, noise, timesteps), condition, levels.to(x0.device))


def shrink(high: Float[Tensor, "b 3 h w"], factor: int) -> Float[Tensor, "b 3 h2 w2"]:
    """The small version of a large picture: means of squares, as the default data sets are made small."""
    return F.avg_pool2d(high, factor)


def random_crops(
    high: Float[Tensor, "n 3 h w"], count: int, size: int, factor: int, generator: torch.Generator
) -> Float[Tensor, "count 3 size size"]:
    """Squares from anywhere in the pictures, as many of each; their corners are on the grid of the small picture."""
    order = spread_evenly(len(high), count, generator).tolist()
    draws = torch.rand(count, 2, generator=generator, device=generator.device, dtype=torch.float64).tolist()
    places = [(side - size) // factor + 1 for side in high.shape[-2:]]
    corners = [tuple(int(draw * many) * factor for draw, many in zip(row, places, strict=True)) for row in draws]
    crops = [high[n, :, y : y + size, x : x + size] for n, (y, x) in zip(order, corners, strict=True)]
    return torch.stack(crops)
