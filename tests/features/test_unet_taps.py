from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

from imprint.backbone import Backbone
from imprint.features.unet_taps import UNetTaps, encoder_features, tap_widths

SD15: dict[str, Any] = {
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
SD2 = SD15 | {"cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True}
SDXL: dict[str, Any] = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": 2048,
    "attention_head_dim": (5, 10, 20),
    "transformer_layers_per_block": (1, 2, 10),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}


@pytest.mark.parametrize(("config", "total"), [(SD15, 10_880), (SD2, 10_880), (SDXL, 7_040)], ids=["1.5", "2", "xl"])
def test_pooled_widths_of_the_released_architectures(config: dict[str, Any], total: int) -> None:
    """By the config, and by running the whole encoder on the meta device."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**config)
        added = None
        if "addition_embed_type" in config:
            added = {"text_embeds": torch.empty(1, 1280), "time_ids": torch.empty(1, 6)}
        features = encoder_features(
            unet,
            torch.empty(1, 4, 32, 32),
            torch.empty(1, dtype=torch.long),
            torch.empty(1, 77, config["cross_attention_dim"]),
            added,
        )
    assert sum(tap_widths(unet.config)) == total
    assert [feature.shape[1] for feature in features] == tap_widths(unet.config)


@pytest.fixture
def backbone(any_pipeline: Path) -> Backbone:
    return Backbone.load(any_pipeline)


def test_the_down_path_is_that_of_the_unets_own_forward(backbone: Backbone) -> None:
    """Bit for bit, against what hooks see during UNet2DConditionModel.forward."""
    seen: dict[str, Any] = {}

    def keep(name: str) -> Any:
        return lambda module, inputs, output: seen.__setitem__(name, output)

    unet = backbone.unet
    handles = [unet.conv_in.register_forward_hook(keep("in")), unet.mid_block.register_forward_hook(keep("mid"))]
    handles += [block.register_forward_hook(keep(f"down{i}")) for i, block in enumerate(unet.down_blocks)]
    latents = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    timesteps = torch.tensor([0, 400, 999])
    empty = backbone.encode_text([""]).repeat(3)
    with torch.no_grad():
        backbone.denoise(latents, timesteps, empty)
    for handle in handles:
        handle.remove()
    expected = [seen["in"], *(r for i in range(len(unet.down_blocks)) for r in seen[f"down{i}"][1]), seen["mid"]]
    taps = UNetTaps(backbone)
    pooled = taps(latents, timesteps)
    assert taps.widths == [feature.shape[1] for feature in expected]
    for got, feature in zip(pooled, expected, strict=True):
        assert torch.equal(got, feature.mean(dim=(2, 3)))


def test_taps_see_the_noisy_latents_and_the_timestep(backbone: Backbone) -> None:
    taps = UNetTaps(backbone)
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    early, late = torch.tensor([10]), torch.tensor([900])
    first = torch.cat(taps(latents, early), dim=1)
    assert not torch.allclose(first, torch.cat(taps(latents, late), dim=1))
    assert not torch.allclose(first, torch.cat(taps(-latents, early), dim=1))


def test_the_up_path_does_not_run(backbone: Backbone) -> None:
    def fail(*arguments: Any) -> None:
        raise AssertionError("the up path ran")

    handle = backbone.unet.up_blocks[0].register_forward_pre_hook(fail)
    UNetTaps(backbone)(torch.zeros(1, 4, 8, 8), torch.tensor([0]))
    with pytest.raises(AssertionError, match="up path ran"):
        backbone.denoise(torch.zeros(1, 4, 8, 8), torch.tensor([0]), backbone.encode_text([""]))
    handle.remove()
