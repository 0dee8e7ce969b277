"""Weighted sources: a pure function of the position, the ratio in every stretch, each source's epochs exact."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from reading_shards import keys, read
from small_shards import write_shards

from imprint.config.data import DataSpec, SourceSpec
from imprint.pipelines.mixing import Mix, interleave, plan_mix
from imprint.pipelines.order import plan, window_order
from imprint.pipelines.reading import ReadOptions
from imprint.pipelines.shards import Shard, counted, find_sources
from imprint.pipelines.writer import Sample

WEIGHTS = st.lists(st.floats(0.05, 20).map(lambda w: round(w, 2)), min_size=1, max_size=4)


def test_a_cycle_is_as_short_as_the_ratio_allows() -> None:
    assert interleave([3, 1]) == interleave([0.75, 0.25]) == interleave([0.3, 0.1])
    assert Counter(interleave([3, 1])) == {0: 3, 1: 1}
    assert interleave([1, 1]) == (0, 1)
    assert interleave([5]) == (0,)
    assert len(interleave([1, 1 / 3])) <= 1001


@pytest.mark.parametrize("weights", [[], [1, 0], [1, -1], [float("inf")], [float("nan")]])
def test_weights_that_are_none_are_refused(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="expected positive numbers"):
        interleave(weights)


@settings(max_examples=50, deadline=None)
@given(weights=WEIGHTS, start=st.integers(0, 5000), length=st.integers(1, 400))
def test_the_ratio_holds_in_every_stretch(weights: list[float], start: int, length: int) -> None:
    mix = Mix(weights)
    for source, weight in enumerate(weights):
        got = sum(mix.source(position) == source for position in range(start, start + length))
        assert got == mix.taken(source, start + length) - mix.taken(source, start)
        # two rows at most from rounding at both ends, and a thousandth from the rounding of odd weights
        assert abs(got - length * weight / sum(weights)) <= len(weights) + length / 500


@settings(max_examples=50, deadline=None)
@given(weights=WEIGHTS, rows=st.integers(1, 3000))
def test_the_end_of_a_number_of_rows_is_right_after_the_last(weights: list[float], rows: int) -> None:
    mix = Mix(weights)
    for source in range(len(weights)):
        end = mix.end_of(source, rows)
        assert mix.taken(source, end) == rows
        assert mix.source(end - 1) == source


def test_one_source_is_the_order_without_sources() -> None:
    counts = [5, 0, 7, 3]
    mixed = plan_mix(counts, [0] * 4, Mix([2.5]), seed=3, shuffle_buffer=8, start=4, stop=40)
    assert [part for one in mixed for part in one.parts[0]] == list(
        plan(counts, seed=3, shuffle_buffer=8, start=4, stop=40)
    )


COUNTS, SOURCES = [7, 9, 4, 30, 11, 3], [0, 0, 1, 0, 1, 2]


def rows(weights: list[float], buffer: int, start: int, stop: int) -> list[tuple[int, int, int]]:
    """(source, shard, sample) of each position, taken from the slices alone."""
    mix = Mix(weights)
    found: list[tuple[int, int, int]] = []
    planned = plan_mix(COUNTS, SOURCES, mix, seed=5, shuffle_buffer=buffer, start=start, stop=stop)
    position = start
    for one in planned:
        assert one.index == position
        streams = []
        for source, parts in enumerate(one.parts):
            stream: list[tuple[int, int, int]] = []
            for part in parts:
                assert part.index == mix.taken(source, position) + len(stream)
                order = window_order(dict(enumerate(COUNTS)), part, seed=5, shuffle_buffer=buffer)
                stream += [(source, int(s), int(i)) for s, i in order[part.first : part.last]]
            streams.append(iter(stream))
        found += [next(streams[mix.source(p)]) for p in range(position, position + one.rows)]
        assert all(next(stream, None) is None for stream in streams), "no row is read and left over"
        position += one.rows
    return found


@settings(max_examples=40, deadline=None)
@given(
    weights=st.lists(st.sampled_from([0.5, 1.0, 2.0, 0.9, 7.0]), min_size=3, max_size=3),
    buffer=st.sampled_from([0, 1, 10, 40, 1000]),
    cuts=st.lists(st.integers(0, 200), max_size=4),
)
def test_reading_on_from_any_position_gives_the_rows_of_one_reading(
    weights: list[float], buffer: int, cuts: list[int]
) -> None:
    whole = rows(weights, buffer, 0, 200)
    pieces = [rows(weights, buffer, a, b) for a, b in pairwise(sorted({0, *cuts, 200}))]
    assert [row for piece in pieces for row in piece] == whole
    for source in range(3):
        own = [row[1:] for row in whole if row[0] == source]
        size = sum(count for count, of in zip(COUNTS, SOURCES, strict=True) if of == source)
        for epoch in range(len(own) // size):
            assert len(set(own[epoch * size : (epoch + 1) * size])) == size, "each sample once in each epoch of it"


@pytest.fixture
def two_sources(tmp_path: Path) -> DataSpec:
    def rename(_: int, one: Sample) -> Sample:
        return Sample(one.key.replace("s-", "g-"), one.members)

    faces = write_shards(tmp_path / "faces", [6, 6])
    general = write_shards(tmp_path / "general", [20, 20], rename)
    return DataSpec(
        sources=(SourceSpec(shards=(str(faces),), weight=3), SourceSpec(shards=(str(general),), weight=1)),
        image_size=16,
    )


def test_rows_of_two_sources_come_at_their_ratio_and_say_which(two_sources: DataSpec) -> None:
    shards = counted(find_sources(two_sources))
    assert [shard.source for shard in shards] == [0, 0, 1, 1]
    found = read(shards, ReadOptions(weights=two_sources.weights, shuffle_buffer=8, seed=1), 0, 48)
    assert [row["__index__"] for row in found] == list(range(48))
    assert all(row["__key__"][0] == "sg"[row["__source__"]] for row in found)
    for first in range(0, 48, 8):
        assert Counter(row["__source__"] for row in found[first : first + 8]) == {0: 6, 1: 2}
    faces = [key for key in keys(found) if key.startswith("s")]
    assert len(set(faces[:12])) == len(set(faces[12:24])) == len(set(faces[24:36])) == 12


@pytest.mark.parametrize("on_bad", ["drop", "substitute"])
def test_a_bad_sample_moves_no_other(tmp_path: Path, on_bad: str) -> None:
    def spoil(number: int, one: Sample) -> Sample:
        return Sample(one.key, {**one.members, "png": b"spoilt"}) if number in (2, 3) else one

    whole = [replace(shard, source=0) for shard in _shards(write_shards(tmp_path / "a", [6]))]
    spoilt = [replace(shard, source=0) for shard in _shards(write_shards(tmp_path / "b", [6], spoil))]
    other = [replace(shard, source=1) for shard in _shards(write_shards(tmp_path / "c", [6]))]
    options = ReadOptions(weights=(1, 1), on_bad=on_bad, max_bad_share=1)  # type: ignore[arg-type]
    expected = {row["__index__"]: row["__key__"] for row in read([*whole, *other], options)}
    found = {row["__index__"]: row["__key__"] for row in read([*spoilt, *other], options)}
    bad = {4, 6}  # rows 2 and 3 of source 0
    assert set(found) == set(expected) - (bad if on_bad == "drop" else set())
    assert {i: key for i, key in found.items() if i not in bad} == {i: k for i, k in expected.items() if i not in bad}


def _shards(folder: Path) -> list[Shard]:
    return find_sources(DataSpec(shards=(str(folder),)))


def test_a_job_gives_shards_or_sources(make_shards: Callable[..., Path]) -> None:
    for wrong in ({}, {"shards": ["a"], "sources": [{"shards": ["b"]}]}):
        with pytest.raises(ValidationError, match="either shards"):
            DataSpec.model_validate(wrong)
    spec = DataSpec.model_validate({"sources": [{"shards": ["a"], "weight": 2}, {"shards": ["b", "c"]}]})
    assert spec.places == ("a", "b", "c")
    assert spec.weights == (2, 1)
    assert spec.with_places(str.upper).places == ("A", "B", "C")
    assert spec.with_places(str.upper).weights == (2, 1)
    assert DataSpec(shards=("a",)).weights == (1.0,)
