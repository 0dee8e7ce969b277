"""Classifier-free guidance, both branches in one forward."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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


def guide_all(
    unconditional: Float[Tensor, "b ..."], conditionals: Sequence[Float[Tensor, "b ..."]], scales: Sequence[float]
) -> Float[Tensor, "b ..."]:
    """unconditional + sum_i scale_i (conditional_i - unconditional): independent conditions, with scale_i = 1 + w_i.

    Source: ProFusion, arXiv:2305.13579, Eq. 6 and its extension to several subjects; one condition is Eq. 3.
    """
    out = unconditional
    for conditional, scale in zip(conditionals, scales, strict=True):
        out = out + scale * (conditional - unconditional)
    return out


@dataclass(frozen=True)
class BranchedDenoiser:
    """A backbone guided towards several conditions at once, each by its own scale, all branches in one forward.

    `branches` gives the conditions at (x_t, t). Guidance acts on the raw output, as in `GuidedDenoiser`.
    """

    backbone: Backbone
    branches: Callable[[Tensor, Tensor], Sequence[TextConditioning]]
    unconditional: TextConditioning
    scales: Sequence[float]

    @torch.no_grad()
    def __call__(self, xt: Float[Tensor, "b c h w"], timesteps: Int[Tensor, "b"]) -> Denoised:
        latents = xt.to(self.backbone.dtype)
        texts = [self.unconditional.repeat(len(xt)), *self.branches(latents, timesteps)]
        every = latents.repeat(len(texts), 1, 1, 1), timesteps.repeat(len(texts))
        output = self.backbone.denoise(*every, TextConditioning.cat(texts)).to(xt.dtype)
        without, *with_ = output.chunk(len(texts))
        return denoised(self.backbone, guide_all(without, with_, self.scales), xt, timesteps)
