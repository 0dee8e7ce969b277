"""Classifier-free guidance, both branches in one forward."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from imprint.backbone import Backbone, TextConditioning
from imprint.sampling.denoiser import Conditioner, Denoised, denoised


def guide(
    unconditional: Float[Tensor, "b ..."], conditional: Float[Tensor, "b ..."], scale: float
) -> Float[Tensor, "b ..."]:
    """unconditional + scale (conditional - unconditional); Eq. 6 of arXiv:2207.12598 with scale = 1 + w."""
    return unconditional + scale * (conditional - unconditional)


@dataclass(frozen=True)
class GuidedDenoiser:
    """A backbone guided away from `unconditional` [b or 1 rows] towards what the conditioner gives.

    Guidance acts on the raw output. For eps-, v- and x_0-prediction that is the same as acting on eps, since at a
    given (x_t, t) each is an affine function of the others and the guided weights sum to one.
    """

    backbone: Backbone
    conditioner: Conditioner
    unconditional: TextConditioning
    guidance_scale: float
    weights: Mapping[str, Tensor] | None = None

    @torch.no_grad()
    def __call__(self, xt: Float[Tensor, "b c h w"], timesteps: Int[Tensor, "b"]) -> Denoised:
        latents = xt.to(self.backbone.dtype)
        conditional = self.conditioner(latents, timesteps)
        unconditional = self.unconditional
        if len(unconditional.hidden) != len(xt):
            unconditional = unconditional.repeat(len(xt))
        both = TextConditioning.cat([unconditional, conditional])
        output = self.backbone.denoise(latents.repeat(2, 1, 1, 1), timesteps.repeat(2), both, self.weights)
        without, with_ = output.to(xt.dtype).chunk(2)
        return denoised(self.backbone, guide(without, with_, self.guidance_scale), xt, timesteps)
