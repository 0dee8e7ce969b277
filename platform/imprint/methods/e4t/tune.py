"""Few-step tuning of E4T on one concept: encoder, weight offsets and UNet.

Source: E4T, arXiv:2302.12228, section 3.4. The backbone and the pretrained parts of the caller are never touched: the
encoder and the offsets are copied, and the UNet runs on copies of its parameters.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from imprint.config.methods import E4TTuneSpec
from imprint.methods.base import Learned, Pictures, TuneCallback
from imprint.methods.e4t.encoder import embedding_regularization
from imprint.methods.e4t.learned import pack
from imprint.methods.e4t.parts import E4TParts
from imprint.methods.few_steps import adamw, check_tuning, prepared, run_steps
from imprint.methods.pretrained import with_own_networks
from imprint.methods.pretraining import concept_pictures
from imprint.methods.subject_batch import NoisyBatch, SubjectBatches


def tune(
    parts: E4TParts,
    pictures: Pictures,
    spec: E4TTuneSpec,
    *,
    class_noun: str | None = None,
    seed: int = 0,
    callback: TuneCallback | None = None,
) -> Learned:
    """Tune on one or a few pictures of a concept; zero steps gives the encoder alone.

    Each step sees `batch_size` different crops at noise levels of all strengths. `class_noun` stands in for the
    domain word of pretraining. An exception from `callback` stops tuning and leaves nothing changed.

    Raises:
        ConfigError: a template has no placeholder, or masks or contexts do not fit the pictures.
        TrainingError: the loss is not finite.
    """
    check_tuning(pictures, spec)
    parts = _own_copy(parts, class_noun)
    pictures = prepared(parts.backbone, pictures)
    batches = SubjectBatches(parts.backbone, spec, pictures, seed)
    features = concept_features(parts, pictures.images, pictures.masks)
    unet = _trainable_unet(parts, spec)

    def loss(generator: torch.Generator) -> Float[Tensor, ""]:
        return _loss(parts, unet, spec, batches.draw(generator), features)

    optimizer = _optimizer(parts, unet, spec)
    run_steps(loss, optimizer, spec, seed=seed, device=parts.backbone.device, callback=callback)
    return pack(parts, unet, features, spec, class_noun=class_noun or parts.spec.domain_word, seed=seed)


@torch.no_grad()
def concept_features(
    parts: E4TParts, images: Float[Tensor, "n 3 h w"], masks: Float[Tensor, "n 1 h w"] | None
) -> list[Float[Tensor, "1 width"]]:
    """CLIP features of the concept, once: the mean over its pictures for each layer."""
    assert parts.clip is not None
    seen = concept_pictures(parts.spec, images, masks)
    return [feature.mean(0, keepdim=True).to(parts.backbone.device) for feature in parts.clip.layers(seen)]


def _own_copy(parts: E4TParts, class_noun: str | None) -> E4TParts:
    """The same frozen models with copies of what tuning changes."""
    domain = parts.backbone.word_embedding(class_noun) if class_noun else parts.domain
    return dataclasses.replace(with_own_networks(parts), domain=domain)


def _trainable_unet(parts: E4TParts, spec: E4TTuneSpec) -> dict[str, Tensor]:
    """Leaf copies, in fp32, of the UNet's parameters that are tuned."""
    if spec.unet == "none" or spec.learning_rates.unet == 0:
        return {}
    attention = {projection.name for projection in parts.backbone.attention_projections()}
    return {
        name: parameter.detach().float().clone().requires_grad_()
        for name, parameter in parts.backbone.unet.named_parameters()
        if spec.unet == "all" or name in attention
    }


def _optimizer(parts: E4TParts, unet: Mapping[str, Tensor], spec: E4TTuneSpec) -> torch.optim.Optimizer | None:
    rates = spec.learning_rates
    groups = [(list(parts.encoder.parameters()), rates.encoder), (list(unet.values()), rates.unet)]
    if parts.offsets is not None:
        groups.append((list(parts.offsets.parameters()), rates.offsets))
    return adamw(groups, weight_decay=spec.weight_decay)


def _loss(
    parts: E4TParts,
    unet: Mapping[str, Tensor],
    spec: E4TTuneSpec,
    batch: NoisyBatch,
    features: Sequence[Tensor],
) -> Float[Tensor, ""]:
    """Eq. 5 on a batch of crops."""
    backbone = parts.backbone
    own = [feature.expand(len(batch.xt), -1) for feature in features]
    conditioning, offsets = parts.condition(own, batch.xt, batch.timesteps, batch.prompts)
    output = backbone.denoise(batch.xt, batch.timesteps, conditioning, tuned_weights(parts, unet))
    return batch.loss(output, backbone.schedule) + spec.regularization * embedding_regularization(offsets)


def tuned_weights(parts: E4TParts, unet: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The UNet's parameters as they are now: the tuned copies, with the offsets applied on top."""
    dtype = parts.backbone.dtype
    base = {**parts.base_weights(), **unet}
    weights = {name: value.to(dtype) for name, value in unet.items()}
    modulated = parts.modulate(base)
    return weights | {name: value.to(dtype) for name, value in modulated.items()}
