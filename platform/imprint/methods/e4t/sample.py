"""Draw a concept: a new embedding at each denoising step, baked weights, guidance.

Source: E4T, arXiv:2302.12228, section 3.1 "Iterative refinement".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from imprint.backbone import Backbone, TextConditioning
from imprint.config.methods import SampleSpec
from imprint.methods.base import Learned
from imprint.methods.e4t.learned import unpack
from imprint.methods.e4t.parts import E4TParts
from imprint.methods.pretraining import concept_pictures
from imprint.methods.prompts import require_placeholder
from imprint.sampling.denoiser import Conditioner, constant
from imprint.sampling.draw import ProgressCallback, draw_batches


def sample(
    backbone: Backbone,
    learned: Learned,
    prompts: Sequence[str],
    spec: SampleSpec,
    *,
    seeds: Sequence[int] | None = None,
    progress: ProgressCallback | None = None,
) -> Float[Tensor, "n 3 h w"]:
    """Pictures in [-1, 1] of a concept, one a prompt; `<concept>` in a prompt is where it goes.

    Raises:
        ConfigError: a prompt has no placeholder.
        ConceptError: the concept does not fit the backbone.
    """
    for prompt in prompts:
        require_placeholder(prompt, "prompt")
    ready = unpack(backbone, learned)
    features = [feature.expand(len(prompts), -1) for feature in ready.features]
    return sample_features(ready.parts, features, prompts, spec, weights=ready.weights, seeds=seeds, progress=progress)


def sample_features(
    parts: E4TParts,
    clip_features: Sequence[Float[Tensor, "n width"]],
    prompts: Sequence[str],
    spec: SampleSpec,
    *,
    weights: Mapping[str, Tensor] | None = None,
    seeds: Sequence[int] | None = None,
    progress: ProgressCallback | None = None,
) -> Float[Tensor, "n 3 h w"]:
    """Pictures of many concepts at once, each by its own CLIP features: the encoder alone, without tuning.

    `weights` are the UNet's; where they are not given the offsets of `parts` are baked, once.
    """
    if weights is None:
        weights = parts.offsets.bake(parts.base_weights()) if parts.offsets is not None else {}

    def conditioner(rows: slice) -> Conditioner:
        return refine(parts, [feature[rows] for feature in clip_features], prompts[rows])

    return draw_batches(parts.backbone, conditioner, seeds or range(len(prompts)), spec, weights or None, progress)


def preview(
    parts: E4TParts,
    images: Float[Tensor, "n 3 h w"],
    prompts: Sequence[str],
    spec: SampleSpec,
    *,
    masks: Float[Tensor, "n 1 h w"] | None = None,
    seeds: Sequence[int] | None = None,
) -> Float[Tensor, "n 3 h w"]:
    """Pictures of many subjects by the encoder alone, each from its own picture in [-1, 1], one a prompt."""
    assert parts.clip is not None
    seen = concept_pictures(parts.spec, images, masks)
    features = [feature.to(parts.backbone.device) for feature in parts.clip.layers(seen)]
    return sample_features(parts, features, prompts, spec, seeds=seeds)


def refine(parts: E4TParts, clip_features: Sequence[Float[Tensor, "b width"]], prompts: Sequence[str]) -> Conditioner:
    """The conditioner that predicts the embedding anew from each (x_t, t); without refinement, once and for all."""

    @torch.no_grad()
    def predict(xt: Tensor, timesteps: Tensor) -> TextConditioning:
        return parts.condition(clip_features, xt, timesteps, prompts)[0]

    if parts.spec.encoder.refinement:
        return predict
    latents = torch.empty(len(prompts), *parts.backbone.latent_shape, device=parts.backbone.device)
    return constant(predict(latents, torch.zeros(len(prompts), dtype=torch.long, device=latents.device)))
