"""Pretraining of an encoder on many concepts: what the objectives of all methods do alike around their own loss.

Legend: I_c the picture, x_0 its latents, x_t noisy latents, t the timestep.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from imprint.backbone import Backbone
from imprint.backbone.base import sample_latents
from imprint.config.methods import PretrainSpec
from imprint.errors import DataError
from imprint.features.clip import ClipFeatures
from imprint.methods.pretrained import EncoderParts
from imprint.methods.prompts import check_templates, training_prompts
from imprint.methods.subject_batch import NoisyBatch, noisy_batch
from imprint.objective import Batch, Objective


class EncoderObjective(Objective):
    """Base of the objectives that pretrain an encoder: a subclass registers the networks of its parts.

    Gradients flow through the backbone to those networks and to nothing else.
    """

    def __init__(
        self,
        build: Callable[[Backbone, Any, ClipFeatures], EncoderParts],
        backbone: Backbone,
        spec: PretrainSpec,
        clip: ClipFeatures | None,
    ) -> None:
        """`build` makes the method's parts; `clip` is loaded by the name in the spec where it is not given.

        Raises:
            ConfigError: a template has no placeholder.
            BackboneError: CLIP cannot be loaded.
        """
        super().__init__()
        check_templates(spec.templates)
        clip = clip or ClipFeatures.load(spec.encoder.clip, device=backbone.device)
        # In a tuple, so that the frozen models are not registered and no engine shards, trains or saves them.
        self._held: tuple[Any, ...] = (build(backbone.freeze(), spec, clip),)

    @property
    def parts(self) -> Any:
        """Backbone, CLIP and the networks that train."""
        return self._held[0]


def pretraining_batch(
    backbone: Backbone,
    spec: PretrainSpec,
    batch: Batch,
    images: Float[Tensor, "b 3 h w"],
    generator: torch.Generator,
) -> NoisyBatch:
    """Noisy latents of a batch's pictures with a prompt for each, and masks where the loss is weighted by them.

    Raises:
        DataError: the spec asks for masks and the batch has none.
    """
    x0 = batch_latents(backbone, batch, images, generator)
    noisy = noisy_batch(backbone, x0, generator, timestep_logits=spec.timestep_logits)
    prompts = training_prompts(
        spec.templates,
        batch.get("contexts") or [""] * len(images),
        context_probability=spec.context_probability,
        text_dropping=spec.text_dropping,
        generator=generator,
    )
    masks = batch_masks(batch, images, "mask_loss") if spec.mask_loss else None
    return NoisyBatch(noisy.xt, noisy.timesteps, noisy.target, prompts, masks, batch.get("time_ids"))


def batch_latents(
    backbone: Backbone, batch: Batch, images: Float[Tensor, "b 3 h w"], generator: torch.Generator
) -> Float[Tensor, "b c h2 w2"]:
    """x_0, drawn anew from the moments that came with the batch, or else from those of its pictures.

    Raises:
        DataError: the moments are of pictures of another size.
    """
    if "latent_mean" not in batch:
        return backbone.encode_images(images, generator)
    got = tuple(side * backbone.downsampling for side in batch["latent_mean"].shape[-2:])
    wanted = tuple(images.shape[-2:])
    if got != wanted:
        raise DataError(
            f"reading stored latents: they are of pictures of {got[0]} x {got[1]} px, and the job trains on "
            f"{wanted[0]} x {wanted[1]}; set data.image_size to what they were stored for, or "
            "data.precompute.source to trainer"
        )
    mean, logvar = (batch[name].to(backbone.device) for name in ("latent_mean", "latent_logvar"))
    return sample_latents(mean.to(backbone.dtype), (0.5 * logvar).exp().to(backbone.dtype), generator)


def reference_pictures(spec: PretrainSpec, batch: Batch, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """What the encoder sees of each picture: all of it, or the subject alone.

    Raises:
        DataError: the spec asks for masks and the batch has none.
    """
    if not spec.mask_reference:
        return images
    return mask_background(images, batch_masks(batch, images, "mask_reference"))


def concept_pictures(
    spec: PretrainSpec, images: Float[Tensor, "n 3 h w"], masks: Float[Tensor, "n 1 h w"] | None
) -> Float[Tensor, "n 3 h w"]:
    """What the encoder sees of a concept's pictures: as in pretraining, where they have masks."""
    return mask_background(images, masks) if spec.mask_reference and masks is not None else images


def mask_background(images: Float[Tensor, "b 3 h w"], masks: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b 3 h w"]:
    """The subject on plain mid-gray, 0 in [-1, 1]."""
    return images * masks


def batch_masks(batch: Batch, images: Tensor, key: str) -> Float[Tensor, "b 1 h w"]:
    """The masks of a batch, which the key of the spec asks for.

    Raises:
        DataError: it has none.
    """
    masks = batch.get("masks")
    if masks is None:
        raise DataError(f"{key}: true, but the samples have no mask; add a masker to the job, or set {key}: false")
    return masks.to(images)
