"""Samplers: pure functions over one denoiser interface."""

from imprint.sampling.ancestral import ddpm_ancestral, euler_ancestral
from imprint.sampling.ddim import ddim
from imprint.sampling.denoiser import BackboneDenoiser, Denoised, Denoiser
from imprint.sampling.draw import draw_latents, draw_prompts
from imprint.sampling.guidance import GuidedDenoiser
from imprint.sampling.timesteps import SPACINGS, spaced_timesteps

__all__ = [
    "SPACINGS",
    "BackboneDenoiser",
    "Denoised",
    "Denoiser",
    "GuidedDenoiser",
    "ddim",
    "ddpm_ancestral",
    "draw_latents",
    "draw_prompts",
    "euler_ancestral",
    "spaced_timesteps",
]
