"""The published backbones as shapes: Stable Diffusion 1.5, 2.1 and XL with random weights, where none are at hand.

What a run costs (time, memory, FLOPs) depends on shapes alone, so plans and measurements need nothing else. The
numbers are those of the config.json files of the releases; the tests compare the parameter counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from imprint.backbone.base import Backbone
from imprint.backbone.families import SD1, SD2, SDXL, Family
from imprint.backbone.noise import NoiseSchedule
from imprint.backbone.tiny import scheduler_config
from imprint.errors import BackboneError

_VOCABULARY = 49408
_LENGTH = 77


@dataclass(frozen=True)
class Shape:
    """One release: the arguments of its UNet, its text encoders and its autoencoder."""

    family: Family
    unet: Mapping[str, Any]
    text: tuple[Mapping[str, Any], ...]
    scaling_factor: float = 0.18215
    vae: Mapping[str, Any] = field(default_factory=lambda: _VAE)
    prediction_type: str = "epsilon"


_VAE = {
    "block_out_channels": (128, 256, 512, 512), "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4, "layers_per_block": 2, "norm_num_groups": 32,
}  # fmt: skip
_UNET = {"block_out_channels": (320, 640, 1280, 1280), "layers_per_block": 2, "norm_num_groups": 32}
_TEXT_L = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "projection_dim": 768, "hidden_act": "quick_gelu",
}  # fmt: skip
_TEXT_H = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16,
    "projection_dim": 512, "hidden_act": "gelu",
}  # fmt: skip
_TEXT_G = {
    "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20,
    "projection_dim": 1280, "hidden_act": "gelu",
}  # fmt: skip
_SD2_UNET = {
    **_UNET, "sample_size": 64, "cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20),
    "use_linear_projection": True,
}  # fmt: skip
_XL_UNET = {
    "sample_size": 128, "block_out_channels": (320, 640, 1280), "layers_per_block": 2, "norm_num_groups": 32,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": (5, 10, 20), "transformer_layers_per_block": (1, 2, 10), "cross_attention_dim": 2048,
    "use_linear_projection": True, "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}  # fmt: skip

SHAPES: dict[str, Shape] = {
    "sd15": Shape(
        SD1, {**_UNET, "sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}, (_TEXT_L,)
    ),
    "sd21-base": Shape(SD2, _SD2_UNET, (_TEXT_H,)),
    "sd21": Shape(
        SD2, {**_SD2_UNET, "sample_size": 96, "upcast_attention": True}, (_TEXT_H,), prediction_type="v_prediction"
    ),
    "sdxl": Shape(SDXL, _XL_UNET, (_TEXT_L, _TEXT_G), scaling_factor=0.13025),
}  # fmt: skip


def small(shape: Shape) -> Shape:
    """The same classes and blocks a few channels wide, for tests; pictures of a quarter of the size."""
    levels = len(shape.unet["block_out_channels"])
    unet = {
        **shape.unet, "block_out_channels": (16, 32, 64, 64)[:levels], "norm_num_groups": 8, "layers_per_block": 1,
        "cross_attention_dim": 16 * len(shape.text), "sample_size": 8, "attention_head_dim": 2,
    }  # fmt: skip
    if shape.family.pooled:
        unet |= {"addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 6 * 8 + 16,
                 "transformer_layers_per_block": (1, 1, 2)}  # fmt: skip
    narrow = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
              "projection_dim": 16}  # fmt: skip
    vae = {**shape.vae, "block_out_channels": (8, 8, 16, 16), "norm_num_groups": 4, "layers_per_block": 1}
    text = tuple({**one, **narrow} for one in shape.text)
    return Shape(shape.family, unet, text, shape.scaling_factor, vae, shape.prediction_type)


def build_published(
    name: str,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    reduced: bool = False,
) -> Backbone:
    """A frozen backbone of a published shape with random weights; on the device "meta" it takes no memory.

    Its tokenizer knows letters only: a prompt has about as many tokens as characters, and the same length in the end.

    Raises:
        BackboneError: the shape is not known.
    """
    if name not in SHAPES:
        raise BackboneError(f"building a backbone of random weights: {name!r} is not known, expected one of "
                            f"{', '.join(SHAPES)}")  # fmt: skip
    shape = small(SHAPES[name]) if reduced else SHAPES[name]
    tokenizer = letter_tokenizer()
    with torch.device(device), _default_dtype(dtype):
        unet = UNet2DConditionModel(**shape.unet)
        vae = AutoencoderKL(**shape.vae, scaling_factor=shape.scaling_factor)
        text = tuple(
            _text_encoder(config, projected=shape.family.pooled and place == len(shape.text) - 1)
            for place, config in enumerate(shape.text)
        )
    config = scheduler_config(shape.prediction_type)
    return Backbone(
        path=name, family=shape.family, unet=unet, vae=vae, text_encoders=text, tokenizers=(tokenizer,) * len(text),
        schedule=NoiseSchedule.from_scheduler(config), scheduler_config=config,
    ).freeze()  # fmt: skip


def _text_encoder(config: Mapping[str, Any], *, projected: bool) -> nn.Module:
    full = CLIPTextConfig(
        vocab_size=_VOCABULARY, max_position_embeddings=_LENGTH, bos_token_id=_VOCABULARY - 2,
        eos_token_id=_VOCABULARY - 1, pad_token_id=_VOCABULARY - 1, **config,
    )  # fmt: skip
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(full)


@cache
def letter_tokenizer() -> CLIPTokenizer:
    """CLIP's tokenizer with its special tokens in their places, and letters, digits and signs for words."""
    letters = [chr(code) for code in range(33, 127)]
    known = [*letters, *(letter + "</w>" for letter in letters)]
    known += [f"unused{number}" for number in range(_VOCABULARY - 2 - len(known))]
    vocab = {token: number for number, token in enumerate([*known, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=_LENGTH)


class _default_dtype:
    """Weights are made in the dtype that they will have, so that a large model is never there twice."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def __enter__(self) -> None:
        self.before = torch.get_default_dtype()
        torch.set_default_dtype(self.dtype)

    def __exit__(self, *_: object) -> None:
        torch.set_default_dtype(self.before)
