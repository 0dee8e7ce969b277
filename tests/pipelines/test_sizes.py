"""SDXL's size conditioning as it comes out of the reader, against pictures whose pixels say where they lay."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
from PIL import Image
from reading_shards import read
from small_shards import write_shards

from imprint.pipelines.decode import decode_sample
from imprint.pipelines.reading import ReadOptions
from imprint.pipelines.writer import Sample
from imprint.training.batches import collate


def ramp(height: int, width: int) -> np.ndarray:
    """Red says the row and green the column, in units of a whole side."""
    rows, columns = np.mgrid[0:height, 0:width]
    return np.stack([255 * rows / height, 255 * columns / width, 0 * rows], axis=-1).astype(np.uint8)


def png(image: np.ndarray, **how: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG", **how)
    return file.getvalue()


@pytest.mark.parametrize(("height", "width"), [(240, 200), (200, 240), (150, 150), (300, 100)])
def test_the_crop_says_where_its_first_pixel_lay(height: int, width: int) -> None:
    decoded = decode_sample({"png": png(ramp(height, width))}, size=50, max_pixels=10**6)
    *original, top, left, target_height, target_width = decoded["size_conditioning"].tolist()
    assert original == [height, width] and (target_height, target_width) == (50, 50)
    scale = min(height, width) / 50
    row, column = decoded["image"][0, 0, :2] / 255 * (height, width)
    assert row == pytest.approx((top + 0.5) * scale - 0.5, abs=2.5) and top == pytest.approx((height / scale - 50) / 2)
    assert column == pytest.approx((left + 0.5) * scale - 0.5, abs=2.5)


def test_what_was_cropped_before_counts_too() -> None:
    """Of 480 x 400, resized to 240 x 200, rows 20 to 220 lie in the shard; a picture of 50 px is made of them."""
    noted = {"original_size": [480, 400], "crop_top_left": [20, 0], "target_size": [200, 200]}
    parts = {"png": png(ramp(200, 200)), "json": json.dumps({"size_conditioning": noted}).encode()}
    found = [
        decode_sample(parts, size=size, max_pixels=10**6)["size_conditioning"].tolist() for size in (None, 200, 50)
    ]
    assert found == [[480, 400, 20, 0, 200, 200], [480, 400, 20, 0, 200, 200], [480, 400, 5, 0, 50, 50]]


def test_a_jpeg_that_is_decoded_small_or_turned_counts_at_its_own_size() -> None:
    image = np.ascontiguousarray(ramp(800, 1000))
    data = simplejpeg.encode_jpeg(image)
    small = decode_sample({"jpg": data}, size=64, max_pixels=10**6)["size_conditioning"]
    assert small.tolist() == [800, 1000, 0, 8, 64, 64]
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned right by a quarter
    Image.fromarray(image).save(file, "JPEG", exif=exif)
    filled = file.getvalue().replace(b"\xff\xe1", b"\xff\xff\xff\xe1", 1)  # a marker may have fill bytes before it
    for data in (file.getvalue(), filled):
        turned = decode_sample({"jpg": data}, size=None, max_pixels=10**6)
        assert turned["image"].shape[:2] == (1000, 800)
        assert turned["size_conditioning"].tolist() == [1000, 800, 0, 0, 1000, 800]


def test_rows_carry_it_to_the_batch(tmp_path: Path) -> None:
    def noted(number: int, one: Sample) -> Sample:
        note = {"original_size": [100 + number, 90], "crop_top_left": [number, 0], "target_size": [16, 16]}
        return Sample(one.key, {**one.members, "json": json.dumps({"size_conditioning": note}).encode()})

    rows = read(write_shards(tmp_path, [3], noted), ReadOptions(image_size=8))
    batch = collate(rows)
    assert batch["time_ids"].tolist() == [[100 + n, 90, round(n / 2), 0, 8, 8] for n in range(3)]
