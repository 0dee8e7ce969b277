"""Segmentation models of transformers with small random weights in a folder: a semantic head and an instance head."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import (
    DetrConfig,
    MaskFormerConfig,
    MaskFormerForInstanceSegmentation,
    MaskFormerImageProcessor,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SegformerImageProcessor,
    SwinConfig,
)

from imprint.config.data import MaskerSpec
from imprint.errors import DataError
from imprint.pipelines.mask_torch import TransformersMasker, largest_instance
from imprint.pipelines.masks import load_masker

LABELS = {0: "background", 1: "dog", 2: "cat"}


def save_semantic(folder: Path, labels: dict[int, str]) -> Path:
    torch.manual_seed(0)
    config = SegformerConfig(
        num_encoder_blocks=2, depths=[1, 1], sr_ratios=[2, 1], hidden_sizes=[8, 16], patch_sizes=[3, 3], strides=[2, 2],
        num_attention_heads=[1, 2], mlp_ratios=[2, 2], decoder_hidden_size=16, id2label=labels,
        label2id={name: number for number, name in labels.items()},
    )  # fmt: skip
    model = SegformerForSemanticSegmentation(config)
    with torch.no_grad():
        for parameter in model.parameters():  # far from the small start, at which every pixel is alike
            if parameter.dim() > 1:
                parameter.normal_(std=0.5)
    model.save_pretrained(folder)
    SegformerImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def semantic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_semantic(tmp_path_factory.mktemp("segformer"), LABELS)


@pytest.fixture(scope="module")
def instance(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("maskformer")
    torch.manual_seed(0)
    backbone = SwinConfig(
        image_size=64, patch_size=4, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=2,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    decoder = DetrConfig(
        d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=16, decoder_ffn_dim=16, num_queries=4,
    )  # fmt: skip
    config = MaskFormerConfig(
        backbone_config=backbone, decoder_config=decoder, fpn_feature_size=32, mask_feature_size=32,
        id2label={0: "dog", 1: "cat"}, label2id={"dog": 0, "cat": 1},
    )  # fmt: skip
    model = MaskFormerForInstanceSegmentation(config)
    with torch.no_grad():
        model.class_predictor.weight.normal_(std=1.0)
        model.mask_embedder.layers[-1].layers[0].weight.normal_(std=1.0)
    model.save_pretrained(folder)
    MaskFormerImageProcessor(size={"height": 64, "width": 64}, do_reduce_labels=False).save_pretrained(folder)
    return folder


def pictures() -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.integers(0, 255, (h, w, 3), np.uint8) for h, w in ((40, 40), (48, 24), (40, 40))]


def spec_of(folder: Path, **changes: object) -> MaskerSpec:
    return MaskerSpec.model_validate({"kind": "transformers", "model": str(folder), "batch_size": 2, **changes})


@pytest.mark.parametrize(("labels", "numbers"), [((), [1, 2]), (("Dog",), [1]), (("dog", "cat"), [1, 2])])
@torch.no_grad()
def test_a_semantic_mask_is_the_summed_probability_of_the_subjects_labels(
    semantic: Path, labels: tuple[str, ...], numbers: list[int]
) -> None:
    masker = load_masker(spec_of(semantic, labels=labels))
    assert isinstance(masker, TransformersMasker)
    found = masker(pictures())
    for image, mask in zip(pictures(), found, strict=True):
        assert mask.shape == image.shape[:2] and mask.dtype == np.uint8
        logits = masker.model(**masker.processor(images=[image], return_tensors="pt")).logits
        share = F.interpolate(logits, image.shape[:2], mode="bilinear").softmax(1)[0, numbers].sum(0)
        assert np.abs(mask - 255 * share.numpy()).max() < 0.6
    assert found[0].std() > 10, "or any constant would do"


@pytest.mark.parametrize(("labels", "allowed"), [((), (0, 1)), (("cat",), (1,))])
@torch.no_grad()
def test_an_instance_mask_is_the_largest_sure_instance(
    instance: Path, labels: tuple[str, ...], allowed: tuple[int, ...]
) -> None:
    """From the raw outputs: score = p(class) times the mean of the mask's probability over the mask."""
    masker = load_masker(spec_of(instance, labels=labels, threshold=0.2))
    assert isinstance(masker, TransformersMasker)
    found = masker(pictures())
    for image, mask in zip(pictures(), found, strict=True):
        outputs = masker.model(**masker.processor(images=[image], return_tensors="pt"))
        classes = outputs.class_queries_logits[0].softmax(-1)[:, :2].flatten()
        painted = np.full(image.shape[:2], -1)
        numbers = []
        for place in classes.topk(4, sorted=False).indices.tolist():
            logits = outputs.masks_queries_logits[0, place // 2]
            binary = (logits > 0).float()
            score = classes[place] * (logits.sigmoid() * binary).sum() / (binary.sum() + 1e-6)
            if score >= 0.2 and binary.any():
                whole = F.interpolate(binary[None, None], image.shape[:2], mode="nearest")[0, 0] > 0
                painted[whole.numpy()] = len(numbers)
                numbers.append(place % 2)
        sizes = [(painted == i).sum() if label in allowed else 0 for i, label in enumerate(numbers)]
        expected = painted == int(np.argmax(sizes)) if any(sizes) else np.zeros_like(painted, bool)
        assert np.array_equal(mask > 0, expected)
    assert any(0 < mask.mean() < 255 for mask in found)


def test_nothing_sure_is_an_empty_mask(instance: Path) -> None:
    for mask in load_masker(spec_of(instance, threshold=0.999))(pictures()):
        assert not mask.any()


def test_the_largest_instance_of_the_subject() -> None:
    segmentation = torch.tensor([[0, 0, 0], [1, 1, -1], [2, -1, -1]])
    segments = [{"id": 0, "label_id": 5}, {"id": 1, "label_id": 7}, {"id": 2, "label_id": 7}]
    found = largest_instance(segmentation, segments, (7,), (3, 3))
    assert found.tolist() == [[0, 0, 0], [255, 255, 0], [0, 0, 0]]
    assert not largest_instance(None, [], (7,), (3, 3)).any()


def test_labels_that_are_not_the_models(semantic: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no label 'horse', as masks.labels says; it has background, dog, cat"):
        load_masker(spec_of(semantic, labels=("horse",)))
    nameless = save_semantic(tmp_path / "nameless", {0: "wall", 1: "dog"})
    with pytest.raises(DataError, match=r"say in masks.labels which are the subject, of wall, dog"):
        load_masker(spec_of(nameless))


def test_a_folder_without_a_segmentation_model_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="loading the masker"):
        load_masker(spec_of(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(DataError, match="loading the masker"):
        load_masker(spec_of(tmp_path))
