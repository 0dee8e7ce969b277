"""Real photographs, where they are: eight subjects of the DreamBooth data set, a folder each."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import pytest
from ray.data.block import BlockAccessor

from imprint.config.jobs.shards import FilterSpec, FolderInput, InputSpec, PictureSpec, PrepareShards
from imprint.pipelines.preparation.inputs import find_inputs
from imprint.pipelines.preparation.planning import plan_shards
from imprint.pipelines.preparation.stages import read_rows
from imprint.pipelines.preparation.survey import load_surveys, survey_chunk
from imprint.pipelines.reading import ReadOptions

PHOTOS = Path(os.environ.get("IMPRINT_PHOTOS", Path(__file__).parents[4] / "shared" / "data" / "dreambooth"))
pytestmark = [
    pytest.mark.skipif(not PHOTOS.is_dir(), reason="no photographs; IMPRINT_PHOTOS names their folder"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # Ray Data's own, when it makes a block
]


def test_photographs_are_all_kept_and_bucketed(tmp_path: Path) -> None:
    source = InputSpec(folder=FolderInput(path=str(PHOTOS), identity="folder"))
    inputs = find_inputs(source, ReadOptions())
    for number, chunk in enumerate(inputs.chunks):
        list(survey_chunk(chunk, number, tmp_path, ReadOptions()))
    survey = load_surveys(tmp_path, inputs.chunks)
    pictures = PictureSpec(mode="buckets", size=128, step=16)
    spec = PrepareShards(
        job="prepare_shards", name="photos", input=source, out_dir="out", pictures=pictures,
        filters=FilterSpec(min_side=128, max_aspect=2.0, duplicate_distance=4),
    )  # fmt: skip
    plan = plan_shards(survey, spec)
    files = [path for path in PHOTOS.rglob("*.jpg") if not path.name.startswith(".")]
    assert (plan.bad, plan.filtered) == ((), ())
    assert sum(len(shard.positions) for shard in plan.shards) == len(files) > 0
    subjects: Counter[str] = Counter()
    for shard in plan.shards:
        for block in read_rows(survey.take(list(shard.positions)), shard.positions, shard.shape, pictures, 0, 1 << 22):
            batch = BlockAccessor.for_block(block).to_batch_format("numpy")
            assert shard.shape is not None and batch["image"].shape[1:] == (*shard.shape, 3)
            subjects.update(json.loads(text)["identity"] for text in batch["json"])
    assert subjects == Counter(path.parent.name for path in files)
