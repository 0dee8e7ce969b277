"""Maskers: own masks are kept, the embedded one finds a subject, ONNX models get the input they were trained on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from imprint.config.data import MaskerSpec
from imprint.errors import DataError
from imprint.pipelines.mask_models import OnnxMasker, embedded_mask
from imprint.pipelines.masks import MaskStage, load_masker, mask_rows


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
    found = mask_rows(rows, lambda image: image[..., 0] + 1, keep_own=True)["mask"]
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


@pytest.mark.parametrize(("size", "mean", "std"), [(32, 0.485, 0.229), (1024, 0.5, 1.0)])
def test_onnx_models_get_their_own_normalisation(tmp_path: Path, size: int, mean: float, std: float) -> None:
    masker = OnnxMasker(str(onnx_of_first_channel(tmp_path / "m.onnx", size)))
    assert (masker.mean[0], masker.std[0]) == pytest.approx((mean, std))
    image = np.zeros((24, 48, 3), np.uint8)
    image[:, 24:, 0] = 100
    found = masker(image)
    assert found.shape == (24, 48)
    assert found[:, 28:].min() > 200, "Lanczos rings at the edge, so a flat part is a little below the maximum"
    assert found[:, :20].max() < 50


def test_onnx_without_a_model_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=r"masks\.model"):
        MaskerSpec(kind="onnx")
    with pytest.raises(DataError, match="no file at"):
        load_masker(MaskerSpec(kind="onnx", model=str(tmp_path / "none.onnx")))
    (tmp_path / "broken.onnx").write_bytes(b"nonsense")
    with pytest.raises(DataError, match="loading the masker"):
        load_masker(MaskerSpec(kind="onnx", model=str(tmp_path / "broken.onnx")))
