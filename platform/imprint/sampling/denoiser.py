"""The one denoiser interface: (x_t, t) in, both x_0 and eps out, whatever the network predicts.

A sampler never knows whether a network predicts eps, v or x_0, whether two guidance branches ran, or whether the
conditioning was predicted anew at this very step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from imprint.backbone import Backbone, TextConditioning


class Denoised(NamedTuple):
    """What a denoiser says of x_t: the clean latents and the noise in them, two views of one prediction."""

    x0: Float[Tensor, "b c h w"]
    eps: Float[Tensor, "b c h w"]


class Denoiser(Protocol):
    """A function of noisy latents and one timestep for each."""

    def __call__(self, xt: Float[Tensor, "b c h w"], timesteps: Int[Tensor, "b"]) -> Denoised: ...


Conditioner = Callable[[Tensor, Tensor], TextConditioning]
"""Gives the conditioning for (x_t, t): the same at every step, or, with iterative refinement, a new one."""


def constant(conditioning: TextConditioning) -> Conditioner:
    """The conditioner that gives the same conditioning at every step."""
    return lambda xt, timesteps: conditioning


@dataclass(frozen=True)
class BackboneDenoiser:
    """A backbone with a conditioner, unguided. `weights` replaces UNet parameters, as in `Backbone.denoise`."""

    backbone: Backbone
    conditioner: Conditioner
    weights: Mapping[str, Tensor] | None = None

    @torch.no_grad()
    def __call__(self, xt: Float[Tensor, "b c h w"], timesteps: Int[Tensor, "b"]) -> Denoised:
        latents = xt.to(self.backbone.dtype)
        output = self.backbone.denoise(latents, timesteps, self.conditioner(latents, timesteps), self.weights)
        return denoised(self.backbone, output, xt, timesteps)


def denoised(backbone: Backbone, output: Tensor, xt: Tensor, timesteps: Tensor) -> Denoised:
    """Both views of a raw network output, in the precision of `xt`."""
    output = output.to(xt.dtype)
    schedule = backbone.schedule
    return Denoised(schedule.to_x0(output, xt, timesteps), schedule.to_eps(output, xt, timesteps))
