"""LoRA in the names of kohya's sd-scripts, which ComfyUI and other programs read as well.

A key is `lora_unet_` or `lora_te_` and the module's path with underscores, then `.lora_down.weight`, `.lora_up.weight`
or `.alpha`. SD1 and SD2 go by diffusers' paths; SDXL by those of the original UNet (input_blocks, middle_block,
output_blocks) and with `lora_te1_` and `lora_te2_`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from imprint.backbone import Backbone
from imprint.methods.low_rank import LowRank

_BASE_VERSION = {"sd1": "sd_v1", "sd2": "sd_v2", "sdxl": "sdxl_base_v1-0"}
_ARCHITECTURE = {
    "sd1": "stable-diffusion-v1/lora",
    "sd2": "stable-diffusion-v2-512/lora",
    "sdxl": "stable-diffusion-xl-v1-base/lora",
}
_BLOCK = re.compile(r"^(down|up)_blocks\.(\d+)\.attentions\.(\d+)\.(.+)$")


def kohya_tensors(backbone: Backbone, factors: Mapping[str, LowRank]) -> dict[str, Tensor]:
    """The factors by kohya's names; alpha is the rank, since the scale is part of `up` already."""
    tensors = {}
    for module, pair in factors.items():
        name = kohya_name(backbone, module)
        tensors[f"{name}.lora_down.weight"] = pair.down.contiguous()
        tensors[f"{name}.lora_up.weight"] = pair.up.contiguous()
        tensors[f"{name}.alpha"] = torch.tensor(float(pair.down.shape[0]), dtype=pair.down.dtype)
    return tensors


def kohya_name(backbone: Backbone, module: str) -> str:
    """Kohya's name of `<part>.<module>`."""
    part, _, path = module.partition(".")
    sdxl = backbone.family.name == "sdxl"
    if part == "unet":
        return "lora_unet_" + (_original_path(backbone, path) if sdxl else path).replace(".", "_")
    number = "2" if part.endswith("_2") else "1"
    return f"lora_te{number if sdxl else ''}_" + text_model_path(path).replace(".", "_")


def text_model_path(path: str) -> str:
    """A text encoder's module below `text_model`, where all LoRA files have it.

    transformers 5 lost that level of CLIPTextModel, and kept it in CLIPTextModelWithProjection.
    """
    return path if path.startswith("text_model.") else f"text_model.{path}"


def _original_path(backbone: Backbone, path: str) -> str:
    """A module of an attention of diffusers' UNet, in the original UNet, which numbers all blocks in one row."""
    if path.startswith("mid_block.attentions.0."):
        return "middle_block.1." + path.removeprefix("mid_block.attentions.0.")
    match = _BLOCK.match(path)
    assert match is not None, f"{path} is in no attention"
    block, layer, rest = int(match[2]), int(match[3]), match[4]
    layers = backbone.unet.config.layers_per_block
    # Of each down block the original counts its layers and one downsampler, after conv_in as number 0; of each up
    # block one layer more than down, the upsampler being part of the last.
    if match[1] == "down":
        return f"input_blocks.{1 + block * (layers + 1) + layer}.1.{rest}"
    return f"output_blocks.{block * (layers + 1) + layer}.1.{rest}"


def kohya_metadata(
    backbone: Backbone, factors: Mapping[str, LowRank], *, title: str, triggers: tuple[str, ...]
) -> dict[str, str]:
    """What programs show of a LoRA and choose the base model by: kohya's `ss_*` and Stability's ModelSpec 1.0."""
    family = backbone.family.name
    velocity = backbone.prediction_type == "v_prediction"
    rank = max(pair.down.shape[0] for pair in factors.values())
    architecture = _ARCHITECTURE[family]
    if family == "sd2" and velocity:
        architecture = "stable-diffusion-v2-768-v/lora"
    return {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(float(rank)),
        "ss_base_model_version": _BASE_VERSION[family],
        "ss_v2": str(family == "sd2"),
        "ss_output_name": title,
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": architecture,
        "modelspec.implementation": "diffusers",
        "modelspec.title": title,
        "modelspec.trigger_phrase": ", ".join(triggers),
        "modelspec.prediction_type": "v" if velocity else "epsilon",
        "modelspec.resolution": f"{backbone.image_size}x{backbone.image_size}",
    }
