from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from imprint.errors import BackboneError
from imprint.features.clip import ClipFeatures


@pytest.fixture(scope="module")
def clip(tiny_clip: Path) -> ClipFeatures:
    return ClipFeatures.load(tiny_clip)


def pictures(count: int = 2, size: int = 16) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_layers_are_the_cls_token_after_every_second_layer(clip: ClipFeatures) -> None:
    """Against hooks on the blocks: the first token, of the layers 2 and 4 of five."""
    seen: list[torch.Tensor] = []
    handles = [
        block.register_forward_hook(lambda module, inputs, output: seen.append(output))
        for block in clip.model.visual.transformer.resblocks
    ]
    with torch.no_grad():
        clip.model.encode_image(clip.preprocess(pictures()))
    for handle in handles:
        handle.remove()
    assert len(seen) == 5
    features = clip.layers(pictures())
    assert len(features) == len(clip.layer_indices) == 2
    torch.testing.assert_close(features[0], seen[1][:, 0])
    torch.testing.assert_close(features[1], seen[3][:, 0])
    # and not every second token of the last layer
    assert not torch.allclose(features[1], seen[4][:, 2])


def test_vit_h_has_sixteen_tapped_layers() -> None:
    import open_clip

    layers = open_clip.get_model_config("ViT-H-14")["vision_cfg"]["layers"]
    assert len(range(1, layers, 2)) == 16


def test_preprocess_undoes_the_range_and_applies_mean_and_std(clip: ClipFeatures) -> None:
    image = pictures()
    out = clip.preprocess(image)
    mean, std = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.3, 0.4])
    torch.testing.assert_close(out, ((image + 1) / 2 - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1))


def test_preprocess_takes_the_centre_square_of_any_size(clip: ClipFeatures) -> None:
    wide = torch.full((1, 3, 32, 64), -1.0)
    wide[..., 16:48] = 1.0
    torch.testing.assert_close(clip.preprocess(wide), clip.preprocess(torch.ones(1, 3, 16, 16)))


def test_joint_embeddings_have_unit_length(clip: ClipFeatures) -> None:
    images, texts = clip.encode_image(pictures()), clip.encode_text(["a cat", "a dog", "a blue hat"])
    assert images.shape == (2, 16) and texts.shape == (3, 16)
    torch.testing.assert_close(images.norm(dim=-1), torch.ones(2))
    torch.testing.assert_close(texts.norm(dim=-1), torch.ones(3))
    raw = clip.model.encode_image(clip.preprocess(pictures())).detach()
    torch.testing.assert_close(images, F.normalize(raw, dim=-1))


def test_nothing_takes_a_gradient(clip: ClipFeatures) -> None:
    assert not any(parameter.requires_grad for parameter in clip.model.parameters())
    assert not any(feature.requires_grad for feature in clip.layers(pictures().requires_grad_()))


def test_fingerprint_follows_the_weights(tiny_clip: Path) -> None:
    first, second = ClipFeatures.load(tiny_clip), ClipFeatures.load(tiny_clip)
    assert first.fingerprint() == second.fingerprint()
    with torch.no_grad():
        second.model.visual.proj.mul_(1.5)
    assert first.fingerprint() != second.fingerprint()


def test_loads_an_architecture_with_a_file(monkeypatch: pytest.MonkeyPatch, tiny_clip: Path) -> None:
    import open_clip

    config = json.loads((tiny_clip / "open_clip_config.json").read_text())["model_cfg"]
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny-for-test", config)
    clip = ClipFeatures.load(f"tiny-for-test:{tiny_clip / 'open_clip_model.safetensors'}")
    assert clip.fingerprint() == ClipFeatures.load(tiny_clip).fingerprint()
    assert clip.mean == open_clip.OPENAI_DATASET_MEAN


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("no folder", "open_clip_config.json is missing"),
        ("no weights", "open_clip_model.safetensors is missing"),
        ("cut weights", "loading CLIP from"),
        ("bad config", "loading CLIP from"),
    ],
)
def test_a_broken_folder_is_a_clear_error(tiny_clip: Path, tmp_path: Path, broken: str, message: str) -> None:
    folder = tmp_path / "clip"
    if broken != "no folder":
        shutil.copytree(tiny_clip, folder)
    weights = folder / "open_clip_model.safetensors"
    if broken == "no weights":
        weights.unlink()
    if broken == "cut weights":
        weights.write_bytes(weights.read_bytes()[:1000])
    if broken == "bad config":
        (folder / "open_clip_config.json").write_text("{")
    with pytest.raises(BackboneError, match=message):
        ClipFeatures.load(folder)


def test_pickles_are_refused(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(b"0")
    with pytest.raises(BackboneError, match=r"not a \.safetensors file"):
        ClipFeatures.load(f"ViT-B-32:{tmp_path / 'weights.bin'}")


def test_a_tower_without_cls_is_refused(tmp_path: Path) -> None:
    import open_clip

    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    save_file(open_clip.CLIP(**config).state_dict(), tmp_path / "open_clip_model.safetensors")
    with pytest.raises(BackboneError, match="ModifiedResNet"):
        ClipFeatures.load(tmp_path)
