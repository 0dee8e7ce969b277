"""Pretraining of E4T: the encoder and the weight offsets learn a domain, the UNet stays as it is.

Source: E4T, arXiv:2302.12228, section 3.3. Legend: I_c the picture, x_0 its latents, x_t noisy latents, t the timestep,
E(I_c) the encoder's offset, lambda_r the weight of L_reg.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from imprint.backbone import Backbone
from imprint.config.methods import E4TSpec
from imprint.features.clip import ClipFeatures
from imprint.methods.e4t.encoder import embedding_regularization
from imprint.methods.e4t.parts import E4TParts
from imprint.methods.pretraining import EncoderObjective, pretraining_batch, reference_pictures
from imprint.objective import Batch, StepOutput


class E4TObjective(EncoderObjective):
    """L = L_diffusion + lambda_r L_reg (Eq. 5) on x_0 = I_c.

    Gradients flow through the UNet and the text encoders to the encoder and the offsets, and to nothing else: only
    those two are registered.
    """

    def __init__(self, backbone: Backbone, spec: E4TSpec, clip: ClipFeatures | None = None) -> None:
        """See `EncoderObjective`.

        Raises:
            BackboneError: CLIP cannot be loaded, or the domain word has no tokens.
        """
        super().__init__(E4TParts.build, backbone, spec, clip)
        parts: E4TParts = self.parts
        self.spec = spec
        self.encoder = parts.encoder
        self.offsets = parts.offsets
        self._base = parts.base_weights()

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The encoder, and the offsets at their own share of the learning rate."""
        groups = [{"params": list(self.encoder.parameters()), "lr_scale": 1.0}]
        if self.offsets is not None:
            groups.append({"params": list(self.offsets.parameters()), "lr_scale": self.spec.offsets.lr_scale})
        return groups

    def forward(self, batch: Batch, generator: torch.Generator) -> StepOutput:
        """The loss of one micro-batch; metrics are both terms.

        Raises:
            DataError: the spec asks for masks and the batch has none.
        """
        parts: E4TParts = self.parts
        backbone, spec = parts.backbone, self.spec
        images = batch["pixel_values"].to(backbone.device)
        noisy = pretraining_batch(backbone, spec, batch, images, generator)
        features = self._clip_features(batch, images)
        conditioning, offsets = parts.condition(features, noisy.xt, noisy.timesteps, noisy.prompts)
        weights = self.offsets(self._base) if self.offsets is not None else None
        output = backbone.denoise(noisy.xt, noisy.timesteps, conditioning.sized(noisy.time_ids), weights)
        diffusion = noisy.loss(output, backbone.schedule)
        regularization = embedding_regularization(offsets)
        return StepOutput(
            diffusion + spec.regularization * regularization,
            {"loss_diffusion": diffusion.detach(), "loss_regularization": regularization.detach()},
        )

    def _clip_features(self, batch: Batch, images: Float[Tensor, "b 3 h w"]) -> list[Float[Tensor, "b width"]]:
        """As they came with the batch, else of what the encoder sees."""
        if "clip_layers" in batch:
            return list(batch["clip_layers"].to(images.device).unbind(1))
        clip = self.parts.clip
        assert clip is not None
        return [f.to(images.device) for f in clip.layers(reference_pictures(self.spec, batch, images))]
