"""Tuning of a super-resolution model on one subject, DreamBooth section 4.3 (arXiv:2208.12242).

Pairs are of the subject's own pictures: crops of the large picture, and the same crops made small, with noise of
variance 1e-5 and not the 1e-3 that the paper's model was trained with, which would blur small patterns of the subject.
The subject's phrase is the text. Tensors: `super_resolution.<parameter of the UNet>`, the tuned weight minus its own.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from imprint.backbone.super_resolution import SuperResolution
from imprint.config.methods import FewStepSpec, SuperResolutionTuneSpec
from imprint.errors import ConceptError, ConfigError
from imprint.methods.augment import centre_square
from imprint.methods.base import Pictures, TuneCallback
from imprint.methods.cascade import noisy_pair, random_crops, shrink
from imprint.methods.few_steps import adamw, run_steps
from imprint.methods.phrases import SECOND_STAGE
from imprint.methods.weight_deltas import STORAGE

PREFIX = SECOND_STAGE


def tune_super_resolution(
    model: SuperResolution,
    pictures: Pictures,
    spec: SuperResolutionTuneSpec,
    phrase: str,
    *,
    low_size: int,
    seed: int = 0,
    callback: TuneCallback | None = None,
) -> dict[str, Tensor]:
    """What tuning changed of the model's weights; none where `spec.enabled` is off. The model is left as it was.

    `low_size` is the size in pixels that the first stage draws, so that the subject is as large in the small pictures
    of the pairs as in those that will be enlarged.

    Raises:
        ConfigError: the pictures are too small to show what is to be learnt, or the crops do not fit the model.
        TrainingError: the loss is not finite.
    """
    if not spec.enabled:
        return {}
    high = large_pictures(model, pictures, low_size)
    crop = crop_size(model, spec, high.shape[-1])
    level = model.noise_level(spec.noise_augmentation)
    unet = copy.deepcopy(model.unet).float().requires_grad_()
    tuned = dataclasses.replace(model, unet=unet)
    with torch.no_grad():
        text = model.encode_text([phrase])

    def loss(generator: torch.Generator) -> Float[Tensor, ""]:
        views = random_crops(high, spec.batch_size, crop, model.factor, generator)
        pair = noisy_pair(
            tuned,
            tuned.encode_images(views, generator).float(),
            shrink(views, model.factor),
            torch.full((len(views),), spec.noise_augmentation),
            torch.full((len(views),), level),
            generator,
        )
        return pair.loss(tuned, text.repeat(len(views)))

    steps = FewStepSpec(steps=spec.steps, batch_size=spec.batch_size, precision=spec.precision)
    optimizer = adamw([(list(unet.parameters()), spec.learning_rate)])
    run_steps(loss, optimizer, steps, seed=seed, device=model.device, callback=callback)
    own = dict(model.unet.named_parameters())
    with torch.no_grad():
        return {
            f"{PREFIX}{name}": (value - own[name].float()).to(STORAGE[spec.storage])
            for name, value in unet.named_parameters()
        }


def with_tuned_weights(model: SuperResolution, tensors: Mapping[str, Tensor]) -> SuperResolution:
    """The model with what tuning changed of it, the rest of it shared.

    Raises:
        ConceptError: a tensor does not fit the model.
    """
    deltas = {name.removeprefix(PREFIX): value for name, value in tensors.items() if name.startswith(PREFIX)}
    if not deltas:
        return model
    unet = copy.deepcopy(model.unet)
    own = dict(unet.named_parameters())
    with torch.no_grad():
        for name, delta in deltas.items():
            parameter = own.get(name)
            if parameter is None or parameter.shape != delta.shape:
                raise ConceptError(
                    f"reading a concept: {PREFIX}{name} {tuple(delta.shape)} does not fit the super-resolution model"
                )
            parameter.copy_(parameter.float() + delta.to(parameter.device, torch.float32))
    return dataclasses.replace(model, unet=unet)


def large_pictures(model: SuperResolution, pictures: Pictures, low_size: int) -> Float[Tensor, "n 3 s s"]:
    """Squares of `low_size` times the model's factor; smaller pictures at the size that they have.

    Raises:
        ConfigError: they are no larger than what the first stage draws, and so show nothing that it leaves out.
    """
    side = min(pictures.images.shape[-2:])
    if side <= low_size:
        raise ConfigError(
            f"super_resolution: the pictures are {side} px and the first stage draws {low_size} px, so they show no "
            f"detail that it leaves out; give pictures of {low_size * model.factor} px"
        )
    size = min(side, low_size * model.factor)
    return centre_square(pictures.images.to(model.device, torch.float32), size)


def crop_size(model: SuperResolution, spec: SuperResolutionTuneSpec, side: int) -> int:
    """Pixels along a side of the crops: the spec's, or what the model was trained on, and no more than there are.

    Raises:
        ConfigError: the UNet cannot halve such crops as often as it must.
    """
    step = model.factor * 2 ** (len(model.unet.config.block_out_channels) - 1)
    size = min(side, spec.crop_size or model.image_size)
    if spec.crop_size is None:
        size -= size % step
    if size < step or size % step:
        raise ConfigError(
            f"super_resolution.crop_size: got {spec.crop_size or size} for pictures of {side} px, expected a multiple "
            f"of {step} for this model, no larger than the pictures"
        )
    return size


def settings(model: SuperResolution, spec: SuperResolutionTuneSpec) -> dict[str, Any]:
    """What a concept keeps of its second stage beside the tensors; plain JSON."""
    return {
        "model": model.path,
        "fingerprint": model.fingerprint(),
        "tuned": spec.enabled,
        "noise_augmentation": spec.noise_augmentation,
    }
