"""The order is a pure function of (counts, seed, epoch), and a position in it is a single number."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imprint.pipelines.order import permutation, plan, window_order

COUNTS = [5, 0, 7, 3, 11, 2]


def rows(counts: list[int], seed: int, buffer: int, start: int, stop: int) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    numbered = dict(enumerate(counts))
    for part in plan(counts, seed=seed, shuffle_buffer=buffer, start=start, stop=stop):
        assert part.index == start + len(found)
        order = window_order(numbered, part, seed=seed, shuffle_buffer=buffer)
        found += [(int(s), int(i)) for s, i in order[part.first : part.last]]
    return found


EVERY = sorted((shard, i) for shard, count in enumerate(COUNTS) for i in range(count))


@pytest.mark.parametrize("buffer", [0, 1, 8, 1000])
def test_each_epoch_holds_every_sample_once(buffer: int) -> None:
    for epoch in range(3):
        assert sorted(rows(COUNTS, 3, buffer, epoch * 28, epoch * 28 + 28)) == EVERY


def test_without_a_buffer_the_order_is_the_written_one() -> None:
    assert rows(COUNTS, 3, 0, 0, 28) == EVERY


def test_epochs_and_seeds_differ_and_repeat() -> None:
    first = rows(COUNTS, 3, 8, 0, 28)
    assert first != rows(COUNTS, 3, 8, 28, 56)
    assert first != rows(COUNTS, 4, 8, 0, 28)
    assert first == rows(COUNTS, 3, 8, 0, 28)


def test_a_buffer_mixes_shards() -> None:
    shards = [shard for shard, _ in rows([50] * 4, 0, 100, 0, 100)]
    assert len(set(shards)) == 2
    assert sum(a != b for a, b in pairwise(shards)) > 20


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(sum),
    seed=st.integers(0, 2**31),
    buffer=st.integers(0, 20),
    cuts=st.lists(st.integers(0, 90), max_size=4),
)
def test_reading_on_from_any_position_gives_the_rows_of_one_reading(
    counts: list[int], seed: int, buffer: int, cuts: list[int]
) -> None:
    whole = rows(counts, seed, buffer, 0, 90)
    assert len(whole) == 90
    ends = sorted({0, *cuts, 90})
    pieces = [rows(counts, seed, buffer, a, b) for a, b in pairwise(ends)]
    assert [row for piece in pieces for row in piece] == whole


def test_permutations_depend_on_numpys_stable_part_alone() -> None:
    """Against the published words of Philox: a change here would reshuffle every run that is resumed."""
    words = np.random.SeedSequence([1, 2]).generate_state(2, np.uint64)
    raw = np.random.Philox(key=words).random_raw(6)
    assert permutation(6, 1, 2).tolist() == sorted(range(6), key=lambda i: int(raw[i]))
    assert permutation(6, 1, 2).tolist() == [int(i) for i in np.argsort(raw)]


def test_no_samples_is_an_error() -> None:
    with pytest.raises(ValueError, match="no samples"):
        list(plan([0, 0], seed=0, shuffle_buffer=0, start=0, stop=4))
