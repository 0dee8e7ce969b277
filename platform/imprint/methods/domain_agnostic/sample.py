"""Draw with the domain-agnostic method: the dual path, with one word and one set of factors for all steps.

Source: arXiv:2307.06925, section 4.3 and Eq. 5.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from imprint.backbone import Backbone, TextConditioning, TokenReplacements
from imprint.config.methods import SampleSpec
from imprint.methods.base import Learned
from imprint.methods.batched_low_rank import BatchedLowRank, Factors, as_batched, rows_of
from imprint.methods.domain_agnostic.dual_path import DualPath
from imprint.methods.domain_agnostic.parts import DomainAgnosticParts, Prediction, prompts_with, prompts_with_tokens
from imprint.methods.low_rank import read_factors
from imprint.methods.pretraining import concept_pictures
from imprint.methods.prompts import require_placeholder
from imprint.methods.words import replacements
from imprint.sampling.denoiser import Denoised, Denoiser, denoised
from imprint.sampling.draw import draw_denoised
from imprint.sampling.guidance import guide


@dataclass(frozen=True)
class DualPathDenoiser:
    """The dual path with classifier-free guidance, all branches in one forward.

    `hard` is not needed where the personalized path runs alone; the factors then are a low-rank change a row.
    """

    path: DualPath
    soft: TextConditioning
    hard: TextConditioning | None
    unconditional: TextConditioning
    factors: Factors
    guidance_scale: float

    @torch.no_grad()
    def __call__(self, xt: Float[Tensor, "b c h w"], timesteps: Int[Tensor, "b"]) -> Denoised:
        backbone = self.path.backbone
        latents = xt.to(backbone.dtype)
        if self.guidance_scale == 1:
            output = self.path.denoise(latents, timesteps, self.soft, self.hard, self.factors)
            return denoised(backbone, output, xt, timesteps)
        empty = self.unconditional.repeat(len(xt))
        soft = TextConditioning.cat([empty, self.soft])
        hard = None if self.hard is None else TextConditioning.cat([empty, self.hard])
        twice = latents.repeat(2, 1, 1, 1), timesteps.repeat(2)
        output = self.path.denoise(*twice, soft, hard, _for_both(self.factors)).to(xt.dtype)
        without, with_ = output.chunk(2)
        return denoised(backbone, guide(without, with_, self.guidance_scale), xt, timesteps)


def _for_both(factors: Factors) -> Factors:
    """Factors for both branches of guidance; one row serves all."""
    return {
        name: pair if len(pair.down) == 1 else BatchedLowRank(pair.down.repeat(2, 1, 1), pair.up.repeat(2, 1, 1))
        for name, pair in factors.items()
    }


def sample(
    backbone: Backbone,
    learned: Learned,
    prompts: Sequence[str],
    spec: SampleSpec,
    *,
    seeds: Sequence[int] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Float[Tensor, "n 3 h w"]:
    """Pictures in [-1, 1] of a concept, one a prompt; `<concept>` in a prompt is where its word goes.

    Raises:
        ConfigError: a prompt has no placeholder.
        BackboneError: the word does not fit the text encoders.
    """
    for prompt in prompts:
        require_placeholder(prompt, "prompt", learned.placeholders)
    path = DualPath(backbone, learned.settings["alpha"])
    factors = as_batched(read_factors(learned.tensors), backbone.device)
    own, tokens = replacements(backbone, learned), hard_tokens(backbone, learned)

    def denoiser(rows: slice) -> Denoiser:
        with torch.no_grad():
            soft, hard = (backbone.encode_text(prompts[rows], words) for words in (own, tokens))
            empty = backbone.encode_text([spec.negative_prompt])
        return DualPathDenoiser(path, soft, hard, empty, factors, spec.guidance_scale)

    return draw_denoised(backbone, denoiser, seeds or range(len(prompts)), spec, progress)


def hard_tokens(backbone: Backbone, learned: Learned) -> list[TokenReplacements]:
    """The embedding of each subject's hard token at its placeholder."""
    tables = [encoder.get_input_embeddings().weight.detach() for encoder in backbone.text_encoders]
    return [
        TokenReplacements(
            tuple(table[token][None, None] for table, token in zip(tables, tokens, strict=True)), placeholder
        )
        for placeholder, tokens in zip(learned.placeholders, learned.settings["tokens"], strict=True)
    ]


def preview(
    parts: DomainAgnosticParts,
    images: Float[Tensor, "n 3 h w"],
    prompts: Sequence[str],
    spec: SampleSpec,
    *,
    masks: Float[Tensor, "n 1 h w"] | None = None,
    seeds: Sequence[int] | None = None,
) -> Float[Tensor, "n 3 h w"]:
    """Pictures of many subjects by the encoder alone, each from its own picture in [-1, 1], one a prompt."""
    dual = parts.spec.dual_path
    path = DualPath(parts.backbone, dual.alpha_blend if dual.enabled else None)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        seen = concept_pictures(parts.spec, images, masks)
        every = parts.heads(parts.one_pass(images.to(parts.backbone.device), generator, seen))

    def denoiser(rows: slice) -> Denoiser:
        own = Prediction(tuple(word[rows] for word in every.words), rows_of(every.factors, rows))
        with torch.no_grad():
            soft = prompts_with(parts.backbone, prompts[rows], own.words)
            hard = prompts_with_tokens(parts.backbone, prompts[rows], parts.nearest_tokens(own.words))
            empty = parts.backbone.encode_text([spec.negative_prompt])
        return DualPathDenoiser(path, soft, hard, empty, own.factors, spec.guidance_scale)

    return draw_denoised(parts.backbone, denoiser, seeds or range(len(prompts)), spec)
