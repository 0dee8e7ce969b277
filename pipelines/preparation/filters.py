"""Which good pictures are left out, and why: too small, too long, seen before."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int, UInt64

from imprint.config.jobs.shards import FilterSpec

HASH_BITS = 64
TOO_SMALL, ASPECT_RATIO, NEAR_DUPLICATE = "too-small", "aspect-ratio", "near-duplicate"


class LeftOut(NamedTuple):
    """A picture by its position, the filter that left it out, and what was measured."""

    position: int
    reason: str
    detail: str


def apply_filters(
    good: Bool[np.ndarray, "n"],
    height: Int[np.ndarray, "n"],
    width: Int[np.ndarray, "n"],
    hashes: UInt64[np.ndarray, "n"],
    spec: FilterSpec,
) -> list[LeftOut]:
    """What is left out of the `good` pictures, in the order of positions; each by the first filter that it fails."""
    left_out = []
    kept = good.copy()
    small = kept & (np.minimum(height, width) < spec.min_side)
    left_out += [
        LeftOut(int(i), TOO_SMALL, f"{width[i]} x {height[i]} px, shorter than {spec.min_side}")
        for i in np.flatnonzero(small)
    ]
    kept &= ~small
    if spec.max_aspect is not None:
        aspect = np.maximum(height, width) / np.maximum(1, np.minimum(height, width))
        long = kept & (aspect > spec.max_aspect)
        left_out += [
            LeftOut(int(i), ASPECT_RATIO, f"{width[i]} x {height[i]} px, {aspect[i]:.2f} : 1")
            for i in np.flatnonzero(long)
        ]
        kept &= ~long
    if spec.duplicate_distance is not None:
        positions = np.flatnonzero(kept)
        pixels = height[positions].astype(np.int64) * width[positions]
        largest_first = np.lexsort((positions, -pixels))
        order = positions[largest_first]
        for place, (of, distance) in near_duplicates(hashes[order], spec.duplicate_distance).items():
            detail = f"of position {order[of]}, {distance} of {HASH_BITS} bits differ"
            left_out.append(LeftOut(int(order[place]), NEAR_DUPLICATE, detail))
    return sorted(left_out)


def near_duplicates(hashes: UInt64[np.ndarray, "n"], distance: int) -> dict[int, tuple[int, int]]:
    """Which hashes differ in at most `distance` bits from one that was kept before them, which, and in how many.

    A hash is cut into distance + 1 bands: two that differ in at most `distance` bits agree in one band at least
    (pigeonhole), so only those are compared. The nearest kept one is named, the first among equals.
    """
    bands = np.array_split(np.arange(HASH_BITS, dtype=np.uint64), distance + 1)
    keys = [((hashes >> band[0]) & np.uint64((1 << len(band)) - 1)).tolist() for band in bands]
    kept: list[dict[int, list[int]]] = [{} for _ in bands]
    found: dict[int, tuple[int, int]] = {}
    for place in range(len(hashes)):
        candidates = np.array(sorted({i for table, key in zip(kept, keys, strict=True)
                                      for i in table.get(key[place], ())}), np.int64)  # fmt: skip
        if len(candidates):
            differing = np.bitwise_count(hashes[candidates] ^ hashes[place])
            nearest = int(differing.argmin())
            if differing[nearest] <= distance:
                found[place] = int(candidates[nearest]), int(differing[nearest])
                continue
        for table, key in zip(kept, keys, strict=True):
            table.setdefault(key[place], []).append(place)
    return found
