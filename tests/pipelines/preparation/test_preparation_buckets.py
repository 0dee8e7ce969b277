"""Buckets by aspect ratio, crops, and what SDXL is told of them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from imprint.pipelines.preparation.buckets import (
    apply_crop,
    make_buckets,
    nearest_bucket,
    place_crop,
)
from imprint.pipelines.sizes import size_conditioning

# SDXL's own list, height x width; arXiv:2307.01952, appendix I (the wide half; the tall half mirrors it).
SDXL = {
    (512, 2048), (512, 1984), (512, 1920), (512, 1856), (576, 1792), (576, 1728), (576, 1664), (640, 1600),
    (640, 1536), (704, 1472), (704, 1408), (704, 1344), (768, 1344), (768, 1280), (832, 1216), (832, 1152),
    (896, 1152), (896, 1088), (960, 1088), (960, 1024), (1024, 1024),
}  # fmt: skip


def test_buckets_at_sdxls_size_are_on_sdxls_list() -> None:
    buckets = make_buckets(1024, 64, 4.0)
    assert set(buckets) <= SDXL | {(width, height) for height, width in SDXL}
    assert len(buckets) == 17 and buckets[0] == (512, 2048) and (1024, 1024) in buckets
    assert {(width, height) for height, width in buckets} == set(buckets)


@pytest.mark.parametrize(("size", "step", "longest"), [(512, 64, 2.0), (256, 8, 3.0), (64, 16, 1.0), (100, 64, 2.0)])
def test_buckets_keep_to_area_step_and_ratio(size: int, step: int, longest: float) -> None:
    for height, width in make_buckets(size, step, longest):
        assert height % step == width % step == 0
        assert height * width <= size * size
        assert max(height, width) <= longest * min(height, width)


def test_the_nearest_bucket_crops_the_least() -> None:
    buckets = make_buckets(512, 64, 3.0)
    for height, width in [(400, 400), (300, 500), (500, 300), (1000, 250), (333, 334)]:

        def lost(shape: tuple[int, int], height: int = height, width: int = width) -> float:
            scale = max(shape[0] / height, shape[1] / width)  # share of the picture that the crop takes away
            return 1 - shape[0] * shape[1] / (height * scale * width * scale)

        best = min(map(lost, buckets))
        assert math.isclose(lost(nearest_bucket(height, width, buckets)), best, abs_tol=1e-12)


@pytest.mark.parametrize("shares", [(0.0, 0.0), (0.5, 0.5), (1.0, 1.0), (0.3, 0.9)])
@pytest.mark.parametrize("original", [(100, 300), (300, 100), (37, 41), (64, 128), (2000, 1999)])
def test_a_crop_covers_its_target_from_inside_the_resized_picture(
    original: tuple[int, int], shares: tuple[float, float]
) -> None:
    crop = place_crop(original, (64, 128), shares)
    assert crop.resized[0] == 64 or crop.resized[1] == 128  # no smaller picture would cover it
    for corner, target, side in zip(crop.top_left, crop.target, crop.resized, strict=True):
        assert 0 <= corner <= side - target
    assert apply_crop(np.zeros((*original, 3), np.uint8), crop).shape == (64, 128, 3)
    assert apply_crop(np.zeros(original, np.uint8), crop).shape == (64, 128)


def test_the_record_says_where_each_pixel_came_from() -> None:
    # Red grows down, green grows to the right; a crop's corner must show the values of its place in the original.
    rows, columns = np.mgrid[0:240, 0:200]
    image = np.stack([rows, columns, np.zeros_like(rows)], axis=-1).astype(np.uint8)
    crop = place_crop((240, 200), (60, 100), (0.25, 0.5))
    assert crop.resized == (120, 100) and crop.top_left == (15, 0)
    found = apply_crop(image, crop).astype(int)
    assert abs(found[0, 50, 0] - 2 * 15) <= 1 and abs(found[-1, 50, 0] - 2 * 74) <= 1
    assert abs(found[30, 0, 1] - 0) <= 1 and abs(found[30, -1, 1] - 199) <= 1
    assert crop.record() == {"original_size": [240, 200], "crop_top_left": [15, 0], "target_size": [60, 100]}


def test_a_picture_of_the_targets_size_is_not_touched() -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 128, 3), np.uint8)
    assert apply_crop(image, place_crop((64, 128), (64, 128))) is image
    assert apply_crop(image, place_crop((64, 128), None)) is image


def test_time_ids_stand_in_diffusers_order() -> None:
    # diffusers' StableDiffusionXLPipeline._get_add_time_ids: original_size + crops_coords_top_left + target_size.
    record = {"size_conditioning": place_crop((240, 200), (60, 100), (0.25, 0.5)).record()}
    found = size_conditioning(record, (60, 100))
    assert found.dtype == np.int32 and found.tolist() == [240, 200, 15, 0, 60, 100]
    for odd in (3, {"original_size": [1, 2]}, {"original_size": [1, "2"], "crop_top_left": [0, 0]}, [[1, 2], [0, 0]]):
        assert size_conditioning({"size_conditioning": odd}, (60, 100)).tolist() == [60, 100, 0, 0, 60, 100]
    assert size_conditioning({}, (60, 100)).tolist() == [60, 100, 0, 0, 60, 100]
