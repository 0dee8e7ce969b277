"""The attentions to an object that are put into a UNet: one in every transformer block.

Source: Taming Encoder, Appendix A and Fig. 11: "an additional cross-attention layer between the original
self-attention layer and text-image cross attention layer in the transformer block".
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from jaxtyping import Float
from torch import Tensor, nn

from imprint.errors import BackboneError


class ObjectAttention(nn.Module):
    """h + Attention(norm(h), objects), heads as in the block's other attentions.

    The output projection starts at zero, so at first h comes out as it came in. No projection has a bias: a null
    object, all zeros, has values of zero and adds nothing either, at any time.
    """

    def __init__(self, block: BasicTransformerBlock, object_width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(block.dim)
        self.attention = Attention(
            query_dim=block.dim,
            cross_attention_dim=object_width,
            heads=block.num_attention_heads,
            dim_head=block.attention_head_dim,
            bias=False,
            out_bias=False,
        )
        nn.init.zeros_(self.attention.to_out[0].weight)

    def forward(self, hidden: Float[Tensor, "b n c"], objects: Float[Tensor, "b m e"]) -> Float[Tensor, "b n c"]:
        objects = objects.to(hidden.device, self.attention.to_k.weight.dtype)
        return hidden + self.attention(self.norm(hidden), encoder_hidden_states=objects)


class ObjectAttentions(nn.Module):
    """The attentions of all blocks of a UNet, and the place in each block where they are called.

    diffusers' blocks have one place between self-attention and text: GLIGEN's `fuser`, called where a forward pass
    brings objects. The attentions stand there without being registered as parts of the UNet: its state and its saved
    folder stay those of an ordinary model, and it runs as one where no objects come.
    """

    def __init__(self, unet: nn.Module, object_width: int) -> None:
        """Fresh attentions in the precision and on the device of the UNet.

        Raises:
            BackboneError: the UNet has no transformer blocks, or GLIGEN's modules stand in their place.
        """
        super().__init__()
        self.blocks = nn.ModuleDict(
            {name.replace(".", "-"): ObjectAttention(block, object_width) for name, block in _blocks(unet)}
        )
        if not self.blocks:
            raise BackboneError("adding object attentions: the UNet has no transformer blocks to put them in")
        like = next(unet.parameters())
        self.to(like.device, like.dtype)
        self.put_into(unet)

    def put_into(self, unet: nn.Module) -> None:
        """Have the blocks of a UNet of the same shape call these attentions."""
        for name, block in _blocks(unet):
            # Past nn.Module's own __setattr__, which would register them.
            vars(block)["fuser"] = self.blocks[name.replace(".", "-")]
        vars(unet)["position_net"] = _as_they_are


def _as_they_are(objs: Tensor) -> Tensor:
    """Where GLIGEN embeds boxes, object embeddings pass."""
    return objs


def _blocks(unet: nn.Module) -> Iterator[tuple[str, BasicTransformerBlock]]:
    for name, module in unet.named_modules():
        if isinstance(module, BasicTransformerBlock):
            if "fuser" in module._modules:
                raise BackboneError(
                    f"adding object attentions: the UNet's block {name} has GLIGEN's module where they go; "
                    "expected a UNet without GLIGEN"
                )
            yield name, module


def null_objects(like: Float[Tensor, "b m e"]) -> Float[Tensor, "b m e"]:
    """phi of Eq. 4, "a fixed null embedding": zeros, as many as the objects are."""
    return torch.zeros_like(like)
