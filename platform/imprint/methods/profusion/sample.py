"""Draw with ProFusion: fusion sampling, with a new S* at each call of the denoiser.

Source: ProFusion, arXiv:2305.13579, section 2.1 and Algorithm 1. The conditions: S_i* alone is the subject's own
prompt, C the prompt with each subject's noun in its place, and both together are the prompt as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from imprint.backbone import PLACEHOLDER, Backbone, TextConditioning, TokenReplacements
from imprint.config.methods import FusionSpec, SampleSpec
from imprint.errors import ConfigError
from imprint.methods.base import Learned, numbered_placeholders
from imprint.methods.pretraining import concept_pictures
from imprint.methods.profusion.learned import unpack
from imprint.methods.profusion.parts import ProFusionParts, Reference
from imprint.methods.prompts import require_placeholder
from imprint.sampling.ddim import StepCallback, ddim
from imprint.sampling.draw import draw_pictures, starting_noise
from imprint.sampling.fusion import fusion_sampling
from imprint.sampling.guidance import BranchedDenoiser

Subjects = Sequence[tuple[ProFusionParts, Reference]]
"""For each subject its PromptNet and a reference with a row for each picture, or one for all."""


def sample(
    backbone: Backbone,
    learned: Learned,
    prompts: Sequence[str],
    spec: SampleSpec,
    *,
    seeds: Sequence[int] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Float[Tensor, "n 3 h w"]:
    """Pictures in [-1, 1] of a concept, one a prompt; `<concept>` in a prompt is where it goes.

    Raises:
        ConfigError: a prompt has no placeholder, or the sampling spec does not fit fusion sampling.
        ConceptError: the concept does not fit the backbone.
    """
    for prompt in prompts:
        require_placeholder(prompt, "prompt", learned.placeholders)
    ready = unpack(backbone, learned)
    subjects = [(parts, reference.expand(len(prompts))) for parts, reference in ready.subjects]
    nouns = learned.settings["nouns"]
    return draw(ready.backbone, subjects, nouns, prompts, spec, seeds=seeds, progress=progress)


def preview(
    parts: ProFusionParts,
    images: Float[Tensor, "n 3 h w"],
    prompts: Sequence[str],
    spec: SampleSpec,
    *,
    masks: Float[Tensor, "n 1 h w"] | None = None,
    seeds: Sequence[int] | None = None,
) -> Float[Tensor, "n 3 h w"]:
    """Pictures of many subjects by PromptNet alone, each from its own picture in [-1, 1], one a prompt."""
    reference = parts.reference(concept_pictures(parts.spec, images, masks).to(parts.backbone.device))
    return draw(parts.backbone, [(parts, reference)], [parts.spec.domain_word], prompts, spec, seeds=seeds)


def draw(
    backbone: Backbone,
    subjects: Subjects,
    nouns: Sequence[str],
    prompts: Sequence[str],
    spec: SampleSpec,
    *,
    seeds: Sequence[int] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Float[Tensor, "n 3 h w"]:
    """Fusion sampling for all prompts, `spec.batch_size` at a time.

    Raises:
        ConfigError: the sampler is not ddim, or there is not one scale for each subject.
    """
    fusion = spec.fusion or FusionSpec()
    if spec.sampler != "ddim":
        raise ConfigError(f"sampler: got {spec.sampler!r}; fusion sampling is made of DDIM steps, expected 'ddim'")
    scales = fusion.subject_scales * (len(subjects) if len(fusion.subject_scales) == 1 else 1)
    if len(scales) != len(subjects):
        raise ConfigError(
            f"fusion.subject_scales: got {len(scales)} for {len(subjects)} subjects, expected one for all, or one for "
            "each"
        )
    seeds = seeds or range(len(prompts))

    def latents(rows: slice, callback: StepCallback | None) -> Float[Tensor, "b c h w"]:
        own = [(parts, reference.rows(rows)) for parts, reference in subjects]
        conditions = _Conditions(backbone, own, prompts[rows], nouns, fusion.gamma if fusion.enabled else 1.0)
        with torch.no_grad():
            empty = backbone.encode_text([spec.negative_prompt])
        noise, timesteps, generators = starting_noise(backbone, spec, seeds[rows])
        abar = backbone.schedule.alphas_cumprod
        if not fusion.enabled:
            guided = BranchedDenoiser(backbone, conditions.together, empty, (spec.guidance_scale,))
            return ddim(guided, noise, timesteps, abar, eta=spec.eta, generator=generators, callback=callback)
        fused = BranchedDenoiser(backbone, conditions.together, empty, (fusion.guidance_scale,))
        refined = BranchedDenoiser(backbone, conditions.apart, empty, (*scales, spec.guidance_scale))
        return fusion_sampling(
            fused, refined, noise, timesteps, abar, fusion, eta=spec.eta, generator=generators, callback=callback
        )

    return draw_pictures(backbone, latents, seeds, spec, progress)


class _Conditions:
    """The conditions of Algorithm 1 at (x_t, t)."""

    def __init__(
        self, backbone: Backbone, subjects: Subjects, prompts: Sequence[str], nouns: Sequence[str], gamma: float
    ) -> None:
        self.backbone = backbone
        self.subjects = subjects
        self.prompts = list(prompts)
        self.placeholders = numbered_placeholders(len(subjects))
        self.gamma = gamma
        texts = self.prompts
        for placeholder, noun in zip(self.placeholders, nouns, strict=True):
            texts = [text.replace(placeholder, f"a {noun}") for text in texts]
        with torch.no_grad():
            self.text = backbone.encode_text(texts)

    @torch.no_grad()
    def together(self, xt: Tensor, timesteps: Tensor) -> list[TextConditioning]:
        """gamma S* and C in one prompt, for Eq. 3."""
        words = [
            TokenReplacements(tuple(self.gamma * vector for vector in self._words(index, xt, timesteps)), placeholder)
            for index, placeholder in enumerate(self.placeholders)
        ]
        return [self.backbone.encode_text(self.prompts, words)]

    @torch.no_grad()
    def apart(self, xt: Tensor, timesteps: Tensor) -> list[TextConditioning]:
        """Each S_i* in its own prompt, and C, for Eq. 6."""
        own = []
        for index, (parts, _) in enumerate(self.subjects):
            words = TokenReplacements(self._words(index, xt, timesteps))
            own.append(self.backbone.encode_text([subject_prompt(parts)] * len(xt), words))
        return [*own, self.text]

    def _words(self, index: int, xt: Tensor, timesteps: Tensor) -> tuple[Tensor, ...]:
        parts, reference = self.subjects[index]
        return parts.promptnet(reference.latents, xt, timesteps, reference.embedding)


def subject_prompt(parts: ProFusionParts) -> str:
    """What PromptNet was trained with that says the least beside S*: the shortest of its templates."""
    return min((template for template in parts.spec.templates if PLACEHOLDER in template), key=len)
