"""Pretraining of PromptNet: the denoising loss, and no regularization. Source: ProFusion, arXiv:2305.13579, Eq. 1."""

from __future__ import annotations

import torch

from imprint.backbone import Backbone
from imprint.config.methods import ProFusionSpec
from imprint.features.clip import ClipFeatures
from imprint.methods.augment import placed_views
from imprint.methods.pretraining import EncoderObjective, pretraining_batch, reference_pictures
from imprint.methods.profusion.parts import ProFusionParts
from imprint.methods.prompts import check_templates
from imprint.objective import Batch, StepOutput


class ProFusionObjective(EncoderObjective):
    """L = L_diffusion (Eq. 1) with S* of (x_0, x_t, t) in the prompts; only PromptNet trains."""

    def __init__(self, backbone: Backbone, spec: ProFusionSpec, clip: ClipFeatures | None = None) -> None:
        """`clip` is loaded by the name in the spec where it is not given.

        Raises:
            ConfigError: a template has no placeholder.
            BackboneError: CLIP cannot be loaded.
        """
        check_templates(spec.templates)
        clip = clip or ClipFeatures.load(spec.encoder.clip, device=backbone.device)
        parts = ProFusionParts.build(backbone.freeze(), spec, clip)
        super().__init__(parts)
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
