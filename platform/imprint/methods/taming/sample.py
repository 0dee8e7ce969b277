"""Draw a concept of the Taming Encoder: its network, its object embedding, and ordinary text."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from imprint.backbone import Backbone
from imprint.config.methods import SampleSpec
from imprint.methods.base import Learned
from imprint.methods.phrases import spell, subject_phrase
from imprint.methods.prompts import require_placeholder
from imprint.methods.taming.guidance import ObjectGuidedDenoiser
from imprint.methods.taming.learned import unpack
from imprint.methods.taming.parts import TamingParts
from imprint.sampling.denoiser import Denoiser
from imprint.sampling.draw import ProgressCallback, draw_denoised


def sample(
    backbone: Backbone,
    learned: Learned,
    prompts: Sequence[str],
    spec: SampleSpec,
    *,
    seeds: Sequence[int] | None = None,
    progress: ProgressCallback | None = None,
) -> Float[Tensor, "n 3 h w"]:
    """Pictures in [-1, 1] of a concept, one a prompt; `<concept>` in a prompt reads "a [class noun]".

    Poses, expressions and accessories are asked for in ordinary words, sections B.1 and B.2.

    Raises:
        ConfigError: a prompt has no placeholder.
        ConceptError: the network that the concept names is not there, or does not fit the backbone.
    """
    for prompt in prompts:
        require_placeholder(prompt, "prompt")
    parts, objects = unpack(backbone, learned)
    each = objects.expand(len(prompts), -1, -1)
    return sample_objects(parts, each, prompts, spec, noun=learned.class_noun, seeds=seeds, progress=progress)


def sample_objects(
    parts: TamingParts,
    objects: Float[Tensor, "n m e"],
    prompts: Sequence[str],
    spec: SampleSpec,
    *,
    noun: str | None = None,
    seeds: Sequence[int] | None = None,
    progress: ProgressCallback | None = None,
) -> Float[Tensor, "n 3 h w"]:
    """Pictures of many objects at once, one a prompt; the noun is by default that of training."""
    spelled = spell(prompts, subject_phrase("", noun or parts.spec.domain_word))

    def denoiser(rows: slice) -> Denoiser:
        return ObjectGuidedDenoiser.of(parts, spelled[rows], objects[rows], spec)

    return draw_denoised(parts.backbone, denoiser, seeds or range(len(prompts)), spec, progress)


def preview(
    parts: TamingParts,
    images: Float[Tensor, "n 3 h w"],
    prompts: Sequence[str],
    spec: SampleSpec,
    *,
    masks: Float[Tensor, "n 1 h w"] | None = None,
    seeds: Sequence[int] | None = None,
) -> Float[Tensor, "n 3 h w"]:
    """Pictures of many subjects, each from its own picture in [-1, 1], one a prompt."""
    return sample_objects(parts, parts.embed(images, masks), prompts, spec, seeds=seeds)
