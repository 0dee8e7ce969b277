"""What frozen models give: computed in the stream, stored in shards, or by the trainer itself, to the same losses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from some_pictures import write_folder

from imprint.backbone import Backbone
from imprint.config.data import DataSpec
from imprint.config.jobs.shards import PrepareShards
from imprint.config.methods import E4TSpec
from imprint.features.clip import ClipFeatures
from imprint.methods.e4t import E4TObjective
from imprint.objective import Batch
from imprint.pipelines.preparation.run import prepare_shards
from imprint.pipelines.shards import counted, find_shards
from imprint.pipelines.stream import FrozenModels, StreamPlan, training_stream
from imprint.training.batches import PRECOMPUTED, collate

pytestmark = [
    pytest.mark.integration,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings(
        "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning",
        "ignore:The maximum number of concurrent tasks:UserWarning",  # for a stream of one block two tasks may cut
    ),
]
PARTS = ("clip", "vae", "text")


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        ray.init(num_cpus=2, include_dashboard=False, logging_level="error", log_to_driver=False)
        ray.data.DataContext.get_current().enable_progress_bars = False
        yield
        ray.shutdown()


def batches(folder: Path, source: str, models: FrozenModels) -> list[Batch]:
    """Three steps of four pictures in a shuffled order."""
    spec = DataSpec(
        shards=(str(folder),), image_size=16, shuffle_buffer=12, precompute={"source": source, "parts": PARTS}
    )
    shards = tuple(counted(find_shards(spec.shards, spec.split)))
    plan = StreamPlan(shards, spec, seed=3, batch_size=4, start=0, stop=12, models=models)
    found: list[Batch] = []
    for columns in training_stream(plan, 1).iter_batches(batch_size=4, batch_format="numpy"):
        found.append(collate([{name: values[i] for name, values in columns.items()} for i in range(4)]))
    return found


def test_stream_shards_and_trainer_give_the_same(tmp_path: Path, tiny_sd15: Path, tiny_clip: Path) -> None:
    """Pictures are prepared with masks and features by `prepare_shards` on Ray, then streamed in each of three ways."""
    section: dict[str, Any] = {
        "backbone": str(tiny_sd15), "clip": str(tiny_clip), "parts": PARTS, "mask_reference": True, "batch_size": 5,
    }  # fmt: skip
    spec = PrepareShards.model_validate({
        "job": "prepare_shards", "name": "small", "out_dir": str(tmp_path / "out"), "samples_per_shard": 8,
        "input": {"folder": {"path": str(write_folder(tmp_path / "in", 12))}}, "masks": {"kind": "embedded"},
        "pictures": {"mode": "square", "size": 16}, "features": section,
    })  # fmt: skip
    assert prepare_shards(spec).written == 12
    models = FrozenModels(str(tiny_sd15), str(tiny_clip), mask_reference=True)
    ways = {source: batches(tmp_path / "out", source, models) for source in ("stream", "shards", "trainer")}

    clip = ClipFeatures.load(tiny_clip)
    torch.manual_seed(0)
    objective = E4TObjective(Backbone.load(tiny_sd15), E4TSpec(mask_reference=True, mask_loss=True), clip)
    for step, (stream, shards, live) in enumerate(zip(*ways.values(), strict=True)):
        assert stream["keys"] == shards["keys"] == live["keys"] and len(set(live["keys"])) == 4
        assert torch.equal(stream["pixel_values"], shards["pixel_values"])
        names = [name for name in PRECOMPUTED if name in stream]
        assert set(names) == {name for name in PRECOMPUTED if name in shards} == set(PRECOMPUTED) - {"text_pooled"}
        assert not set(PRECOMPUTED) & set(live)
        for name in names:
            torch.testing.assert_close(stream[name], shards[name], rtol=1e-4, atol=1e-5)  # type: ignore[literal-required]
        losses = [objective(batch, torch.Generator().manual_seed(step)).loss for batch in (stream, shards, live)]
        torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(losses[0], losses[2], rtol=1e-5, atol=1e-6)
        other = objective(
            {**live, **{name: shards[name].flip(0) for name in names}}, torch.Generator().manual_seed(step)
        )  # type: ignore[typeddict-item,literal-required]
        assert not torch.isclose(other.loss, losses[2], rtol=1e-5), "the trainer takes what came with the batch"
