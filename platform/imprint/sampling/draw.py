"""From a denoiser and a sampling spec to pictures; and the plain case, prompts without a concept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from imprint.backbone import Backbone
from imprint.backbone.precision import computing
from imprint.config.methods import SampleSpec
from imprint.sampling.ancestral import ddpm_ancestral, euler_ancestral
from imprint.sampling.ddim import StepCallback, ddim, fresh_noise
from imprint.sampling.denoiser import BackboneDenoiser, Conditioner, Denoiser, constant
from imprint.sampling.guidance import GuidedDenoiser
from imprint.sampling.timesteps import spaced_timesteps

ProgressCallback = Callable[[int, int], None]
"""Called with the denoising steps done and those to do, over all batches."""


def make_denoiser(
    backbone: Backbone, conditioner: Conditioner, spec: SampleSpec, weights: Mapping[str, Tensor] | None = None
) -> Denoiser:
    """A guided denoiser, or, at a guidance scale of 1, the conditional branch alone."""
    if spec.guidance_scale == 1:
        return BackboneDenoiser(backbone, conditioner, weights)
    with torch.no_grad():
        unconditional = backbone.encode_text([spec.negative_prompt])
    return GuidedDenoiser(backbone, conditioner, unconditional, spec.guidance_scale, weights)


def draw_latents(
    denoiser: Denoiser,
    backbone: Backbone,
    spec: SampleSpec,
    seeds: Sequence[int],
    callback: StepCallback | None = None,
) -> Float[Tensor, "b c h w"]:
    """Latents for one picture a seed. A picture depends on its own seed only, not on its neighbours."""
    noise, timesteps, generators = starting_noise(backbone, spec, seeds)
    abar = backbone.schedule.alphas_cumprod
    if spec.sampler == "ddim":
        return ddim(denoiser, noise, timesteps, abar, eta=spec.eta, generator=generators, callback=callback)
    sampler = ddpm_ancestral if spec.sampler == "ddpm" else euler_ancestral
    return sampler(denoiser, noise, timesteps, abar, generator=generators, callback=callback)


def starting_noise(
    backbone: Backbone, spec: SampleSpec, seeds: Sequence[int]
) -> tuple[Float[Tensor, "b c h w"], Int[Tensor, "steps"], list[torch.Generator]]:
    """Noise for one picture a seed, the timesteps to visit, and the generators that later noise comes from."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    like = torch.empty(len(seeds), *backbone.latent_shape, device=backbone.device)
    timesteps = spaced_timesteps(backbone.schedule.num_timesteps, spec.steps, spec.spacing)
    return fresh_noise(like, generators), timesteps, generators


def draw_prompts(
    backbone: Backbone,
    prompts: Sequence[str],
    spec: SampleSpec,
    *,
    seeds: Sequence[int] | None = None,
    weights: Mapping[str, Tensor] | None = None,
    progress: ProgressCallback | None = None,
) -> Float[Tensor, "n 3 h w"]:
    """Pictures in [-1, 1] of plain prompts; seeds are 0, 1, 2, ... where none are given."""

    def conditioner(rows: slice) -> Conditioner:
        with torch.no_grad():
            return constant(backbone.encode_text(prompts[rows]))

    return draw_batches(backbone, conditioner, seeds or range(len(prompts)), spec, weights, progress)


def draw_batches(
    backbone: Backbone,
    conditioner: Callable[[slice], Conditioner],
    seeds: Sequence[int],
    spec: SampleSpec,
    weights: Mapping[str, Tensor] | None = None,
    progress: ProgressCallback | None = None,
) -> Float[Tensor, "n 3 h w"]:
    """Pictures for all seeds, `spec.batch_size` at a time; `conditioner` makes that of a batch, given its rows."""

    def denoiser(rows: slice) -> Denoiser:
        return make_denoiser(backbone, conditioner(rows), spec, weights)

    return draw_denoised(backbone, denoiser, seeds, spec, progress)


def draw_denoised(
    backbone: Backbone,
    denoiser: Callable[[slice], Denoiser],
    seeds: Sequence[int],
    spec: SampleSpec,
    progress: ProgressCallback | None = None,
) -> Float[Tensor, "n 3 h w"]:
    """As `draw_batches`, with a denoiser of one's own for each batch, given its rows."""

    def latents(rows: slice, callback: StepCallback | None) -> Float[Tensor, "b c h w"]:
        return draw_latents(denoiser(rows), backbone, spec, seeds[rows], callback)

    return draw_pictures(backbone, latents, seeds, spec, progress)


def draw_pictures(
    backbone: Backbone,
    latents: Callable[[slice, StepCallback | None], Float[Tensor, "b c h w"]],
    seeds: Sequence[int],
    spec: SampleSpec,
    progress: ProgressCallback | None = None,
) -> Float[Tensor, "n 3 h w"]:
    """As `draw_batches`, with latents by a sampler of one's own for each batch, given its rows."""
    pictures, total = [], spec.steps * -(-len(seeds) // spec.batch_size)
    for batch, start in enumerate(range(0, len(seeds), spec.batch_size)):
        rows = slice(start, start + spec.batch_size)
        report = _step_report(progress, batch * spec.steps, total)
        with computing(spec.precision, backbone.device):
            pictures.append(backbone.decode_latents(latents(rows, report)))
    return torch.cat(pictures)


def _step_report(progress: ProgressCallback | None, done: int, total: int) -> StepCallback | None:
    return None if progress is None else lambda number, latents: progress(done + number + 1, total)
