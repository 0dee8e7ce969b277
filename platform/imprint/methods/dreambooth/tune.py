"""Tuning of DreamBooth on one subject: all weights or LoRA, with prior preservation.

Source: DreamBooth, arXiv:2208.12242, section 4. Tuning trains in a shell; the backbone itself is never touched.
"""

from __future__ import annotations

import dataclasses
import logging

import torch
from jaxtyping import Float
from torch import Tensor

from imprint.backbone import Backbone
from imprint.backbone.super_resolution import SuperResolution
from imprint.config.methods import DreamBoothTuneSpec
from imprint.methods.base import Learned, Pictures, TuneCallback
from imprint.methods.dreambooth.objective import Binding, dreambooth_step, make_trained
from imprint.methods.dreambooth.prior import class_images
from imprint.methods.dreambooth.super_resolution import (
    crop_size,
    large_pictures,
    settings,
    tune_super_resolution,
)
from imprint.methods.few_steps import adamw, check_tuning, prepared, require_class_noun, run_steps
from imprint.methods.phrases import phrase_concept, phrase_of
from imprint.methods.subject_batch import SubjectBatches

log = logging.getLogger(__name__)


def tune(
    backbone: Backbone,
    pictures: Pictures,
    spec: DreamBoothTuneSpec,
    *,
    class_noun: str | None = None,
    seed: int = 0,
    callback: TuneCallback | None = None,
) -> Learned:
    """Bind a rare word to the subject of a few pictures.

    The first tuning on a class draws its class images, which takes longer than tuning itself on a small model.

    Raises:
        BackboneError: the super-resolution model cannot be loaded.
        ConfigError: there is no class noun or no rare word, or templates, masks or contexts do not fit, or the pictures
            are too small to tune super-resolution on.
        StorageError: the cache of class images cannot be written.
        TrainingError: the loss is not finite.
    """
    noun = require_class_noun(class_noun, spec.method)
    check_tuning(pictures, spec)
    second = _second_stage(backbone, pictures, spec)
    phrase = phrase_of(backbone, pictures, spec, noun, seed)
    binding = Binding(phrase, noun, class_images(backbone, spec.prior, noun) if spec.prior.enabled else None)
    trained = make_trained(backbone, spec, seed)
    model = trained.backbone
    batches = SubjectBatches(model, spec, prepared(backbone, pictures), seed)

    def loss(generator: torch.Generator) -> Float[Tensor, ""]:
        return dreambooth_step(model, spec, binding, batches.draw(generator), generator).loss

    optimizer = adamw(trained.groups, weight_decay=spec.weight_decay)
    run_steps(loss, optimizer, spec, seed=seed, device=backbone.device, callback=callback)
    tensors = trained.pack(backbone, spec.storage)
    learned = phrase_concept(spec.method, phrase, noun, tensors, spec, seed)
    return learned if second is None else _with_second_stage(learned, second, pictures, spec, backbone.image_size, seed)


def _with_second_stage(
    learned: Learned,
    model: SuperResolution,
    pictures: Pictures,
    spec: DreamBoothTuneSpec,
    low_size: int,
    seed: int,
) -> Learned:
    """The concept with a super-resolution model tuned on the same pictures, section 4.3."""
    assert spec.super_resolution is not None
    (phrase,) = learned.settings["phrases"]
    log.info("tuning the super-resolution model %s", model.path)
    tensors = tune_super_resolution(model, pictures, spec.super_resolution, phrase, low_size=low_size, seed=seed)
    own = {"super_resolution": settings(model, spec.super_resolution)}
    return dataclasses.replace(learned, tensors={**learned.tensors, **tensors}, settings={**learned.settings, **own})


def _second_stage(backbone: Backbone, pictures: Pictures, spec: DreamBoothTuneSpec) -> SuperResolution | None:
    """The model of the spec, loaded and checked before anything is tuned."""
    if spec.super_resolution is None:
        return None
    model = SuperResolution.load(spec.super_resolution.model, device=backbone.device)
    if spec.super_resolution.enabled:
        side = large_pictures(model, pictures, backbone.image_size).shape[-1]
        crop_size(model, spec.super_resolution, side)
    return model
