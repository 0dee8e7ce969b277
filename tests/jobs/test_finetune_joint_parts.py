"""Pieces of joint finetuning without Ray: triplets as batches, the network apart, its grid, and the job file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from reading_shards import read
from small_shards import write_shards

from imprint.backbone import Backbone
from imprint.config.jobs import FinetuneJoint
from imprint.config.jobs.cluster import GridSpec
from imprint.features.clip import ClipFeatures
from imprint.jobs.cluster_jobs import with_absolute_network
from imprint.jobs.finetune_joint import TamingGrid, apart_from
from imprint.methods.taming import TamingObjective
from imprint.pipelines.reading import ReadOptions
from imprint.pipelines.shards import find_shards
from imprint.pipelines.triplets import CrossReference
from imprint.training.batches import collate, collate_triplets


def spec_of(root: Path, **method: object) -> FinetuneJoint:
    return FinetuneJoint.model_validate(
        {
            "job": "finetune_joint", "name": "joint", "method": method,
            "data": {"sources": [{"shards": [str(root)], "weight": 1}] * 2, "image_size": 16},
            "training": {"steps": 2, "batch_size": 4},
        }
    )  # fmt: skip


def test_rows_become_triplets(tmp_path: Path) -> None:
    domain = find_shards([str(write_shards(tmp_path / "domain", [6]))])
    general = [type(s)(s.url, s.samples, s.bytes, s.sha256, 1) for s in find_shards(
        [str(write_shards(tmp_path / "general", [6]))]
    )]  # fmt: skip
    options = ReadOptions(weights=(1, 1), shuffle_buffer=12, cross_reference=CrossReference(1.0))
    rows = read([*domain, *general], options, 0, 6)
    batch = collate_triplets(rows)
    assert batch["is_domain"].tolist() == [row["__source__"] == 0 for row in rows]
    assert set(batch["is_domain"].tolist()) == {True, False}
    for number, row in enumerate(rows):
        red = (float(batch["object_values"][number, 0, 0, 0]) + 1) * 127.5
        assert round(red) == int(row["object_key"][-4:])  # type: ignore[typeddict-item]
        assert torch.equal(batch["object_masks"][number, 0, :8], torch.ones(8, 16))
        assert float(batch["object_masks"][number, 0, 8:].max()) == 0
    plain = collate(rows)
    assert all(torch.equal(batch[key], plain[key]) for key in ("pixel_values", "masks"))
    assert batch["captions"] == plain["captions"]


@pytest.mark.parametrize("whole", [True, False])
def test_a_grid_draws_any_state_and_touches_nothing_that_trains(
    tiny_sd15: Path, tiny_clip: Path, tmp_path: Path, whole: bool
) -> None:
    backbone, clip = Backbone.load(tiny_sd15), ClipFeatures.load(tiny_clip)
    folder = write_shards(tmp_path / "shards", [6])
    spec = spec_of(folder, whole_network=whole, object_encoder={"clip": str(tiny_clip)})
    apart = apart_from(backbone, spec, clip)
    objective = TamingObjective(backbone, spec.method, clip)
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    grid_spec = GridSpec(shards=(str(folder),), split="train", concepts=2, sampling={"steps": 2})
    grid = TamingGrid(grid_spec, apart, 16)
    grid.draw(before, tmp_path / "one.png")
    generator = torch.Generator().manual_seed(0)
    other = {name: value + torch.randn(value.shape, generator=generator) * 0.3 for name, value in before.items()}
    grid.draw(other, tmp_path / "two.png")
    grid.draw(before, tmp_path / "three.png")
    one, two, three = (np.asarray(Image.open(tmp_path / f"{name}.png")) for name in ("one", "two", "three"))
    assert one.shape == (2 * 2 * 16, 2 * 3 * 16, 3)
    assert np.array_equal(one, three) and not np.array_equal(one, two)
    assert np.array_equal(one[:, :32], two[:, :32]), "the pictures of the subjects come first"
    after = objective.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_the_job_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = spec_of(tmp_path)
    assert spec.method.method == "taming" and spec.triplets.domain_sources == (0,)
    with pytest.raises(ValidationError, match="there is no source 2"):
        FinetuneJoint.model_validate(spec.model_dump() | {"triplets": {"domain_sources": (2,)}})
    (tmp_path / "clip").mkdir()
    monkeypatch.setenv("IMPRINT_ROOT", str(tmp_path))
    absolute = with_absolute_network(spec_of(Path("shards"), object_encoder={"clip": "clip"}))
    assert absolute.data.places == (str(tmp_path / "shards"),) * 2
    assert absolute.method.object_encoder.clip == str(tmp_path / "clip")
    assert absolute.backbone == "imprint-tiny" and absolute.runs == str(tmp_path / "runs")
