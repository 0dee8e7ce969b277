"""Equation 3 of the Taming Encoder in the data plane: which picture shows an object, and that nothing else moves."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reading_shards import read
from small_shards import write_shards

from imprint.pipelines.masks import mask_rows
from imprint.pipelines.reading import ReadOptions, Row
from imprint.pipelines.shards import Shard, counted, find_shards
from imprint.pipelines.triplets import CrossReference, Identities, draw
from imprint.pipelines.writer import Sample

ALWAYS = CrossReference(1.0)


def identity(key: str) -> int:
    """Samples 2 n and 2 n + 1 of the small shards are of one identity."""
    return int(key[-4:]) // 2


def shown(row: Row) -> tuple[str, str]:
    return row["__key__"], row["object_key"]  # type: ignore[typeddict-item]


def number_of(image: np.ndarray) -> int:
    return int(image[0, 0, 0]) + 256 * int(image[0, 0, 1])


@pytest.mark.parametrize("omega", [0.0, 0.3, 1.0])
def test_equation_3_replaces_at_the_share_omega_by_another_picture_of_the_same_identity(
    tmp_path: Path, omega: float
) -> None:
    folder = write_shards(tmp_path, [100, 100])
    options = ReadOptions(seed=2, shuffle_buffer=200, cross_reference=CrossReference(omega))
    rows = read(folder, options, 0, 600)
    for row in rows:
        key, other = shown(row)
        assert identity(key) == identity(other)
        assert number_of(row["image"]) == int(key[-4:])
        assert number_of(row["object_image"]) == int(other[-4:])  # type: ignore[typeddict-item]
        assert row["object_mask"][:8].min() == 255 and row["object_has_mask"]  # type: ignore[typeddict-item]
    replaced = np.mean([key != other for key, other in map(shown, rows)])
    assert replaced == pytest.approx(omega, abs=0.0 if omega in (0, 1) else 0.06)
    plain = read(folder, replace(options, cross_reference=None), 0, 600)
    assert [row["__key__"] for row in plain] == [row["__key__"] for row in rows]
    assert "object_image" not in plain[0]


@settings(max_examples=15, deadline=None)
@given(cuts=st.lists(st.integers(0, 120), max_size=4), seed=st.integers(0, 3))
def test_reading_on_from_any_position_shows_the_objects_of_one_reading(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int], seed: int
) -> None:
    """A pure function of (seed, position): resumed anywhere, read by any number of tasks."""
    shards = _shards(tmp_path_factory)
    options = ReadOptions(seed=seed, shuffle_buffer=20, cross_reference=CrossReference(0.5))
    whole = [shown(row) for row in read(shards, options, 0, 120)]
    pieces = [read(shards, options, a, b) for a, b in pairwise(sorted({0, *cuts, 120}))]
    assert [shown(row) for piece in pieces for row in piece] == whole


_SHARDS: list[Shard] = []


def _shards(factory: pytest.TempPathFactory) -> list[Shard]:
    if not _SHARDS:
        _SHARDS.extend(counted(find_shards([str(write_shards(factory.mktemp("shards"), [13, 9, 18]))])))
    return _SHARDS


def test_another_epoch_and_another_seed_draw_anew(tmp_path: Path) -> None:
    folder = write_shards(tmp_path, [40])
    options = ReadOptions(seed=1, shuffle_buffer=40, cross_reference=CrossReference(0.5))
    first = dict(shown(row) for row in read(folder, options, 0, 40))
    second = dict(shown(row) for row in read(folder, options, 40, 80))
    other = dict(shown(row) for row in read(folder, replace(options, seed=2), 0, 40))
    assert first.keys() == second.keys() == other.keys()
    assert first != second and first != other


def test_general_sources_are_never_cross_referenced(tmp_path: Path) -> None:
    """Section 3.4: "the regularization is applied only for domain-specific images"."""
    domain = find_shards([str(write_shards(tmp_path / "domain", [20]))])
    general = [replace(shard, source=1) for shard in find_shards([str(write_shards(tmp_path / "general", [20]))])]
    options = ReadOptions(weights=(1, 1), shuffle_buffer=100, cross_reference=ALWAYS)
    rows = read([*domain, *general], options)
    assert {key != other for row in rows if row["__source__"] == 0 for key, other in [shown(row)]} == {True}
    assert {key != other for row in rows if row["__source__"] == 1 for key, other in [shown(row)]} == {False}
    assert all(row["is_domain"] == (row["__source__"] == 0) for row in rows)  # type: ignore[typeddict-item]


def test_nobody_else_is_shown_where_there_is_no_other_picture(tmp_path: Path) -> None:
    """Alone in its window, without an identity, with json that is none, or with a partner that cannot be read."""

    def change(number: int, one: Sample) -> Sample:
        members = dict(one.members)
        if number in (2, 3):
            members["json"] = b'{"class_noun": "cat"}'
        if number in (4, 5):
            del members["json"]
        if number == 7:
            members["png"] = b"spoilt"
        if number == 9:
            members["json"] = b"[1"
        return Sample(one.key, members)

    folder = write_shards(tmp_path, [11], change)
    rows = read(folder, ReadOptions(max_bad_share=1, shuffle_buffer=11, cross_reference=ALWAYS))
    found = dict(shown(row) for row in rows)
    alone = {f"s-{number:04d}" for number in (2, 3, 4, 5, 6, 8, 10)}
    assert {key for key, other in found.items() if key == other} == alone
    assert found["s-0000"] == "s-0001" and found["s-0001"] == "s-0000"
    single = read(write_shards(tmp_path / "one", [1, 1]), ReadOptions(cross_reference=ALWAYS))
    assert all(key == other for key, other in map(shown, single)), "partners come from the row's own window"


def test_the_stand_in_of_a_bad_sample_brings_its_own_object(tmp_path: Path) -> None:
    def spoil(number: int, one: Sample) -> Sample:
        return Sample(one.key, {**one.members, "png": b"spoilt"}) if number == 3 else one

    options = ReadOptions(max_bad_share=1, on_bad="substitute", cross_reference=ALWAYS)
    rows = read(write_shards(tmp_path, [6], spoil), options)
    assert [shown(row) for row in rows][3] == [shown(row) for row in rows][2] == ("s-0002", "s-0002")


def test_each_other_picture_is_as_likely_and_never_the_own() -> None:
    named = {(0, number): ("cat", f"k{number}") for number in range(4)} | {(1, 0): ("dog", "d")}
    identities = Identities(named)
    others = identities.others('{"identity": "cat"}', "identity", "k2")
    assert others == [(0, 0), (0, 1), (0, 3)]
    assert identities.others('{"identity": "dog"}', "identity", "d") == []
    picked = [ALWAYS.pick(0, position, others) for position in range(3000)]
    shares = [picked.count(place) / 3000 for place in others]
    assert shares == pytest.approx([1 / 3] * 3, abs=0.03)
    assert ALWAYS.pick(0, 0, []) is None


def test_both_draws_are_uniform_and_independent() -> None:
    pairs = np.array([draw(5, position) for position in range(4000)])
    assert pairs.min() >= 0 and pairs.max() < 1
    assert pairs.mean(0) == pytest.approx([0.5, 0.5], abs=0.02)
    assert pairs.var(0) == pytest.approx([1 / 12, 1 / 12], abs=0.005)
    assert abs(np.corrcoef(pairs.T)[0, 1]) < 0.05


def test_objects_get_masks_of_their_own() -> None:
    images = np.zeros((2, 4, 4, 3), np.uint8)
    batch = {
        "image": images, "mask": np.zeros((2, 4, 4), np.uint8), "has_mask": np.array([True, True]),
        "object_image": images + 9, "object_mask": np.full((2, 4, 4), 7, np.uint8),
        "object_has_mask": np.array([True, False]),
    }  # fmt: skip
    masked = mask_rows(batch, lambda images: [image[..., 0] for image in images], keep_own=True, prefix="object_")
    assert masked["object_mask"][:, 0, 0].tolist() == [7, 9]
    assert masked["object_has_mask"].all() and masked["mask"] is batch["mask"]


def test_objects_need_masks() -> None:
    with pytest.raises(ValueError, match="cross_reference needs masks=True"):
        ReadOptions(masks=False, cross_reference=ALWAYS)
