"""Pretraining of PromptNet: the denoising loss, and no regularization. Source: ProFusion, arXiv:2305.13579, Eq. 1."""

from __future__ import annotations

import torch

from imprint.backbone import Backbone
from imprint.config.methods import ProFusionSpec
from imprint.features.clip import ClipFeatures
from imprint.methods.augment import placed_views
from imprint.methods.pretraining import EncoderObjective, pretraining_batch, reference_pictures
from imprint.methods.profusion.parts import ProFusionParts
from imprint.objective import Batch, StepOutput


class ProFusionObjective(EncoderObjective):
    """L = L_diffusion (Eq. 1) with S* of (x_0, x_t, t) in the prompts; only PromptNet trains."""

    def __init__(self, backbone: Backbone, spec: ProFusionSpec, clip: ClipFeatures | None = None) -> None:
        """See `EncoderObjective`."""
        super().__init__(ProFusionParts.build, backbone, spec, clip)
        parts: ProFusionParts = self.parts
        self.spec = spec
        self.promptnet = parts.promptnet

    def forward(self, batch: Batch, generator: torch.Generator) -> StepOutput:
        """The loss of one micro-batch.

        Raises:
            DataError: the spec asks for masks and the batch has none.
        """
        parts: ProFusionParts = self.parts
        backbone, spec = parts.backbone, self.spec
        images = batch["pixel_values"].to(backbone.device)
        noisy = pretraining_batch(backbone, spec, batch, images, generator)
        seen = reference_pictures(spec, batch, images)
        if spec.other_view is not None:
            place = spec.other_view
            seen = placed_views(seen, smallest=place.smallest, degrees=place.degrees, generator=generator)
        conditioning = parts.condition(parts.reference(seen), noisy.xt, noisy.timesteps, noisy.prompts)
        output = backbone.denoise(noisy.xt, noisy.timesteps, conditioning.sized(noisy.time_ids))
        loss = noisy.loss(output, backbone.schedule)
        return StepOutput(loss, {"loss_diffusion": loss.detach()})
