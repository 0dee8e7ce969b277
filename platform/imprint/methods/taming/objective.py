"""Regularized joint training of the Taming Encoder on triplets of a domain and of general pictures.

Source: Taming Encoder, sections 3.3 and 3.4. Legend: z = (x, o, t) the triplet of a picture, an object embedding and a
caption; phi the null embedding; x_t the noisy picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from imprint.backbone import Backbone
from imprint.config.methods import DroppingSpec, TamingSpec
from imprint.errors import DataError
from imprint.features.clip import ClipFeatures
from imprint.methods.diffusion_loss import diffusion_loss, random_noise, stratified_timesteps
from imprint.methods.taming.attention import null_objects
from imprint.methods.taming.parts import TamingParts
from imprint.objective import Batch, Objective, StepOutput


class TripletBatch(Batch):
    """Triplets before they are encoded: `object_values` in [-1, 1] show the object, the picture itself or another one
    of it (Eq. 3), with `object_masks`; `is_domain` tells domain pictures from general ones."""

    object_values: Float[Tensor, "b 3 h w"]
    object_masks: Float[Tensor, "b 1 h w"]
    is_domain: Bool[Tensor, "b"]


class TamingObjective(Objective):
    """The denoising loss (Eq. 1) of the network given caption and object.

    The UNet of `backbone` trains in place, and the new attentions; with `whole_network` off they alone. Text encoders,
    autoencoder and object encoder never do.
    """

    def __init__(self, backbone: Backbone, spec: TamingSpec, clip: ClipFeatures | None = None) -> None:
        """`clip` is loaded by the name in the spec where it is not given.

        Raises:
            BackboneError: CLIP cannot be loaded, or the UNet has no place for the attentions.
        """
        super().__init__()
        clip = clip or ClipFeatures.load(spec.object_encoder.clip, device=backbone.device)
        parts = TamingParts.build(backbone.freeze(), spec, clip)
        self.spec = spec
        self.attentions = parts.attentions.requires_grad_(True)
        if spec.whole_network:
            self.unet = parts.backbone.unet.requires_grad_(True)
        # In a tuple, so that what is frozen is not registered and no engine shards, trains or saves it.
        self._held = (parts,)

    @property
    def parts(self) -> TamingParts:
        """Backbone, attentions and CLIP."""
        return self._held[0]

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The UNet, where it trains, and the attentions at their own share of the learning rate."""
        groups = [{"params": list(self.attentions.parameters()), "lr_scale": self.spec.attention_lr_scale}]
        if self.spec.whole_network:
            groups.append({"params": list(self.unet.parameters()), "lr_scale": 1.0})
        return groups

    def forward(self, batch: TripletBatch, generator: torch.Generator) -> StepOutput:
        """The loss of one micro-batch; metrics are its means over domain and over general pictures.

        Raises:
            DataError: the batch holds no triplets.
        """
        backbone, spec = self.parts.backbone, self.spec
        if "object_values" not in batch:
            raise DataError("training taming: the batch has no objects; expected triplets, as jobs/finetune_joint.yaml "
                            "streams them")  # fmt: skip
        # Noise and target in fp32 also where an engine keeps the UNet in bf16.
        x0 = backbone.encode_images(batch["pixel_values"].to(backbone.device), generator).float()
        noise = random_noise(x0, generator)
        steps = backbone.schedule.num_timesteps
        timesteps = stratified_timesteps(len(x0), steps, generator, spec.timestep_logits).to(x0.device)
        xt = backbone.schedule.add_noise(x0, noise, timesteps)
        objects = self.parts.embed(batch["object_values"], batch["object_masks"])
        is_domain = batch["is_domain"].to(x0.device)
        fine = batch.get("contexts") if spec.fine_captions else None
        captions = [joined_caption(*pair) for pair in zip(batch["captions"], fine or [""] * len(x0), strict=True)]
        objects, captions = dropped(objects, captions, is_domain, spec.dropping, generator)
        conditioning = self.parts.condition(captions, objects).sized(batch.get("time_ids"))
        output = backbone.denoise(xt, timesteps, conditioning)
        target = backbone.schedule.target(x0, noise, timesteps)
        metrics = {
            "loss_domain": _loss_of(is_domain, output, target), "loss_general": _loss_of(~is_domain, output, target),
        }  # fmt: skip
        return StepOutput(diffusion_loss(output, target), metrics)


def joined_caption(coarse: str, fine: str) -> str:
    """c, section 3.3: the coarse caption and after it the fine one's phrases that it does not hold already."""
    missing = [phrase for phrase in fine.split(", ") if phrase and phrase not in coarse]
    return ", ".join(part for part in (coarse, *missing) if part)


def dropped(
    objects: Float[Tensor, "b m e"],
    captions: Sequence[str],
    is_domain: Bool[Tensor, "b"],
    spec: DroppingSpec,
    generator: torch.Generator,
) -> tuple[Float[Tensor, "b m e"], list[str]]:
    """Eq. 4: phi for general pictures; and at random phi for domain pictures, and empty captions, for guidance.

    Object and caption are dropped independently of each other, so that every branch of guidance is trained.
    """
    draws = torch.rand(len(objects), 2, generator=generator, device=generator.device).to(objects.device)
    null = draws[:, 0] < spec.object
    if spec.general:
        null = null | ~is_domain
    texts = ["" if drop else text for drop, text in zip((draws[:, 1] < spec.text).tolist(), captions, strict=True)]
    return torch.where(null[:, None, None], null_objects(objects), objects), texts


@torch.no_grad()
def _loss_of(chosen: Bool[Tensor, "b"], output: Tensor, target: Tensor) -> Float[Tensor, ""]:
    """The loss of some of the pictures; 0 where a batch has none, since every rank must report the same metrics."""
    return diffusion_loss(output[chosen], target[chosen]) if bool(chosen.any()) else output.new_zeros(())
