"""Draw small pictures large, with a super-resolution diffusion model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from imprint.backbone import TextConditioning
from imprint.backbone.precision import computing
from imprint.backbone.super_resolution import SuperResolution
from imprint.config.methods import SuperResolutionSampler
from imprint.config.methods.super_resolution import NOISE_AUGMENTATION
from imprint.sampling.ddim import StepCallback, ddim, fresh_noise
from imprint.sampling.denoiser import Denoised
from imprint.sampling.draw import ProgressCallback
from imprint.sampling.guidance import guide
from imprint.sampling.timesteps import spaced_timesteps


@dataclass(frozen=True)
class SuperResolutionDenoiser:
    """A super-resolution model given its small pictures, as they are seen, their noise level and their text.

    `unconditional` is there where guidance is wanted. x_0 of a pixel model is clipped to [-1, 1] at each step, as in
    Imagen, arXiv:2205.11487, section 2.3.
    """

    model: SuperResolution
    condition: Float[Tensor, "b 3 h w"]
    levels: Int[Tensor, "b"]
    text: TextConditioning
    unconditional: TextConditioning | None = None
    guidance_scale: float = 1.0

    @torch.no_grad()
    def __call__(self, xt: Float[Tensor, "b c h w"], timesteps: Int[Tensor, "b"]) -> Denoised:
        output = self._output(xt, timesteps).to(xt.dtype)
        schedule = self.model.schedule
        x0 = schedule.to_x0(output, xt, timesteps)
        if self.model.kind == "latent":
            return Denoised(x0, schedule.to_eps(output, xt, timesteps))
        x0 = x0.clamp(-1, 1)
        signal, sigma = schedule.coefficients(timesteps, xt)
        return Denoised(x0, (xt - signal * x0) / sigma)

    def _output(self, xt: Tensor, timesteps: Tensor) -> Tensor:
        if self.unconditional is None:
            return self.model.denoise(xt, timesteps, self.condition, self.levels, self.text)
        both = TextConditioning.cat([self.unconditional, self.text])
        output = self.model.denoise(
            xt.repeat(2, 1, 1, 1),
            timesteps.repeat(2),
            self.condition.repeat(2, 1, 1, 1),
            self.levels.repeat(2),
            both,
        )
        return guide(*output.chunk(2), self.guidance_scale)


def upscale(
    model: SuperResolution,
    pictures: Float[Tensor, "n 3 h w"],
    prompts: Sequence[str],
    spec: SuperResolutionSampler,
    *,
    seeds: Sequence[int] | None = None,
    progress: ProgressCallback | None = None,
) -> Float[Tensor, "n 3 h2 w2"]:
    """Pictures in [-1, 1], `model.factor` times as large; seeds are 0, 1, 2, ... where none are given.

    A picture depends on its own seed only, not on its neighbours.

    Raises:
        BackboneError: the model never saw so much noise on small pictures, or their size does not fit.
    """
    seeds = list(seeds or range(len(pictures)))
    batches = -(-len(pictures) // spec.batch_size)
    drawn = []
    for number, start in enumerate(range(0, len(pictures), spec.batch_size)):
        rows = slice(start, start + spec.batch_size)
        report = _report(progress, number * spec.steps, batches * spec.steps)
        with torch.no_grad(), computing(spec.precision, model.device):
            drawn.append(_upscale(model, pictures[rows], prompts[rows], spec, seeds[rows], report))
    return torch.cat(drawn)


def _upscale(
    model: SuperResolution,
    low: Float[Tensor, "b 3 h w"],
    prompts: Sequence[str],
    spec: SuperResolutionSampler,
    seeds: Sequence[int],
    callback: StepCallback | None,
) -> Float[Tensor, "b 3 h2 w2"]:
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    variance = NOISE_AUGMENTATION if spec.noise_augmentation is None else spec.noise_augmentation
    shape = model.condition_shape(low)
    noise = fresh_noise(torch.empty(shape[0], model.channels, *shape[2:], device=model.device), generators)
    augmentation = fresh_noise(torch.empty(shape, device=model.device), generators)
    denoiser = SuperResolutionDenoiser(
        model,
        model.condition(low, torch.full((len(low),), variance), augmentation),
        torch.full((len(low),), model.noise_level(variance)),
        model.encode_text(prompts),
        model.encode_text([""] * len(low)) if spec.guidance_scale != 1 else None,
        spec.guidance_scale,
    )
    timesteps = spaced_timesteps(model.schedule.num_timesteps, spec.steps)
    return model.decode(ddim(denoiser, noise, timesteps, model.schedule.alphas_cumprod, callback=callback))


def _report(progress: ProgressCallback | None, done: int, total: int) -> StepCallback | None:
    return None if progress is None else lambda number, latents: progress(done + number + 1, total)
