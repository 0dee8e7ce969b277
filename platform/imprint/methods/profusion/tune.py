"""Tuning of ProFusion on one concept: PromptNet and all attention layers, 50 steps on augmented pictures.

Source: ProFusion, arXiv:2305.13579, section 3. The backbone and the pretrained PromptNet are never touched.
"""

from __future__ import annotations

import dataclasses

import torch
from jaxtyping import Float
from torch import Tensor

from imprint.backbone import Backbone
from imprint.config.methods import ProFusionTuneSpec
from imprint.methods.base import Learned, Pictures, TuneCallback
from imprint.methods.few_steps import adamw, check_tuning, prepared, run_steps
from imprint.methods.pretrained import with_own_networks
from imprint.methods.pretraining import concept_pictures
from imprint.methods.profusion.augmentation import augmented
from imprint.methods.profusion.learned import pack
from imprint.methods.profusion.parts import ProFusionParts
from imprint.methods.subject_batch import SubjectBatches
from imprint.methods.trained import train_unet


def tune(
    parts: ProFusionParts,
    pictures: Pictures,
    spec: ProFusionTuneSpec,
    *,
    class_noun: str | None = None,
    seed: int = 0,
    callback: TuneCallback | None = None,
) -> Learned:
    """Tune on one or a few pictures of a concept; zero steps gives PromptNet as it was pretrained.

    The first picture is the reference; all of them, and the augmented ones, are learned. `class_noun` stands in for the
    domain word of pretraining.

    Raises:
        ConfigError: a template has no placeholder, or masks or contexts do not fit the pictures.
        BackboneError: the inpainting pipeline cannot be loaded.
        TrainingError: the loss is not finite.
    """
    check_tuning(pictures, spec)
    noun = class_noun or parts.spec.domain_word
    backbone = parts.backbone
    own = with_own_networks(parts)
    shown = prepared(backbone, pictures)
    first = shown.images[:1], None if shown.masks is None else shown.masks[:1]
    reference = parts.reference(concept_pictures(parts.spec, *first))
    generator = torch.Generator().manual_seed(seed)
    if spec.steps:
        shown = augmented(shown, spec.augmentation, class_noun=noun, generator=generator)
    batches = SubjectBatches(backbone, spec, shown, seed)
    trained = train_unet(backbone, attention_layers(backbone) if spec.attention else (), spec.learning_rate)
    model = dataclasses.replace(own, backbone=trained.backbone)

    def loss(generator: torch.Generator) -> Float[Tensor, ""]:
        batch = batches.draw(generator)
        text = model.condition(reference.expand(len(batch.xt)), batch.xt, batch.timesteps, batch.prompts)
        return batch.loss(model.backbone.denoise(batch.xt, batch.timesteps, text), backbone.schedule)

    groups = [(list(own.promptnet.parameters()), spec.learning_rate), *trained.groups]
    optimizer = adamw(groups, weight_decay=spec.weight_decay)
    run_steps(loss, optimizer, spec, seed=seed, device=backbone.device, callback=callback)
    changes = trained.pack(backbone, spec.storage) if spec.steps else {}
    return pack(own, changes, reference, spec, class_noun=noun, seed=seed)


def attention_layers(backbone: Backbone) -> set[str]:
    """The UNet's parameters of all attention layers: projections and their biases."""
    layers = {projection.name.partition(".to_")[0] for projection in backbone.attention_projections()}
    return {name for name, _ in backbone.unet.named_parameters() if name.rpartition(".to_")[0] in layers}
