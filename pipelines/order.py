"""The order of samples: a pure function of (counts, seed, epoch), the same on any number of workers.

Two levels: shards are permuted, then the samples of neighbouring shards are permuted together in windows of about
`shuffle_buffer` samples. A run reads the epochs one after another as one long sequence, so a position in it is a
single number: samples seen so far.

Permutations sort the raw 64-bit words of a Philox counter, which NumPy keeps stable between versions (its
`Generator.permutation` it does not: NEP 19).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

_SHARDS, _SAMPLES = 0, 1  # streams of the counter


@dataclass(frozen=True, slots=True)
class Slice:
    """Rows [first, last) of a window.

    `shards` index the list of shards; `index` is the position in the run of the first row.
    """

    epoch: int
    window: int
    shards: tuple[int, ...]
    first: int
    last: int
    index: int

    @property
    def rows(self) -> int:
        return self.last - self.first


def permutation(n: int, *key: int) -> Int[np.ndarray, "n"]:
    """A permutation of range(n) that depends on `key` alone."""
    words = np.random.SeedSequence(key).generate_state(2, np.uint64)
    return np.argsort(np.random.Philox(key=words).random_raw(n), kind="stable")


def windows(counts: Sequence[int], *, seed: int, epoch: int, shuffle_buffer: int) -> list[tuple[int, ...]]:
    """The shards of each window of an epoch; without a buffer, each shard in written order."""
    if shuffle_buffer <= 0:
        return [(shard,) for shard in range(len(counts)) if counts[shard]]
    found: list[tuple[int, ...]] = []
    current: list[int] = []
    for shard in permutation(len(counts), seed, epoch, _SHARDS):
        if counts[shard]:
            current.append(int(shard))
        if sum(counts[s] for s in current) >= shuffle_buffer:
            found.append(tuple(current))
            current = []
    return [*found, tuple(current)] if current else found


def window_order(counts: Mapping[int, int], part: Slice, *, seed: int, shuffle_buffer: int) -> Int[np.ndarray, "n 2"]:
    """All rows of a slice's window in their order: (shard, sample within it)."""
    pairs = np.concatenate(
        [np.stack([np.full(counts[s], s), np.arange(counts[s])], axis=1) for s in part.shards], dtype=np.int64
    )
    if shuffle_buffer <= 0:
        return pairs
    return pairs[permutation(len(pairs), seed, part.epoch, _SAMPLES, part.window)]


def plan(counts: Sequence[int], *, seed: int, shuffle_buffer: int, start: int, stop: int) -> Iterator[Slice]:
    """The slices that hold rows [start, stop) of the endless sequence of epochs."""
    per_epoch = sum(counts)
    if per_epoch <= 0:
        raise ValueError("the shards hold no samples")
    position = start
    while position < stop:
        epoch = position // per_epoch
        begin = epoch * per_epoch
        for number, shards in enumerate(windows(counts, seed=seed, epoch=epoch, shuffle_buffer=shuffle_buffer)):
            end = begin + sum(counts[s] for s in shards)
            if end > position:
                last = min(end, stop)
                yield Slice(epoch, number, shards, position - begin, last - begin, position)
                position = last
            begin = end
            if position >= stop:
                return
