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
from imprint.errors import DataError
from imprint.features.clip import ClipFeatures
from imprint.methods.diffusion_loss import diffusion_loss, random_noise, stratified_timesteps
from imprint.methods.e4t.encoder import embedding_regularization
from imprint.methods.e4t.parts import E4TParts
from imprint.methods.prompts import check_templates, training_prompts
from imprint.objective import Batch, Objective, StepOutput


class E4TObjective(Objective):
    """L = L_diffusion + lambda_r L_reg (Eq. 5) on x_0 = I_c.

    Gradients flow through the UNet and the text encoders to the encoder and the offsets, and to nothing else: only
    those two are registered.
    """

    def __init__(self, backbone: Backbone, spec: E4TSpec, clip: ClipFeatures | None = None) -> None:
        """`clip` is loaded by the name in the spec where it is not given.

        Raises:
            ConfigError: a template has no placeholder.
            BackboneError: CLIP cannot be loaded, or the domain word has no tokens.
        """
        super().__init__()
        check_templates(spec.templates)
        clip = clip or ClipFeatures.load(spec.encoder.clip, device=backbone.device)
        parts = E4TParts.build(backbone.freeze(), spec, clip)
        self.spec = spec
        self.encoder = parts.encoder
        self.offsets = parts.offsets
        # In a tuple, so that the frozen models are not registered and no engine shards, trains or saves them.
        self._held = (parts,)
        self._base = parts.base_weights()

    @property
    def parts(self) -> E4TParts:
        """Backbone, CLIP, encoder and offsets."""
        return self._held[0]

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The encoder, and the offsets at their own share of the learning rate."""
        groups = [{"params": list(self.encoder.parameters()), "lr_scale": 1.0}]
        if self.offsets is not None:
            groups.append({"params": list(self.offsets.parameters()), "lr_scale": self.spec.offsets.lr_scale})
        return groups

    def forward(self, batch: Batch, generator: torch.Generator) -> StepOutput:
        """The loss of one micro-batch; metrics are both terms and the mean norm of E(I_c).

        Raises:
            DataError: the spec asks for masks and the batch has none.
        """
        backbone, spec = self.parts.backbone, self.spec
        images = batch["pixel_values"].to(backbone.device)
        x0 = backbone.encode_images(images, generator)
        noise = random_noise(x0, generator)
        steps = backbone.schedule.num_timesteps
        timesteps = stratified_timesteps(len(x0), steps, generator, spec.timestep_logits).to(x0.device)
        xt = backbone.schedule.add_noise(x0, noise, timesteps)
        prompts = training_prompts(
            spec.templates,
            batch.get("contexts") or [""] * len(x0),
            context_probability=spec.context_probability,
            text_dropping=spec.text_dropping,
            generator=generator,
        )
        conditioning, offsets = self.parts.condition(self._clip_features(images, batch), xt, timesteps, prompts)
        weights = self.offsets(self._base) if self.offsets is not None else None
        output = backbone.denoise(xt, timesteps, conditioning, weights)
        masks = _masks(batch, images, "mask_loss") if spec.mask_loss else None
        diffusion = diffusion_loss(output, backbone.schedule.target(x0, noise, timesteps), masks)
        regularization = embedding_regularization(offsets)
        return StepOutput(
            diffusion + spec.regularization * regularization,
            {"loss_diffusion": diffusion.detach(), "loss_regularization": regularization.detach()},
        )

    def _clip_features(self, images: Float[Tensor, "b 3 h w"], batch: Batch) -> list[Float[Tensor, "b width"]]:
        assert self.parts.clip is not None
        if self.spec.mask_reference:
            images = mask_background(images, _masks(batch, images, "mask_reference"))
        return [feature.to(images.device) for feature in self.parts.clip.layers(images)]


def mask_background(images: Float[Tensor, "b 3 h w"], masks: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b 3 h w"]:
    """The subject on plain mid-gray, 0 in [-1, 1]."""
    return images * masks


def _masks(batch: Batch, images: Tensor, key: str) -> Tensor:
    masks = batch.get("masks")
    if masks is None:
        raise DataError(f"{key}: true, but the samples have no mask; add a masker to the job, or set {key}: false")
    return masks.to(images)
