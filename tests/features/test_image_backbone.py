"""Image networks of timm and transformers by path, against those libraries themselves."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from transformers import Dinov2Config, Dinov2Model

from imprint.errors import BackboneError
from imprint.features.image_backbone import ImageBackbone


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(3, 3, 56, 56, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_a_timm_network_from_a_file(tmp_path: Path, images: torch.Tensor) -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_vit", pretrained=False).eval()
    save_file(model.state_dict(), tmp_path / "vit.safetensors")
    network = ImageBackbone.load(f"timm:test_vit:{tmp_path / 'vit.safetensors'}")
    got = network(images, batch_size=2)
    data = timm.data.resolve_model_data_config(model)
    size = data["input_size"][1:]
    pixels = F.interpolate(images, size, mode="bicubic", antialias=True, align_corners=False).clamp(-1, 1) / 2 + 0.5
    mean, std = (torch.tensor(data[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        features = model.forward_head(model.forward_features((pixels - mean) / std), pre_logits=True)
    torch.testing.assert_close(got, F.normalize(features, dim=-1), rtol=1e-4, atol=1e-5)
    assert not any(p.requires_grad for p in network.model.parameters())


def test_a_transformers_folder_reads_the_cls_token(tmp_path: Path, images: torch.Tensor) -> None:
    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14)
    model = Dinov2Model(config).eval()
    model.save_pretrained(tmp_path / "dino", safe_serialization=True)
    (tmp_path / "dino" / "preprocessor_config.json").write_text(
        '{"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}'
    )
    got = ImageBackbone.load(tmp_path / "dino")(images)
    pixels = F.interpolate(images, (28, 28), mode="bicubic", antialias=True, align_corners=False).clamp(-1, 1) / 2 + 0.5
    mean, std = torch.tensor([0.5, 0.4, 0.3]).view(1, 3, 1, 1), torch.tensor([0.2, 0.3, 0.4]).view(1, 3, 1, 1)
    with torch.no_grad():
        expected = F.normalize(model(pixel_values=(pixels - mean) / std).last_hidden_state[:, 0], dim=-1)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(got.norm(dim=-1), torch.ones(3))


@pytest.mark.parametrize(
    "name", ["timm:no_such_architecture:weights.safetensors", "timm:test_vit:weights.bin", "/no/folder"]
)
def test_what_is_not_there_is_a_clear_error(name: str) -> None:
    with pytest.raises(BackboneError, match="loading the image network"):
        ImageBackbone.load(name)
