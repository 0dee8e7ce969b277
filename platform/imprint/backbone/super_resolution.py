"""A super-resolution diffusion model behind one interface: the second stage of a cascade.

Two kinds, told apart by the pipeline's class. Both are conditioned on the small picture with some noise added to it
and on the strength of that noise (noise conditioning augmentation, arXiv:2106.15282).

    latent   StableDiffusionUpscalePipeline: denoises latents as large as the small picture, which is concatenated
    pixel    IFSuperResolutionPipeline, stage II of DeepFloyd IF: denoises pixels, beside the small picture enlarged
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from imprint.backbone.base import latent_moments, modules_fingerprint, sample_latents
from imprint.backbone.noise import NoiseSchedule
from imprint.backbone.text import TextConditioning, run_text_encoder
from imprint.errors import BackboneError

Kind = Literal["latent", "pixel"]
# DeepFloyd IF's T5 was trained on prompts of so many tokens.
_T5_TOKENS = 77
_IF_FACTOR = 4


@dataclass
class SuperResolution:
    """A pretrained super-resolution model. `path` is where it came from.

    `low_res_alphas_cumprod` [levels] is the schedule of the noise on the small picture, by level, and
    `max_noise_level` the first level that the model never saw.
    """

    path: str
    kind: Kind
    unet: nn.Module
    vae: nn.Module | None
    text_encoder: nn.Module
    tokenizer: Any
    schedule: NoiseSchedule
    low_res_alphas_cumprod: Float[Tensor, "levels"]
    max_noise_level: int
    configs: Mapping[str, Mapping[str, Any]]

    @classmethod
    def load(
        cls, path: str | Path, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> SuperResolution:
        """Load a diffusers folder of one of the two classes, a hub id, or an embedded name ("imprint-tiny-x4").

        It comes frozen and in eval mode.

        Raises:
            BackboneError: nothing loadable is there, or it is of another class.
        """
        from imprint.backbone.super_resolution_loading import load_super_resolution

        return load_super_resolution(path, dtype=dtype, device=device)

    # -- what it is -----------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        return next(self.unet.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.unet.parameters()).dtype

    @property
    def factor(self) -> int:
        """How many times larger a side becomes."""
        return _IF_FACTOR if self.vae is None else 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def channels(self) -> int:
        """Channels of what is denoised: 3 of pixels, or the latents'."""
        return self.unet.config.in_channels - 3

    @property
    def image_size(self) -> int:
        """Pixels along a side of the large pictures that the model was trained on."""
        return self.unet.config.sample_size * (1 if self.vae is None else self.factor)

    def modules(self) -> Iterator[nn.Module]:
        """UNet, autoencoder where there is one, and text encoder."""
        yield self.unet
        if self.vae is not None:
            yield self.vae
        yield self.text_encoder

    def freeze(self) -> SuperResolution:
        """No parameter takes a gradient; dropout and the like are off."""
        for module in self.modules():
            module.requires_grad_(False)
            module.eval()
        return self

    def fingerprint(self) -> str:
        """sha256 over names, shapes and fp16 values of all weights, as a backbone's."""
        return modules_fingerprint(self.modules())

    # -- pictures and text ----------------------------------------------------------------------------------

    @torch.no_grad()
    def encode_images(
        self, high: Float[Tensor, "b 3 h w"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "b c h2 w2"]:
        """What is denoised, of large pictures in [-1, 1]: scaled latents, or the pictures themselves."""
        if self.vae is None:
            return high.to(self.device, self.dtype)
        mean, std = (value.to(self.dtype) for value in latent_moments(self.vae, high))
        return mean if generator is None else sample_latents(mean, std, generator)

    @torch.no_grad()
    def decode(self, x0: Float[Tensor, "b c h2 w2"]) -> Float[Tensor, "b 3 h w"]:
        """Large pictures in [-1, 1]."""
        if self.vae is None:
            return x0.float().clamp(-1, 1)
        latents = x0.to(next(self.vae.parameters()).dtype) / self.vae.config.scaling_factor
        return self.vae.decode(latents, return_dict=False)[0].float().clamp(-1, 1)

    def encode_text(self, prompts: Sequence[str]) -> TextConditioning:
        """What the UNet attends to."""
        if self.kind == "latent":
            return TextConditioning(run_text_encoder(self.text_encoder, self.tokenizer, prompts, {})[0])
        # DeepFloyd IF's own pipeline lowers the case of prompts.
        tokens = self.tokenizer(
            [prompt.lower().strip() for prompt in prompts],
            padding="max_length", max_length=_T5_TOKENS, truncation=True, return_tensors="pt",
        ).to(self.device)  # fmt: skip
        hidden = self.text_encoder(tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state
        return TextConditioning(hidden.to(self.dtype))

    # -- the small picture ----------------------------------------------------------------------------------

    def noise_level(self, variance: float) -> int:
        """The level of the model's own scale whose noise is nearest to `variance`, as a ratio.

        The paper's 1e-5 is below the first level of both pipelines; that is then what the model is told.

        Raises:
            BackboneError: the model never saw so much noise.
        """
        variances = 1 - self.low_res_alphas_cumprod[: self.max_noise_level]
        if variance > 1.05 * float(variances[-1]):
            raise BackboneError(
                f"noise augmentation: got a variance of {variance:g}, and {self.path!r} was trained with at most "
                f"{float(variances[-1]):.3g}; lower noise_augmentation"
            )
        return int((variances.clamp(min=1e-12).log() - torch.tensor(max(variance, 1e-12)).log()).abs().argmin())

    def level_variances(self, levels: Int[Tensor, "b"]) -> Float[Tensor, "b"]:
        """The noise of some levels."""
        return (1 - self.low_res_alphas_cumprod)[levels.cpu()].float()

    def condition(
        self, low: Float[Tensor, "b 3 h w"], variances: Float[Tensor, "b"], noise: Float[Tensor, "b 3 h2 w2"] | None
    ) -> Float[Tensor, "b 3 h2 w2"]:
        """The small picture as the UNet sees it: sqrt(1 - variance) low + sqrt(variance) noise.

        A pixel model sees it enlarged, with the noise at the large size. `noise` is None where there is none.
        """
        low = low.to(self.device, self.dtype)
        if self.kind == "pixel":
            size = [side * self.factor for side in low.shape[-2:]]
            low = F.interpolate(low, size, mode="bilinear", align_corners=True)
        if noise is None:
            return low
        share = variances.to(low).view(-1, 1, 1, 1)
        return (1 - share).sqrt() * low + share.sqrt() * noise.to(low)

    def condition_shape(self, low: Float[Tensor, "b 3 h w"]) -> tuple[int, int, int, int]:
        """Of `condition`'s noise, and in all but the channels of what is denoised."""
        scale = self.factor if self.kind == "pixel" else 1
        return len(low), 3, low.shape[-2] * scale, low.shape[-1] * scale

    # -- the denoiser ---------------------------------------------------------------------------------------

    def denoise(
        self,
        xt: Float[Tensor, "b c h w"],
        timesteps: Int[Tensor, "b"],
        condition: Float[Tensor, "b 3 h w"],
        levels: Int[Tensor, "b"],
        text: TextConditioning,
    ) -> Float[Tensor, "b c h w"]:
        """One call of the UNet: its raw output, without the variance that DeepFloyd IF predicts beside it."""
        if xt.shape[-2:] != condition.shape[-2:]:
            raise BackboneError(
                f"super-resolution with {self.path!r}: what is denoised is {tuple(xt.shape[-2:])} and the small "
                f"picture {tuple(condition.shape[-2:])}; expected equal"
            )
        inputs = torch.cat([xt.to(condition), condition], dim=1)
        output = self.unet(inputs, timesteps, text.hidden, class_labels=levels.to(inputs.device), return_dict=False)[0]
        return output[:, : self.channels]
