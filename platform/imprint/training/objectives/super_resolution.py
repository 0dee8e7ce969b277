"""Train a super-resolution model: the simple diffusion loss, given the small picture with noise of any strength."""

from __future__ import annotations

from typing import NotRequired

import torch
from jaxtyping import Float
from torch import Tensor

from imprint.backbone.super_resolution import SuperResolution
from imprint.methods.cascade import noisy_pair
from imprint.objective import Batch, Objective, StepOutput


class PairBatch(Batch):
    """Crops of latents of large pictures, and of the small pictures at the same places."""

    latents: NotRequired[Float[Tensor, "b c h w"]]
    low: NotRequired[Float[Tensor, "b 3 h2 w2"]]


class SuperResolutionObjective(Objective):
    """The UNet alone trains. Noise levels are drawn as max_noise_level u^2, so that half are in the lowest quarter."""

    def __init__(
        self,
        model: SuperResolution,
        *,
        caption_dropping: float = 0.1,
        timestep_logits: tuple[float, float] | None = None,
    ) -> None:
        super().__init__()
        self.unet = model.unet
        self.model = (model,)  # in a tuple: what is frozen must not register as a submodule
        self.caption_dropping = caption_dropping
        self.timestep_logits = timestep_logits

    def forward(self, batch: PairBatch, generator: torch.Generator) -> StepOutput:
        (model,) = self.model
        latents, low = batch["latents"], batch["low"]
        draws = torch.rand(2, len(latents), generator=generator)
        levels = (model.max_noise_level * draws[0].square()).long()
        kept = draws[1] >= self.caption_dropping
        captions = [caption if keep else "" for keep, caption in zip(kept.tolist(), batch["captions"], strict=True)]
        with torch.no_grad():
            text = model.encode_text(captions)
        variances = model.level_variances(levels)
        pair = noisy_pair(model, latents, low, variances, levels, generator, self.timestep_logits)
        return StepOutput(pair.loss(model, text))
