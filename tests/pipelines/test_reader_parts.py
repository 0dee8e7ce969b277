"""Further parts of a sample as columns: numbers, arrays and tensors, never by pickle."""

from __future__ import annotations

import io
import json
import pickle
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
from PIL import Image
from reading_shards import keys, read
from safetensors.numpy import save as save_tensors

from imprint.errors import SampleError
from imprint.pipelines.arrays import decode_further, decode_npy, decode_safetensors
from imprint.pipelines.decode import decode_picture, decode_sample
from imprint.pipelines.quarantine import summary
from imprint.pipelines.reading import ReadOptions
from imprint.pipelines.writer import Sample

MakeShards = Callable[..., Path]


def npy(array: np.ndarray, **kwargs: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **kwargs)
    return file.getvalue()


@pytest.mark.parametrize(
    "array",
    [
        np.arange(12, dtype=np.float32).reshape(3, 4), np.asfortranarray(np.arange(6).reshape(2, 3)), np.array(2.5),
        np.zeros((0, 3), np.int8), np.array([True, False]), np.arange(4, dtype=">i4"), np.ones(3, np.complex64),
        np.arange(5, dtype=np.float16),
    ],
    ids=lambda array: f"{array.dtype}-{array.shape}",
)  # fmt: skip
def test_npy_is_read_as_numpy_wrote_it(array: np.ndarray) -> None:
    found = decode_npy(npy(array))
    np.testing.assert_array_equal(found, array)
    assert found.dtype == array.dtype.newbyteorder("=")


class Exploding:
    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("the reader unpickled",)


def header(text: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (npy(np.array([Exploding()], dtype=object), allow_pickle=True), "expected plain numbers"),
        (pickle.dumps(Exploding()), "does not begin"),
        (npy(np.array(["text"])), "expected plain numbers"),
        (npy(np.zeros(3, [("a", "i4")])), "descr|type|numbers"),
        (npy(np.zeros(100))[:-8], "do not fit"),
        (npy(np.zeros(3)) + b"more", "do not fit"),
        (header("{'descr': '<f8', 'fortran_order': False, 'shape': (100000000000,)}"), "do not fit"),
        (header("{'descr': '<f8', 'fortran_order': False, 'shape': (-1,)}"), "shape"),
        (header("__import__('os').abort()"), "malformed"),
        (header("{'descr': '<f8'}"), "shape"),
        (b"\x93NUMPY\x09\x00aaaa", "9"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\xff", "a header of"),
        (b"", "does not begin"),
    ],
)
def test_a_bad_npy_is_refused_and_nothing_is_allocated(data: bytes, match: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(SampleError, match=match) as caught:
            decode_npy(data)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
    assert caught.value.where["reason"] == "bad-array"


@pytest.mark.parametrize(
    "data", [b"", b"\xff" * 8, save_tensors({"a": np.zeros(9)})[:-1], b"\x02" + b"\0" * 7 + b"{}x"]
)
def test_bad_safetensors_are_refused(data: bytes) -> None:
    with pytest.raises(SampleError) as caught:
        decode_safetensors(data)
    assert caught.value.where["reason"] == "bad-tensors"


def test_bfloat16_is_refused_with_advice() -> None:
    header = json.dumps({"a": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}).encode()
    with pytest.raises(SampleError, match="write float16 or float32"):
        decode_safetensors(len(header).to_bytes(8, "little") + header + bytes(4))


def test_further_parts_are_columns_in_any_letter_case(make_shards: MakeShards) -> None:
    def with_parts(number: int, one: Sample) -> Sample:
        more = {
            "CLS": str(number).encode(), "Latents.NPY": npy(np.full((2, 3), number, np.float32)),
            "vae.safetensors": save_tensors({"mean": np.full(4, number), "logvar": np.zeros(4)}),
            "note.txt": f"note {number}".encode(), "other.png": one.members["png"],
        }  # fmt: skip
        return Sample(one.key, one.members | more)

    options = ReadOptions(further=("cls", "latents.npy", "vae.safetensors", "note.txt", "other.png"), image_size=8)
    rows: list[Any] = read(make_shards([3], with_parts), options)
    assert [row["cls"] for row in rows] == [0, 1, 2]
    assert [row["note"] for row in rows] == ["note 0", "note 1", "note 2"]
    np.testing.assert_array_equal(rows[2]["latents"], np.full((2, 3), 2))
    np.testing.assert_array_equal(rows[2]["vae.mean"], np.full(4, 2))
    assert rows[1]["other"].shape == (8, 8, 3)
    assert {"vae.logvar"} <= set(rows[0])


def test_a_sample_without_a_part_that_was_asked_for_is_bad(make_shards: MakeShards, tmp_path: Path) -> None:
    def some(number: int, one: Sample) -> Sample:
        more = {0: {"cls": b"3"}, 1: {}, 2: {"cls": b"three"}, 3: {"cls": b"9" * 40}}[number]
        return Sample(one.key, one.members | more)

    options = ReadOptions(further=("cls",), max_bad_share=1, quarantine=str(tmp_path / "q"))
    assert keys(read(make_shards([4], some), options)) == ["s-0000"]
    assert dict(summary(tmp_path / "q")) == {"missing-part": 1, "bad-class": 2}


@pytest.mark.parametrize("extension", ["pkl", "x.pyd", "pth", "npz", "CLS", "mp4", ""])
def test_other_parts_cannot_be_asked_for(extension: str) -> None:
    with pytest.raises(ValueError, match="expected an extension that ends in"):
        ReadOptions(further=(extension,))


def test_text_parts_must_be_text() -> None:
    with pytest.raises(SampleError):
        decode_further("a.txt", b"\xff\xfe")


def test_masks_can_be_left_unread(make_shards: MakeShards) -> None:
    folder = make_shards([2], lambda _, one: Sample(one.key, one.members | {"mask.png": b"broken"}))
    rows = read(folder, ReadOptions(masks=False))
    assert len(rows) == 2
    assert "mask" not in rows[0]


# -- decoding -------------------------------------------------------------------------------------------------


def noise(height: int, width: int) -> np.ndarray:
    small = np.random.default_rng(0).integers(0, 255, (8, 8, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def test_a_jpeg_is_decoded_to_the_room_that_is_given() -> None:
    data = simplejpeg.encode_jpeg(np.ascontiguousarray(noise(40, 60)))
    place = np.zeros((40, 60, 3), np.uint8)
    image, alpha, shape = decode_picture(data, 10_000, room=lambda *_: place)
    assert np.shares_memory(image, place)
    assert alpha is None and shape == (40, 60)
    np.testing.assert_array_equal(place, decode_picture(data, 10_000)[0])


def test_a_large_jpeg_is_decoded_small_and_looks_the_same() -> None:
    data = simplejpeg.encode_jpeg(np.ascontiguousarray(noise(800, 1000)), quality=95)
    reduced = decode_picture(data, 10**6, at_least=64)[0]
    assert 128 <= min(reduced.shape[:2]) < 256
    assert decode_picture(data, 10**6, at_least=64).shape == (800, 1000), "its own size, whatever it is decoded at"
    quick = decode_sample({"jpg": data}, size=64, max_pixels=10**6)["image"]
    mask = io.BytesIO()
    Image.fromarray(np.zeros((800, 1000), np.uint8)).save(mask, "PNG")
    exact = decode_sample({"jpg": data, "mask.png": mask.getvalue()}, size=64, max_pixels=10**6)["image"]
    assert quick.shape == exact.shape == (64, 64, 3)
    assert np.abs(quick.astype(int) - exact.astype(int)).mean() < 2
    assert decode_picture(data, 10**6, at_least=300)[0].shape == (800, 1000, 3), "never below twice the wanted side"
