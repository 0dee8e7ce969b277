"""Maskers: own masks are kept, the embedded one finds a subject, ONNX models get the input they were trained on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from imprint.config.data import MaskerSpec
from imprint.errors import DataError
from imprint.evaluation.attributes import AttributeReader
from imprint.pipelines.mask_embedded import embedded_mask
from imprint.pipelines.mask_onnx import CONVENTIONS, OnnxMasker
from imprint.pipelines.masks import MaskStage, cut_out, load_masker, mask_rows


def disc(size: int, ground: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[:size, :size]
    inside = (y - 0.6 * size) ** 2 + (x - 0.5 * size) ** 2 < (0.28 * size) ** 2
    image = ground.copy()
    image[inside] = (200, 40, 30)
    return image, inside


def stripes(size: int) -> np.ndarray:
    columns = (np.arange(size) // 6) % 2
    return np.where(columns[None, :, None] > 0, (20, 120, 60), (230, 230, 120)).astype(np.uint8).repeat(size, 0)


def gradient(size: int) -> np.ndarray:
    ramp = np.linspace(0, 1, size)[:, None, None]
    return ((1 - ramp) * (40, 90, 200) + ramp * (120, 200, 240)).astype(np.uint8).repeat(size, 1)


@pytest.mark.parametrize("ground", ["plain", "stripes", "gradient"])
@pytest.mark.parametrize("size", [64, 128])
def test_the_embedded_masker_finds_a_disc(ground: str, size: int) -> None:
    plain = np.full((size, size, 3), (70, 120, 200), np.uint8)
    image, inside = disc(size, {"plain": plain, "stripes": stripes(size), "gradient": gradient(size)}[ground])
    found = embedded_mask(image) > 127
    assert (found & inside).sum() / (found | inside).sum() > 0.9


def test_a_picture_of_nothing_has_an_empty_mask() -> None:
    assert not embedded_mask(np.full((32, 32, 3), 90, np.uint8)).any()


def test_own_masks_are_kept_and_others_made() -> None:
    images = np.stack([disc(64, stripes(64))[0]] * 2)
    own = np.full((64, 64), 9, np.uint8)
    rows = {"image": images, "mask": np.stack([own, own]), "has_mask": np.array([True, False])}
    kept = MaskStage(MaskerSpec(kind="sample"))(rows)
    assert (kept["mask"][0] == 9).all()
    assert np.array_equal(kept["mask"][1], embedded_mask(images[1]))
    assert kept["has_mask"].all()
    made = MaskStage(MaskerSpec(kind="embedded"))(rows)
    assert np.array_equal(made["mask"][0], made["mask"][1])


def test_masks_of_several_sizes_stay_ragged() -> None:
    images = np.empty(2, dtype=object)
    images[:] = [np.zeros((8, 9, 3), np.uint8), np.zeros((4, 4, 3), np.uint8)]
    masks = np.empty(2, dtype=object)
    masks[:] = [np.zeros((8, 9), np.uint8), np.zeros((4, 4), np.uint8)]
    rows = {"image": images, "mask": masks, "has_mask": np.array([False, False])}
    found = mask_rows(rows, lambda images: [image[..., 0] + 1 for image in images], keep_own=True)["mask"]
    assert [mask.shape for mask in found] == [(8, 9), (4, 4)]


def proto(number: int, value: int | str | bytes) -> bytes:
    """One field of a protobuf message: a varint, or bytes with their length."""

    def varint(n: int) -> bytes:
        return bytes([n]) if n < 128 else bytes([n & 127 | 128]) + varint(n >> 7)

    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def onnx_of_first_channel(path: Path, size: int) -> Path:
    """A model whose output is its input's first channel, so that a test sees what it is given.

    Written field by field after onnx.proto, since the `onnx` package is no dependency.
    """

    def floats(name: str, *shape: int) -> bytes:
        dims = b"".join(proto(1, proto(1, side)) for side in shape)
        return proto(1, name) + proto(2, proto(1, proto(1, 1) + proto(2, dims)))

    index = proto(1, 1) + proto(2, 7) + proto(8, "first") + proto(9, bytes(8))  # int64 [0]
    axis = proto(1, "axis") + proto(3, 1) + proto(20, 2)
    node = proto(1, "image") + proto(1, "first") + proto(2, "out") + proto(4, "Gather") + proto(5, axis)
    tensors = proto(11, floats("image", 1, 3, size, size)) + proto(12, floats("out", 1, 1, size, size))
    graph = proto(1, node) + proto(2, "g") + proto(5, index) + tensors
    path.write_bytes(proto(1, 8) + proto(7, graph) + proto(8, proto(2, 17)))
    return path


def onnx_spec(path: Path, **changes: object) -> MaskerSpec:
    return MaskerSpec.model_validate({"kind": "onnx", "model": str(path), **changes})


@pytest.mark.parametrize(("size", "name"), [(32, "u2net"), (320, "u2net"), (1024, "isnet")])
def test_onnx_models_are_known_by_their_input(tmp_path: Path, size: int, name: str) -> None:
    masker = OnnxMasker(onnx_spec(onnx_of_first_channel(tmp_path / "m.onnx", size)))
    assert masker.convention == CONVENTIONS[name]
    image = np.zeros((24, 48, 3), np.uint8)
    image[:, 24:, 0] = 100
    (found,) = masker([image])
    assert found.shape == (24, 48)
    assert found[:, 28:].min() > 200, "Lanczos rings at the edge, so a flat part is a little below the maximum"
    assert found[:, :20].max() < 50


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("isnet", [80 / 160 - 0.5, 160 / 160 - 0.5]),
        ("u2net", [(80 / 160 - 0.485) / 0.229, (160 / 160 - 0.485) / 0.229]),
        ("imgly", [(80 - 128) / 256, (160 - 128) / 256]),
    ],
)
def test_onnx_input_by_hand(name: str, expected: list[float]) -> None:
    image = np.zeros((1, 2, 3), np.uint8)
    image[0, :, 0] = 80, 160
    prepared = CONVENTIONS[name].prepare(image)
    assert prepared.shape == (1, 3, 1, 2)
    assert prepared[0, 0, 0].tolist() == pytest.approx(expected, abs=1e-6)


def test_an_alpha_is_taken_as_it_is_and_a_score_is_stretched(tmp_path: Path) -> None:
    """The model gives its input's first channel back: (rgb - 128) / 256 here, so 192 becomes an alpha of a quarter."""
    path = onnx_of_first_channel(tmp_path / "m.onnx", 16)
    image = np.full((16, 16, 3), 128, np.uint8)
    image[8:, :, 0] = 192
    (alpha,) = OnnxMasker(onnx_spec(path, convention="imgly"))([image])
    assert (alpha[0, 0], alpha[-1, 0]) == (0, 63)
    (score,) = OnnxMasker(onnx_spec(path, convention="isnet"))([image])
    assert (score[0, 0], score[-1, 0]) == (0, 255)


def test_a_cut_out_lies_on_plain_ground() -> None:
    image = np.full((1, 3, 3), (200, 100, 0), np.uint8)
    mask = np.array([[255, 0, 51]], np.uint8)
    found = cut_out(image, mask, (100, 200, 250))
    # alpha 0.2: 0.2 * (200, 100, 0) + 0.8 * (100, 200, 250)
    assert found[0].tolist() == [[200, 100, 0], [100, 200, 250], [120, 180, 200]]
    rows = {"image": image[None], "mask": mask[None], "has_mask": np.array([True])}
    stage = MaskStage(MaskerSpec(kind="sample", cutout=(100, 200, 250)))
    assert np.array_equal(stage(rows)["cutout"][0], found)
    assert "cutout" not in MaskStage(MaskerSpec(kind="sample"))(rows)


def test_the_attribute_readers_masks_are_its_own() -> None:
    reader = AttributeReader.load("face-attributes")
    images = np.random.default_rng(0).integers(0, 255, (3, 80, 64, 3), np.uint8)
    found = load_masker(MaskerSpec(kind="attributes", batch_size=2))(list(images))
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1
    expected = reader.masks(pixels)[:, 0] * 255
    assert np.abs(np.stack(found) - expected.numpy()).max() <= 0.51


def test_a_fallback_is_loaded_when_a_sample_lacks_its_mask(tmp_path: Path) -> None:
    path = onnx_of_first_channel(tmp_path / "m.onnx", 16)
    stage = MaskStage(MaskerSpec(kind="sample", fallback="onnx", model=str(path)))
    image = np.full((1, 16, 16, 3), 10, np.uint8)
    image[:, 8:] = 90
    own = {"image": image, "mask": np.full((1, 16, 16), 7, np.uint8), "has_mask": np.array([True])}
    assert (stage(own)["mask"] == 7).all()
    assert "masker" not in stage.__dict__
    made = stage({**own, "has_mask": np.array([False])})["mask"][0]
    assert (made[0, 0], made[-1, 0]) == (0, 255)


def test_onnx_without_a_model_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=r"masks\.model"):
        MaskerSpec(kind="onnx")
    with pytest.raises(DataError, match="no file at"):
        load_masker(MaskerSpec(kind="onnx", model=str(tmp_path / "none.onnx")))
    (tmp_path / "broken.onnx").write_bytes(b"nonsense")
    with pytest.raises(DataError, match="loading the masker"):
        load_masker(MaskerSpec(kind="onnx", model=str(tmp_path / "broken.onnx")))
    with pytest.raises(ValidationError, match="three numbers from 0 to 255"):
        MaskerSpec(cutout=(0, 0, 256))
    with pytest.raises(ValidationError, match=r"transformers needs masks\.model"):
        MaskerSpec(fallback="transformers")
