"""Features of the UNet's encoder at (x_t, t): what iterative refinement reads off the noisy latents.

E4T takes them pooled, of every block; the domain-agnostic encoder where they stand, of the last layer.

Only the encoder half runs: time embedding, `conv_in`, down blocks, mid block. The up path, half the cost of a
call or more, never does. Source: E4T, section 3.1 "Iterative refinement", arXiv:2302.12228.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from imprint.backbone import Backbone, TextConditioning


def tap_widths(config: Any) -> list[int]:
    """Channels of every tap of a UNet, in the order of `encoder_features`, from its config alone.

    One tap for `conv_in`, one for each residual that a down block hands to the up path, one for the mid block.
    """
    channels = list(config.block_out_channels)
    layers = config.layers_per_block
    layers = [layers] * len(channels) if isinstance(layers, int) else list(layers)
    widths = [channels[0]]
    for index, (width, count) in enumerate(zip(channels, layers, strict=True)):
        downsamples = index < len(channels) - 1
        widths += [width] * (count + downsamples)
    if config.mid_block_type is not None:
        widths.append(channels[-1])
    return widths


def encoder_features(
    unet: nn.Module,
    latents: Float[Tensor, "b c h w"],
    timesteps: Int[Tensor, "b"],
    hidden: Float[Tensor, "b n d"],
    added_conditioning: dict[str, Tensor] | None = None,
) -> list[Float[Tensor, "b c2 h2 w2"]]:
    """The spatial features of every down-block residual and of the mid block of a UNet2DConditionModel.

    The same computation as the first half of `UNet2DConditionModel.forward`, up to the mid block.
    """
    temb = unet.time_embedding(unet.get_time_embed(sample=latents, timestep=timesteps), None)
    augmentation = unet.get_aug_embed(
        emb=temb, encoder_hidden_states=hidden, added_cond_kwargs=added_conditioning or {}
    )
    if augmentation is not None:
        temb = temb + augmentation
    if unet.time_embed_act is not None:
        temb = unet.time_embed_act(temb)
    hidden = unet.process_encoder_hidden_states(
        encoder_hidden_states=hidden, added_cond_kwargs=added_conditioning or {}
    )
    sample = unet.conv_in(2 * latents - 1.0 if unet.config.center_input_sample else latents)
    features = [sample]
    for block in unet.down_blocks:
        sample, residuals = _run(block, sample, temb, hidden)
        features += residuals
    if unet.mid_block is not None:
        features.append(_run(unet.mid_block, sample, temb, hidden))
    return features


def _run(block: nn.Module, sample: Tensor, temb: Tensor, hidden: Tensor) -> Any:
    if getattr(block, "has_cross_attention", False):
        return block(sample, temb, encoder_hidden_states=hidden)
    return block(sample, temb)


class UNetTaps:
    """Reads encoder features of a frozen backbone with an empty prompt.

    It always reads the backbone as it was pretrained, also while a tuned copy of its weights denoises: the
    features are an input to the encoder, so they must mean the same before, during and after tuning.
    """

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone
        with torch.no_grad():
            self._empty: TextConditioning = backbone.encode_text([""])

    @property
    def widths(self) -> list[int]:
        """Channels of each tap."""
        return tap_widths(self.backbone.unet.config)

    @torch.no_grad()
    def __call__(self, latents: Float[Tensor, "b c h w"], timesteps: Int[Tensor, "b"]) -> list[Float[Tensor, "b c2"]]:
        """The mean over space of each tap at (x_t, t); float32, no gradient."""
        return [feature.float().mean(dim=(2, 3)) for feature in self._features(latents, timesteps)]

    @torch.no_grad()
    def spatial(self, latents: Float[Tensor, "b c h w"], timesteps: Int[Tensor, "b"]) -> Float[Tensor, "b c2 h2 w2"]:
        """The last tap, that of the mid block, with its places; float32, no gradient.

        Source: domain-agnostic tuning encoder, arXiv:2307.06925, section 4.1.
        """
        return self._features(latents, timesteps)[-1].float()

    def _features(self, latents: Tensor, timesteps: Tensor) -> list[Tensor]:
        empty = self._empty.repeat(len(latents))
        added = self.backbone.added_conditioning(empty, latents)
        return encoder_features(self.backbone.unet, latents, timesteps, empty.hidden, added)
