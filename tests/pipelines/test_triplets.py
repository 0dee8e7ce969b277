"""Triplets: Eq. 3 and Eq. 4 of the Taming Encoder, drawn from (seed, epoch) alone."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loopback_storage import LoopbackStorage, serve
from small_shards import picture, write_shards

from imprint.config.data import MaskerSpec
from imprint.config.triplets import TripletSpec
from imprint.errors import DataError, ShardError
from imprint.pipelines.mixing import Mix, plan_mix
from imprint.pipelines.reading import ReadOptions, read_rows
from imprint.pipelines.shards import Shard, find_shards
from imprint.pipelines.triplets import (
    Place,
    TripletStage,
    cut_out,
    draw_reference,
    index_identities,
    read_place,
)
from imprint.pipelines.writer import Sample

SIZE = 16
MEMBERS = (3, 5, 8, 9)


def general(number: int, one: Sample) -> Sample:
    """Samples from 8 on are general-domain pictures without an identity; samples 6 and 7 share theirs with no other."""
    record = {"identity": "alone" if number == 6 else f"id-{number // 3}", "domain": "faces"}
    return Sample(one.key, {**one.members, "json": json.dumps(record if number < 8 else {"domain": "web"}).encode()})


def batch_of(shards: list[Shard], start: int = 0, stop: int = 10) -> dict[str, np.ndarray]:
    counts = [shard.samples or 0 for shard in shards]
    rows: list[Any] = []
    slices = plan_mix(counts, [0] * len(shards), Mix((1.0,)), seed=0, shuffle_buffer=100, start=start, stop=stop)
    for part in slices:
        rows += read_rows({n: shards[n] for n in part.shards}, part, ReadOptions(shuffle_buffer=100), total=sum(counts))
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def test_another_picture_comes_with_probability_omega_each_as_likely() -> None:
    draws = 4000
    for omega in (0.0, 0.3, 1.0):
        found = Counter(draw_reference(MEMBERS, 5, omega, seed=1, epoch=epoch) for epoch in range(draws))
        others = draws - found.pop(5, 0)
        assert abs(others - omega * draws) <= 4 * np.sqrt(omega * (1 - omega) * draws)  # four standard deviations
        assert set(found) <= {3, 8, 9}
        for count in found.values():
            assert abs(count - others / 3) < 4 * np.sqrt(others * 2 / 9)


def test_the_draw_is_a_pure_function_of_seed_and_epoch() -> None:
    def drawn(seed: int, epoch: int) -> list[int]:
        return [draw_reference(MEMBERS, own, 0.5, seed=seed, epoch=epoch) for own in MEMBERS for _ in range(2)]

    assert drawn(0, 0) == drawn(0, 0)
    assert len({tuple(drawn(seed, epoch)) for seed in range(4) for epoch in range(4)}) > 10


def test_an_identity_with_one_picture_refers_to_itself() -> None:
    assert draw_reference((7,), 7, 1.0, seed=0, epoch=0) == 7


def test_the_object_is_the_picture_times_the_binary_mask() -> None:
    rng = np.random.default_rng(0)
    image, mask = rng.integers(0, 256, (5, 4, 3), np.uint8), rng.integers(0, 256, (5, 4), np.uint8)
    assert (cut_out(image, mask) == image * (mask > 127)[..., None]).all()
    on_grey = cut_out(image, mask, (9, 9, 9))
    assert (on_grey[mask < 128] == 9).all() and (on_grey[mask >= 128] == image[mask >= 128]).all()


@pytest.mark.parametrize("omega", [0.0, 0.5, 1.0])
def test_triplets_of_a_stream(tmp_path: Path, omega: float) -> None:
    shards = find_shards([str(write_shards(tmp_path / "s", [4, 6], general))])
    spec = TripletSpec(omega=omega)
    index = index_identities(shards, spec)
    stage = TripletStage(index, spec, MaskerSpec(), seed=3, epoch_rows=10, image_size=SIZE)
    swapped = 0
    for epoch in range(20):
        batch = batch_of(shards, 10 * epoch, 10 * epoch + 10)
        found = stage(batch)
        assert sorted(found["__key__"]) == [f"s-{number:04d}" for number in range(10)]
        for i, key in enumerate(found["__key__"]):
            number = int(key[2:])
            assert found["is_domain"][i] == found["has_object"][i] == (number < 8)
            if number >= 8:
                assert not found["object"][i].any() and found["object_key"][i] == ""
                continue
            other = int(found["object_key"][i][2:])
            assert other == 6 if number == 6 else other // 3 == number // 3 and other != 6
            expected = np.zeros((SIZE, SIZE, 3), np.uint8)
            expected[: SIZE // 2] = (other, 0, 7)  # its colour says its number, its mask is the upper half
            assert (found["object"][i] == expected).all()
            swapped += other != number
            assert found["caption"][i] == f"caption {number}"
    assert {0.0: swapped == 0, 0.5: 40 < swapped < 80, 1.0: swapped == 6 * 20}[omega]


def test_the_same_sample_gets_the_same_object_in_any_batch(tmp_path: Path) -> None:
    shards = find_shards([str(write_shards(tmp_path / "s", [4, 6], general))])
    spec = TripletSpec(omega=0.5)
    index = index_identities(shards, spec)
    batch = batch_of(shards, 10, 20)
    whole = TripletStage(index, spec, MaskerSpec(), seed=3, epoch_rows=10, image_size=SIZE)(batch)
    again = TripletStage(index, spec, MaskerSpec(), seed=3, epoch_rows=10, image_size=SIZE)
    for i in range(10):
        one = again({name: values[i : i + 1] for name, values in batch.items()})
        assert one["object_key"][0] == whole["object_key"][i] and (one["object"][0] == whole["object"][i]).all()


def test_domains_may_be_named(tmp_path: Path) -> None:
    shards = find_shards([str(write_shards(tmp_path / "s", [10], general))])
    index = index_identities(shards, TripletSpec(domains=("web",)))
    assert sorted(key for _, key in index.numbers) == ["s-0008", "s-0009"] and index.members == ()
    found = TripletStage(index, TripletSpec(omega=1.0), MaskerSpec(), seed=0, epoch_rows=10, image_size=SIZE)(
        batch_of(shards)
    )
    assert {key: own for key, own in zip(found["__key__"], found["object_key"], strict=True) if own} == {
        "s-0008": "s-0008", "s-0009": "s-0009"
    }  # fmt: skip
    with pytest.raises(DataError, match=r"none of the samples of 1 shards names a domain of \['cats'\]"):
        index_identities(shards, TripletSpec(domains=("cats",)))


def test_a_reference_that_cannot_be_read_is_replaced_by_the_sample_itself(tmp_path: Path) -> None:
    def change(number: int, one: Sample) -> Sample:
        broken = {"png": picture(number)[:40]} if number == 1 else {}
        return Sample(one.key, {**one.members, **broken})

    shards = find_shards([str(write_shards(tmp_path / "s", [2], change))])
    spec = TripletSpec(omega=1.0)
    stage = TripletStage(index_identities(shards, spec), spec, MaskerSpec(), seed=0, epoch_rows=2, image_size=SIZE)
    good = write_shards(tmp_path / "good", [2])
    batch = batch_of(find_shards([str(good)]), 0, 2)
    batch["__shard__"] = np.array([shards[0].url] * 2)
    found = stage(batch)
    assert dict(zip(found["__key__"], found["object_key"], strict=True))["s-0000"] == "s-0000"


def test_a_shard_that_went_away_is_an_error() -> None:
    with pytest.raises(ShardError, match="reading the sample k"):
        read_place(Place("/nowhere/a.tar", "k", {"png": (0, 1)}))


def test_places_are_read_over_http(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "s", [4])
    objects = {f"s/{path.name}": path.read_bytes() for path in folder.iterdir()}
    with serve(LoopbackStorage(objects)) as storage:
        shards = find_shards([f"{storage.url}/s"])
        index = index_identities(shards, TripletSpec())
        assert read_place(index.places[3])["png"] == picture(3)
