"""Few-step tuning of E4T on one concept: encoder, weight offsets and UNet.

Source: E4T, arXiv:2302.12228, section 3.4. The backbone and the pretrained parts of the caller are never touched: the
encoder and the offsets are copied, and the UNet runs on copies of its parameters.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from imprint.backbone.precision import computing
from imprint.config.methods import E4TTuneSpec
from imprint.errors import ConfigError, TrainingError
from imprint.methods.augment import centre_square, random_views
from imprint.methods.base import Learned, Pictures
from imprint.methods.diffusion_loss import diffusion_loss, random_noise, stratified_timesteps
from imprint.methods.e4t.encoder import embedding_regularization
from imprint.methods.e4t.learned import pack
from imprint.methods.e4t.objective import mask_background
from imprint.methods.e4t.parts import E4TParts
from imprint.methods.prompts import check_templates, training_prompts

TuneCallback = Callable[[int, float], None]
"""Called after each step with the number of steps done and the loss."""


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
    check_templates(spec.templates)
    _check(pictures)
    parts = _own_copy(parts, class_noun)
    images, masks = _prepared(parts, pictures)
    features = concept_features(parts, images, masks)
    unet = _trainable_unet(parts, spec)
    optimizer = _optimizer(parts, unet, spec)
    for step in range(spec.steps):
        generator = torch.Generator(parts.backbone.device).manual_seed(seed * 1_000_003 + step)
        with computing(spec.precision, parts.backbone.device):
            loss = _loss(parts, unet, spec, images, masks, pictures.contexts, features, generator)
        if not math.isfinite(value := loss.item()):
            raise TrainingError(
                f"tuning: the loss is {value} at step {step + 1}; lower learning_rates, or tune in fp32"
            )
        if optimizer is not None:
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        if callback is not None:
            callback(step + 1, value)
    return pack(parts, unet, features, spec, class_noun=class_noun or parts.spec.domain_word, seed=seed)


@torch.no_grad()
def concept_features(
    parts: E4TParts, images: Float[Tensor, "n 3 h w"], masks: Float[Tensor, "n 1 h w"] | None
) -> list[Float[Tensor, "1 width"]]:
    """CLIP features of the concept, once: the mean over its pictures for each layer."""
    assert parts.clip is not None
    if parts.spec.mask_reference and masks is not None:
        images = mask_background(images, masks)
    return [feature.mean(0, keepdim=True).to(parts.backbone.device) for feature in parts.clip.layers(images)]


def _check(pictures: Pictures) -> None:
    count = len(pictures.images)
    for name, values in (("masks", pictures.masks), ("contexts", pictures.contexts)):
        if values is not None and len(values) != count:
            raise ConfigError(f"tuning: got {len(values)} {name} for {count} pictures, expected one for each")
    if count == 0:
        raise ConfigError("tuning: got no pictures, expected at least one")


def _own_copy(parts: E4TParts, class_noun: str | None) -> E4TParts:
    """The same frozen models with copies of what tuning changes."""
    return dataclasses.replace(
        parts,
        encoder=copy.deepcopy(parts.encoder),
        offsets=copy.deepcopy(parts.offsets),
        domain=parts.backbone.word_embedding(class_noun) if class_noun else parts.domain,
    )


def _prepared(parts: E4TParts, pictures: Pictures) -> tuple[Tensor, Tensor | None]:
    """Pictures no larger than they need be: crops are taken from twice the model's size at most."""
    size = min(2 * parts.backbone.image_size, *pictures.images.shape[-2:])
    size = max(size, parts.backbone.image_size)
    images = centre_square(pictures.images.to(parts.backbone.device, torch.float32), size)
    masks = pictures.masks
    return images, None if masks is None else centre_square(masks.to(images), size)


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
    candidates = [(list(parts.encoder.parameters()), rates.encoder), (list(unet.values()), rates.unet)]
    if parts.offsets is not None:
        candidates.append((list(parts.offsets.parameters()), rates.offsets))
    groups = [{"params": values, "lr": rate} for values, rate in candidates if values and rate > 0]
    for values, rate in candidates:
        for value in values:
            value.requires_grad_(rate > 0)
    return torch.optim.AdamW(groups, weight_decay=spec.weight_decay, fused=True) if groups else None


def _loss(
    parts: E4TParts,
    unet: Mapping[str, Tensor],
    spec: E4TTuneSpec,
    images: Tensor,
    masks: Tensor | None,
    contexts: Sequence[str] | None,
    features: Sequence[Tensor],
    generator: torch.Generator,
) -> Float[Tensor, ""]:
    """Eq. 5 on a fresh batch of crops."""
    backbone, count = parts.backbone, spec.batch_size
    with_masks = images if masks is None else torch.cat([images, masks], dim=1)
    views = random_views(
        with_masks, count, backbone.image_size, crop_scale=spec.crop_scale, flip=spec.flip, generator=generator
    )
    x0 = backbone.encode_images(views[:, :3], generator)
    noise = random_noise(x0, generator)
    timesteps = stratified_timesteps(count, backbone.schedule.num_timesteps, generator)
    xt = backbone.schedule.add_noise(x0, noise, timesteps)
    prompts = training_prompts(
        spec.templates,
        [contexts[i % len(contexts)] for i in range(count)] if contexts else [""] * count,
        context_probability=spec.context_probability,
        text_dropping=0.0,
        generator=generator,
    )
    conditioning, offsets = parts.condition([f.expand(count, -1) for f in features], xt, timesteps, prompts)
    output = backbone.denoise(xt, timesteps, conditioning, tuned_weights(parts, unet))
    target = backbone.schedule.target(x0, noise, timesteps)
    loss_masks = views[:, 3:] if masks is not None and spec.mask_loss else None
    return diffusion_loss(output, target, loss_masks) + spec.regularization * embedding_regularization(offsets)


def tuned_weights(parts: E4TParts, unet: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The UNet's parameters as they are now: the tuned copies, with the offsets applied on top."""
    dtype = parts.backbone.dtype
    base = {**parts.base_weights(), **unet}
    weights = {name: value.to(dtype) for name, value in unet.items()}
    modulated = parts.modulate(base)
    return weights | {name: value.to(dtype) for name, value in modulated.items()}
