"""Which requests can be drawn in one batch, and how: one concept, plain prompts, words of several, factors of several.

Plain prompts share the base. Words (textual inversion) change no weight, so that any number of concepts go together:
their words stand side by side in one merged concept. Low-rank changes of the UNet's attention (LoRA, DreamBooth by
LoRA) are added row by row. What changes whole weights (E4T, DreamBooth, ProFusion) goes with its own concept only.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from imprint.backbone import Backbone
from imprint.config.methods import SampleSpec
from imprint.methods import METHODS
from imprint.methods.base import Learned
from imprint.methods.batched_low_rank import BatchedLowRank, as_batched
from imprint.methods.domain_agnostic.dual_path import DualPath
from imprint.methods.domain_agnostic.sample import DualPathDenoiser
from imprint.methods.low_rank import PREFIX, read_factors
from imprint.methods.phrases import spell
from imprint.sampling.denoiser import Denoiser
from imprint.sampling.draw import ProgressCallback, draw_denoised, draw_prompts

_UNET_FACTOR = f"{PREFIX}unet."


@dataclass(frozen=True, eq=False)
class Rows:
    """Pictures of one request: a prompt and a seed each, of one concept or of none."""

    place: str
    learned: Learned | None
    prompts: Sequence[str]
    seeds: Sequence[int]


def group_of(place: str, learned: Learned | None, spec: SampleSpec) -> Hashable:
    """Requests of equal groups are drawn together."""
    if learned is None:
        return "plain", spec
    if learned.method == "textual_inversion":
        return "words", spec
    if shape := _low_rank_shape(learned):
        return "low-rank", spec, shape
    return "one", spec, place


def draw_together(
    backbone: Backbone, rows: Sequence[Rows], spec: SampleSpec, progress: ProgressCallback | None = None
) -> Float[Tensor, "n 3 h w"]:
    """Pictures in [-1, 1] of requests of one group, in their order."""
    prompts = [prompt for one in rows for prompt in one.prompts]
    seeds = [seed for one in rows for seed in one.seeds]
    first = rows[0].learned
    if first is None:
        return draw_prompts(backbone, prompts, spec, seeds=seeds, progress=progress)
    if all(one.place == rows[0].place for one in rows):
        return METHODS[first.method].sample(backbone, first, prompts, spec, seeds=seeds, progress=progress)
    if first.method == "textual_inversion":
        return _draw_words(backbone, rows, spec, seeds, progress)
    return _draw_low_rank(backbone, rows, spec, seeds, progress)


def _draw_words(
    backbone: Backbone, rows: Sequence[Rows], spec: SampleSpec, seeds: Sequence[int], progress: ProgressCallback | None
) -> Tensor:
    """All concepts' words in one, and each prompt with its own one's numbers."""
    first: dict[str, int] = {}
    parts: list[Learned] = []
    count = 0
    for one in rows:
        assert one.learned is not None
        if one.place not in first:
            first[one.place] = count
            parts.append(one.learned)
            count += len(one.learned.placeholders)
    merged = METHODS["textual_inversion"].merge(parts, [1.0] * len(parts))
    prompts = []
    for one in rows:
        assert one.learned is not None
        start = first[one.place]
        own = one.learned.placeholders
        for prompt in one.prompts:
            # Through marks that no prompt holds: <concept-1> of one may be <concept-2> of all.
            for number, placeholder in enumerate(own):
                prompt = prompt.replace(placeholder, f"\0{start + number}\0")
            for number in range(len(own)):
                prompt = prompt.replace(f"\0{start + number}\0", merged.placeholders[start + number])
            prompts.append(prompt)
    return METHODS["textual_inversion"].sample(backbone, merged, prompts, spec, seeds=seeds, progress=progress)


def _low_rank_shape(learned: Learned) -> Hashable:
    """What two low-rank concepts must have alike to go into one batch; None where weights change otherwise."""
    if learned.method not in ("lora", "dreambooth") or not learned.tensors:
        return None
    if not all(name.startswith(_UNET_FACTOR) for name in learned.tensors):
        return None
    return tuple(sorted((name, tuple(value.shape)) for name, value in learned.tensors.items()))


def _draw_low_rank(
    backbone: Backbone, rows: Sequence[Rows], spec: SampleSpec, seeds: Sequence[int], progress: ProgressCallback | None
) -> Tensor:
    prompts: list[str] = []
    owners: list[int] = []
    for number, one in enumerate(rows):
        assert one.learned is not None
        prompts += spell(one.prompts, *one.learned.settings["phrases"])
        owners += [number] * len(one.prompts)
    each = [as_batched(read_factors(one.learned.tensors), backbone.device) for one in rows if one.learned is not None]
    path = DualPath(backbone, None)

    def denoiser(batch: slice) -> Denoiser:
        own = [each[owner] for owner in owners[batch]]
        factors = {
            name: BatchedLowRank(torch.cat([one[name].down for one in own]), torch.cat([one[name].up for one in own]))
            for name in own[0]
        }
        with torch.no_grad():
            text, empty = backbone.encode_text(prompts[batch]), backbone.encode_text([spec.negative_prompt])
        return DualPathDenoiser(path, text, None, empty, factors, spec.guidance_scale)

    return draw_denoised(backbone, denoiser, seeds, spec, progress)
