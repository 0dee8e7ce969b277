"""Several sources in one sequence at a set ratio: a pure function of (counts, weights, seed, position).

The source of each row repeats in a short cycle in which every source is spread evenly, so that the ratio holds in
every stretch of the run and not on average alone. Each source keeps an order of its own (`imprint.pipelines.order`)
and begins its next epoch when all of its samples were seen, whatever the others do.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np

from imprint.pipelines.order import Slice, plan

_LONGEST_CYCLE = 1000  # rows; weights that need more are rounded to a thousandth


@dataclass(frozen=True, slots=True)
class MixedSlice:
    """Rows [index, index + rows) of the run; `parts` are the slices of each source that they come from."""

    index: int
    rows: int
    parts: tuple[tuple[Slice, ...], ...]

    @property
    def shards(self) -> tuple[int, ...]:
        """The numbers of all shards that are needed, each once."""
        return tuple(sorted({shard for slices in self.parts for part in slices for shard in part.shards}))


class Mix:
    """The cycle of `weights` (positive, any scale), and how many rows of each source come before a position."""

    def __init__(self, weights: Sequence[float]) -> None:
        self.cycle = interleave(weights)
        self.places = [[p for p, source in enumerate(self.cycle) if source == s] for s in range(len(weights))]

    def source(self, position: int) -> int:
        """The source of the row at a position."""
        return self.cycle[position % len(self.cycle)]

    def taken(self, source: int, position: int) -> int:
        """How many rows before `position` come from `source`."""
        places = self.places[source]
        return position // len(self.cycle) * len(places) + bisect_left(places, position % len(self.cycle))

    def end_of(self, source: int, rows: int) -> int:
        """The position right after the last of the first `rows` (more than none) rows of `source`."""
        places = self.places[source]
        cycles, within = divmod(rows - 1, len(places))
        return cycles * len(self.cycle) + places[within] + 1

    def share(self, source: int) -> float:
        """The share of `source` in all rows."""
        return len(self.places[source]) / len(self.cycle)


def interleave(weights: Sequence[float]) -> tuple[int, ...]:
    """One cycle: at each place the source that is furthest behind its share.

    Raises:
        ValueError: no weights, or one is not positive.
    """
    if not weights or any(not (weight > 0 and math.isfinite(weight)) for weight in weights):
        raise ValueError(f"weights={tuple(weights)}: expected positive numbers")
    counts = _counts(weights)
    taken, cycle = [0] * len(counts), list[int]()
    for place in range(1, sum(counts) + 1):
        behind = [count * place - got * sum(counts) for count, got in zip(counts, taken, strict=True)]
        source = max(range(len(counts)), key=lambda s: (taken[s] < counts[s], behind[s]))
        taken[source] += 1
        cycle.append(source)
    return tuple(cycle)


def _counts(weights: Sequence[float]) -> list[int]:
    """Whole numbers in the ratio of the weights, as small as can be; rounded where they would be too many."""
    exact = [Fraction(str(weight)) for weight in weights]
    common = math.lcm(*(weight.denominator for weight in exact))
    counts = [int(weight * common) for weight in exact]
    divisor = math.gcd(*counts)
    counts = [count // divisor for count in counts]
    if sum(counts) <= _LONGEST_CYCLE:
        return counts
    return [max(1, round(weight / sum(exact) * _LONGEST_CYCLE)) for weight in exact]


def source_seed(seed: int, source: int) -> int:
    """The seed of a source's own order; the first source has the run's."""
    return seed if source == 0 else int(np.random.SeedSequence([seed, source]).generate_state(1)[0])


def source_buffer(shuffle_buffer: int, share: float) -> int:
    """The part of the shuffle buffer that a source gets: windows of all sources then last equally long."""
    return math.ceil(shuffle_buffer * share)


def plan_mix(
    counts: Sequence[int], sources: Sequence[int], mix: Mix, *, seed: int, shuffle_buffer: int, start: int, stop: int
) -> Iterator[MixedSlice]:
    """The slices that hold rows [start, stop) of the mixed sequence; each ends with a window of the largest source.

    `counts` and `sources` give the samples of each shard and the number of its source.

    Raises:
        ValueError: a source holds no samples.
    """
    numbers = [[shard for shard, of in enumerate(sources) if of == s] for s in range(len(mix.places))]

    def slices(source: int) -> Iterator[Slice]:
        found = plan(
            [counts[shard] for shard in numbers[source]],
            seed=source_seed(seed, source),
            shuffle_buffer=source_buffer(shuffle_buffer, mix.share(source)),
            start=mix.taken(source, start),
            stop=mix.taken(source, stop),
        )
        for part in found:
            yield replace(part, shards=tuple(numbers[source][shard] for shard in part.shards))

    cutters = [_Cutter(slices(source)) for source in range(len(numbers))]
    leader = max(range(len(numbers)), key=mix.share)
    position = start
    for part in [*slices(leader), None]:
        end = stop if part is None else min(stop, mix.end_of(leader, part.index + part.rows))
        if end > position:
            parts = tuple(cutter.upto(mix.taken(source, end)) for source, cutter in enumerate(cutters))
            yield MixedSlice(position, end - position, parts)
            position = end


class _Cutter:
    """Cuts the slices of one source at the positions where the mixed slices end."""

    def __init__(self, slices: Iterator[Slice]) -> None:
        self.slices = slices
        self.rest: Slice | None = None

    def upto(self, position: int) -> tuple[Slice, ...]:
        """The slices, and the piece of one, before the source's own `position`."""
        found: list[Slice] = []
        while True:
            part = self.rest or next(self.slices, None)
            self.rest = None
            if part is None or part.index >= position:
                self.rest = part
                return tuple(found)
            if part.index + part.rows > position:
                middle = part.first + position - part.index
                self.rest = replace(part, first=middle, index=position)
                part = replace(part, last=middle)
            found.append(part)
