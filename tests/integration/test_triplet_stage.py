"""Triplets as a stage of a stream on Ray: the same as drawn by hand, whatever the blocks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import ray
from small_shards import write_shards

from imprint.config.data import MaskerSpec
from imprint.config.triplets import TripletSpec
from imprint.pipelines.reader import read_webdataset
from imprint.pipelines.reading import ReadOptions
from imprint.pipelines.shards import find_shards
from imprint.pipelines.triplets import TripletStage, add_triplets, index_identities

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning"),
]


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        ray.init(num_cpus=2, include_dashboard=False, logging_level="error", log_to_driver=False)
        ray.data.DataContext.get_current().enable_progress_bars = False
        yield
        ray.shutdown()


def test_a_stream_of_three_epochs_has_the_triplets_of_its_samples(tmp_path: Path) -> None:
    shards = find_shards([str(write_shards(tmp_path / "s", [5, 7]))])
    spec, masks = TripletSpec(omega=0.5), MaskerSpec()
    index = index_identities(shards, spec)
    rows = read_webdataset(shards, ReadOptions(seed=2, shuffle_buffer=6, image_size=16), stop=36, block_bytes=4096)
    found = add_triplets(rows, index, spec, masks, seed=4, epoch_rows=12, image_size=16).take_all()
    assert len(found) == 36

    stage = TripletStage(index, spec, masks, seed=4, epoch_rows=12, image_size=16)
    swapped = 0
    for row in found:
        names = ("__key__", "__shard__", "__index__", "image", "mask", "has_mask", "json", "caption")
        one = stage({name: np.array([row[name]]) for name in names})
        assert one["object_key"][0] == row["object_key"] and (one["object"][0] == row["object"]).all()
        assert row["is_domain"] and json.loads(row["json"])["identity"] == f"id-{int(row['object_key'][2:]) // 2}"
        swapped += row["object_key"] != row["__key__"]
    assert 4 < swapped < 32
    per_epoch = [{row["__key__"]: row["object_key"] for row in found if row["__index__"] // 12 == e} for e in range(3)]
    assert all(len(epoch) == 12 for epoch in per_epoch) and per_epoch[0] != per_epoch[1] != per_epoch[2]
