"""From the survey to the shards: what is kept, in which order, in which shape and in which file."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from imprint.config.jobs.shards import PrepareShards
from imprint.errors import DataError
from imprint.pipelines.preparation.buckets import nearest_bucket, shapes_of
from imprint.pipelines.preparation.filters import LeftOut, apply_filters
from imprint.pipelines.sizes import Shape
from imprint.pipelines.writer import shard_name

_KEY_CHARACTERS = 40


@dataclass(frozen=True)
class ShardPlan:
    """A shard: the positions of its pictures in the order of writing, and the one shape that they get."""

    name: str
    positions: tuple[int, ...]
    shape: Shape | None


@dataclass(frozen=True)
class Plan:
    """All shards, and what is in none of them: bad pictures by position, and filtered ones."""

    shards: tuple[ShardPlan, ...]
    bad: tuple[int, ...]
    filtered: tuple[LeftOut, ...]

    def buckets(self) -> dict[str, list[str]]:
        """Names of shards by shape, as in {"512x768": [...]} for a height of 512; empty where shapes are kept."""
        found: dict[str, list[str]] = {}
        for shard in self.shards:
            if shard.shape is not None:
                found.setdefault(f"{shard.shape[0]}x{shard.shape[1]}", []).append(shard.name)
        return found


def plan_shards(survey: pa.Table, spec: PrepareShards) -> Plan:
    """A pure function of the survey and the spec.

    Raises:
        DataError: too many pictures are bad, or none is left.
    """
    good = np.array([reason == "" for reason in survey["reason"].to_pylist()], bool)
    height, width = survey["height"].to_numpy(), survey["width"].to_numpy()
    _check_share(survey, good, spec.reader.max_bad_share)
    filtered = apply_filters(good, height, width, survey["hash"].to_numpy(), spec.filters)
    kept = good.copy()
    kept[[one.position for one in filtered]] = False
    order = np.flatnonzero(kept)
    if not len(order):
        reasons = dict(Counter(one.reason for one in filtered))
        raise DataError(
            f"planning shards: no picture is left of {len(good)}; {int((~good).sum())} are bad, filters left out "
            f"{reasons}; loosen the filters"
        )
    if spec.shuffle:
        order = np.random.default_rng([spec.seed, len(order)]).permutation(order)
    by_shape: dict[Shape | None, list[int]] = {}
    shapes = shapes_of(spec.pictures)
    for position in order.tolist():
        shape = None if shapes is None else nearest_bucket(int(height[position]), int(width[position]), shapes)
        by_shape.setdefault(shape, []).append(position)
    shards: list[ShardPlan] = []
    for shape in sorted(by_shape, key=lambda shape: shape or (0, 0)):
        positions = by_shape[shape]
        for start in range(0, len(positions), spec.samples_per_shard):
            part = tuple(positions[start : start + spec.samples_per_shard])
            shards.append(ShardPlan(shard_name(spec.split, len(shards)), part, shape))
    return Plan(tuple(shards), tuple(np.flatnonzero(~good).tolist()), tuple(filtered))


def sample_key(position: int, name: str) -> str:
    """A key of its own for each picture, in plain characters without dots: position in the input, and its name."""
    words = re.sub(r"[^a-z0-9_]+", "-", name.lower()).strip("-")[-_KEY_CHARACTERS:].strip("-")
    return f"{position:08d}-{words}" if words else f"{position:08d}"


def _check_share(survey: pa.Table, good: np.ndarray, max_share: float) -> None:
    bad = int((~good).sum())
    if bad <= max_share * len(good):
        return
    reasons = Counter(reason for reason in survey["reason"].to_pylist() if reason)
    counts = ", ".join(f"{reason}: {count}" for reason, count in reasons.most_common())
    first = survey.filter(pa.array(~good)).slice(0, 1).to_pylist()[0]
    raise DataError(
        f"reading pictures: {bad} of {len(good)} are bad ({counts}), more than reader.max_bad_share={max_share} "
        f"allows; the first is {first['source']}: {first['detail']}. Mend them or raise the share"
    )
