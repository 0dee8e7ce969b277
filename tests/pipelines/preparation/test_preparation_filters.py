"""Filters: each counted by its reason; near-duplicates against brute force, hashes against the transform itself."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from scipy.fft import dctn
from some_pictures import drawn, encoded

from imprint.config.jobs.shards import FilterSpec
from imprint.pipelines.decode import decode_picture
from imprint.pipelines.preparation.filters import apply_filters, near_duplicates
from imprint.pipelines.preparation.survey import perceptual_hash


def test_each_picture_is_left_out_by_the_first_filter_that_it_fails() -> None:
    height = np.array([100, 300, 100, 300, 300, 400], np.int32)
    width = np.array([100, 900, 900, 300, 300, 400], np.int32)
    hashes = np.array([1, 2, 3, 0b1111, 0b0111, 1 << 40], np.uint64)
    good = np.array([True] * 6)
    spec = FilterSpec(min_side=200, max_aspect=2.0, duplicate_distance=1)
    found = apply_filters(good, height, width, hashes, spec)
    assert [(one.position, one.reason) for one in found] == [
        (0, "too-small"), (1, "aspect-ratio"), (2, "too-small"), (4, "near-duplicate"),
    ]  # fmt: skip
    assert found[3].detail == "of position 3, 1 of 64 bits differ"
    assert apply_filters(good, height, width, hashes, FilterSpec()) == []


def test_bad_pictures_are_no_duplicates() -> None:
    hashes = np.zeros(3, np.uint64)
    sides = np.array([0, 9, 9], np.int32)
    found = apply_filters(np.array([False, True, True]), sides, sides, hashes, FilterSpec(duplicate_distance=0))
    assert [one.position for one in found] == [2]


def test_of_near_duplicates_the_largest_stays() -> None:
    sides = np.array([10, 30, 20], np.int32)
    found = apply_filters(np.ones(3, bool), sides, sides, np.zeros(3, np.uint64), FilterSpec(duplicate_distance=0))
    assert [one.position for one in found] == [0, 2]


@pytest.mark.parametrize("distance", [0, 1, 4, 9, 16])
def test_near_duplicates_are_those_of_brute_force(distance: int) -> None:
    rng = np.random.default_rng(distance)
    hashes = [int(value) for value in rng.integers(0, 1 << 63, 60, np.uint64)]
    for _ in range(240):  # neighbours at every distance up to 20
        value = hashes[int(rng.integers(60))]
        for bit in rng.choice(64, int(rng.integers(21)), replace=False):
            value ^= 1 << int(bit)
        hashes.append(value)
    kept: list[int] = []
    expected = {}
    for place, value in enumerate(hashes):
        differing = [(bin(value ^ hashes[other]).count("1"), other) for other in kept]
        if differing and min(differing)[0] <= distance:
            expected[place] = min(differing)[::-1]
        else:
            kept.append(place)
    assert near_duplicates(np.array(hashes, np.uint64), distance) == expected
    assert len(expected) > 5


def test_the_hash_is_the_sign_of_low_frequencies_about_their_median() -> None:
    # phash as published: grey, 32 x 32, two-dimensional DCT-II, the 8 x 8 lowest frequencies against their median.
    image = drawn(3, 200, 120)
    small = Image.fromarray(image).convert("L").resize((32, 32), Image.Resampling.LANCZOS)
    low = dctn(np.asarray(small, np.float64))[:8, :8]
    bits = "".join("1" if value > np.median(low) else "0" for value in low.ravel())
    assert perceptual_hash(image) == int(bits, 2)


def test_the_hash_stays_near_under_compression_and_size_and_goes_far_for_others() -> None:
    def distance(one: np.ndarray, other: np.ndarray) -> int:
        return bin(perceptual_hash(one) ^ perceptual_hash(other)).count("1")

    image = drawn(1, 400, 300)
    squeezed = decode_picture(encoded(image, "JPEG", quality=30), 1_000_000).image
    smaller = np.asarray(Image.fromarray(image).resize((150, 200), Image.Resampling.LANCZOS))
    assert distance(image, squeezed) <= 4 and distance(image, smaller) <= 4
    others = [distance(image, drawn(number, 400, 300)) for number in range(2, 30)]
    assert min(others) > 12
