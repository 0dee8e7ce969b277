"""PromptNet: a reference picture and the noisy latents to a word, by blocks like those of the UNet's encoder.

Source: ProFusion, arXiv:2305.13579, section 2 and appendix B. Legend: x_0 the reference, x_t the noisy latents, S* the
word.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from jaxtyping import Float, Int
from torch import Tensor, nn

from imprint.backbone import Backbone
from imprint.config.methods import PromptNetSpec
from imprint.features.unet_taps import encoder_features, tap_widths
from imprint.methods.vocabulary import Vocabulary, WordHead

_WITHOUT_POOLED_TEXT = dict.fromkeys(
    ("addition_embed_type", "addition_time_embed_dim", "projection_class_embeddings_input_dim")
)


class SummedConvolutions(nn.Module):
    """The reference and x_t, stacked along the channels, each through its own convolution, and summed."""

    def __init__(self, like: nn.Conv2d) -> None:
        super().__init__()
        arguments: dict[str, Any] = {"kernel_size": like.kernel_size, "padding": like.padding}
        self.reference = nn.Conv2d(like.in_channels, like.out_channels, **arguments)
        self.noisy = nn.Conv2d(like.in_channels, like.out_channels, **arguments)

    def forward(self, both: Float[Tensor, "b twice h w"]) -> Float[Tensor, "b c h w"]:
        reference, noisy = both.chunk(2, dim=1)
        return self.reference(reference) + self.noisy(noisy)


class PromptNet(nn.Module):
    """The UNet's down and mid blocks (five on Stable Diffusion) with CLIP's image embedding where text is read.

    The mid block's features, averaged over space, make the word by a linear layer for each text encoder. Words start
    near `domain_word`.
    """

    def __init__(self, backbone: Backbone, spec: PromptNetSpec, image_width: int, domain_word: str) -> None:
        super().__init__()
        self.spec = spec
        config = dict(backbone.unet.config) | _WITHOUT_POOLED_TEXT | {"cross_attention_dim": image_width}
        body = UNet2DConditionModel.from_config(config)
        if spec.initialize:
            copy_where_shapes_allow(body, backbone.unet)
        stem = SummedConvolutions(body.conv_in)
        stem.noisy.load_state_dict(body.conv_in.state_dict())
        stem.reference.load_state_dict(body.conv_in.state_dict())
        body.conv_in = stem
        # The encoder half alone.
        body.up_blocks, body.conv_norm_out, body.conv_act, body.conv_out = nn.ModuleList(), None, None, None
        self.body = body
        vocabularies = Vocabulary.each_of(backbone)
        hidden = tap_widths(backbone.unet.config)[-1]
        self.heads = nn.ModuleList(
            WordHead(hidden, vocabulary, spec.vectors, start)
            for vocabulary, start in zip(vocabularies, backbone.word_embedding(domain_word), strict=True)
        )

    def forward(
        self,
        reference: Float[Tensor, "b c h w"],
        xt: Float[Tensor, "b c h w"],
        timesteps: Int[Tensor, "b"],
        image_embedding: Float[Tensor, "b 1 width"],
    ) -> tuple[Float[Tensor, "b vectors width"], ...]:
        """S* for each text encoder, in fp32."""
        dtype = next(self.heads.parameters()).dtype
        both = torch.cat([reference, xt], dim=1).to(dtype)
        pooled = encoder_features(self.body, both, timesteps, image_embedding.to(dtype))[-1].mean(dim=(2, 3))
        normal = F.layer_norm(pooled, pooled.shape[-1:])
        return tuple(head(normal).unflatten(1, (self.spec.vectors, -1)) for head in self.heads)


@torch.no_grad()
def copy_where_shapes_allow(network: nn.Module, source: nn.Module) -> list[str]:
    """Copy every parameter that both have in one shape; the names of those that were left as they are."""
    theirs = dict(source.named_parameters())
    left = []
    for name, parameter in network.named_parameters():
        own = theirs.get(name)
        if own is not None and own.shape == parameter.shape:
            parameter.copy_(own)
        else:
            left.append(name)
    return left
