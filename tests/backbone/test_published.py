"""Backbones of published shapes: their parameter counts, and that the small ones do what a backbone does."""

from __future__ import annotations

import pytest
import torch

from imprint.backbone.published import SHAPES, build_published
from imprint.errors import BackboneError

# Elements in the safetensors files of the releases.
UNETS = {"sd15": 859_520_964, "sd21-base": 865_910_724, "sd21": 865_910_724, "sdxl": 2_567_463_684}
TEXTS = {"sd15": [123_060_480], "sd21-base": [340_387_840], "sd21": [340_387_840], "sdxl": [123_060_480, 694_659_840]}


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("name", SHAPES)
def test_full_size_has_the_parameters_of_the_release(name: str) -> None:
    backbone = build_published(name, device="meta")
    assert count(backbone.unet) == UNETS[name]
    assert [count(encoder) for encoder in backbone.text_encoders] == TEXTS[name]
    assert count(backbone.vae) == 83_653_863
    assert backbone.image_size == {"sd21": 768, "sdxl": 1024}.get(name, 512)


@pytest.mark.parametrize("name", SHAPES)
def test_a_small_one_encodes_denoises_and_decodes(name: str) -> None:
    backbone = build_published(name, reduced=True)
    latents = backbone.encode_images(torch.zeros(2, 3, 64, 64))
    conditioning = backbone.encode_text(["a photo", "a person, on a blue background"])
    assert conditioning.hidden.shape[:2] == (2, 77)
    output = backbone.denoise(latents, torch.tensor([1, 999]), conditioning)
    assert output.shape == latents.shape == (2, 4, 8, 8)
    assert backbone.decode_latents(output).shape == (2, 3, 64, 64)


def test_an_unknown_shape_is_refused() -> None:
    with pytest.raises(BackboneError, match="expected one of sd15"):
        build_published("sd9")
