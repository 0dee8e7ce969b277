"""Pieces of the job `dreambooth` without Ray: the subject read from shards, its phrase, the grid and the job file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small_shards import write_shards

from imprint.backbone import Backbone
from imprint.config.jobs import DreamBooth
from imprint.errors import ConfigError, DataError
from imprint.jobs.cluster_jobs import with_absolute_cache
from imprint.jobs.dreambooth import SUBJECT, SubjectGrid, bound_phrase, subject_pictures
from imprint.methods.base import Pictures
from imprint.methods.dreambooth import Binding, DreamBoothObjective, make_trained
from imprint.pipelines.shards import counted, find_sources
from imprint.pipelines.writer import Sample
from imprint.training.checkpoint import TrainingState, save_checkpoint


def one_identity(number: int, sample: Sample) -> Sample:
    record = json.dumps({"identity": "rex", "caption_context": f"on ground {number}"})
    return Sample(sample.key, {**sample.members, "json": record.encode()})


def spec_of(shards: Path, backbone: Path, runs: Path, **changes: Any) -> DreamBooth:
    return DreamBooth.model_validate(
        {
            "job": "dreambooth", "name": "dog", "class_noun": " cat ", "runs": str(runs), "backbone": str(backbone),
            "method": {"identifier": {"rare_share": 1.0}},
            "data": {"shards": [str(shards)], "image_size": 24},
            "training": {"steps": 2, "batch_size": 4},
        } | changes
    )  # fmt: skip


def pictures_of(spec: DreamBooth) -> Pictures:
    return subject_pictures(spec, counted(find_sources(spec.data)))


def test_the_subject_is_read_as_it_was_written(tmp_path: Path, tiny_sd15: Path) -> None:
    spec = spec_of(write_shards(tmp_path / "shards", [3, 2], one_identity), tiny_sd15, tmp_path)
    pictures = pictures_of(spec)
    assert pictures.images.shape == (5, 3, 24, 24)
    reds = ((pictures.images[:, 0, 0, 0] + 1) * 127.5).round().int().tolist()
    assert reds == [0, 1, 2, 3, 4], "small_shards: red is the number"
    assert pictures.contexts == [f"on ground {number}" for number in range(5)]


def test_a_data_set_is_no_subject(tmp_path: Path, tiny_sd15: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    several = spec_of(write_shards(tmp_path / "several", [6]), tiny_sd15, tmp_path)
    with pytest.raises(DataError, match=r"show 2 identities.*prepare_shards"):
        pictures_of(several)
    many = spec_of(write_shards(tmp_path / "many", [6], one_identity), tiny_sd15, tmp_path)
    monkeypatch.setattr("imprint.jobs.dreambooth._MOST_PICTURES", 5)
    with pytest.raises(DataError, match="more than 5 pictures"):
        pictures_of(many)


def test_a_template_without_a_place_for_the_subject_is_refused(tmp_path: Path, tiny_sd15: Path) -> None:
    shards = write_shards(tmp_path / "shards", [3], one_identity)
    with pytest.raises(ConfigError, match="does not say where the concept goes"):
        pictures_of(spec_of(shards, tiny_sd15, tmp_path, method={"templates": ["a dog"]}))


def test_the_phrase_is_a_function_of_pictures_and_seed_and_holds_for_a_run(tmp_path: Path, tiny_sd15: Path) -> None:
    shards = write_shards(tmp_path / "shards", [5], one_identity)
    backbone = Backbone.load(tiny_sd15)
    spec = spec_of(shards, tiny_sd15, tmp_path / "runs")
    run = tmp_path / "runs" / "dog"
    run.mkdir(parents=True)
    phrase = bound_phrase(spec, backbone, pictures_of(spec))
    assert phrase.startswith("a ") and phrase.endswith(" cat") and len(phrase.split()) == 3
    assert bound_phrase(spec, backbone, pictures_of(spec)) == phrase
    record = json.loads((run / SUBJECT).read_text())
    assert record == {"phrase": phrase, "pictures": 5}
    named = spec_of(shards, tiny_sd15, tmp_path / "runs", method={"identifier": {"text": "sks"}})
    assert bound_phrase(named, backbone, pictures_of(named)) == "a sks cat", "nothing was trained yet"
    save_checkpoint(run / "checkpoints", TrainingState(1, 4, {"a": torch.ones(1)}, {}), keep=1)
    with pytest.raises(ConfigError, match=r"began with 'a sks cat'.*another name"):
        bound_phrase(spec, backbone, pictures_of(spec))


@pytest.mark.parametrize("train", ["full", "lora"])
def test_a_grid_draws_any_state_and_touches_nothing_that_trains(tiny_sd15: Path, tmp_path: Path, train: str) -> None:
    shards = write_shards(tmp_path / "shards", [5], one_identity)
    grid_keys = {"concepts": 2, "sampling": {"steps": 2}, "prompts": ["a photo of <concept>", "<concept> on red"]}
    method = {"train": train, "identifier": {"rare_share": 1.0}}
    spec = spec_of(shards, tiny_sd15, tmp_path, grid=grid_keys, method=method)
    backbone = Backbone.load(tiny_sd15)
    trained = make_trained(backbone, spec.method, spec.seed)
    objective = DreamBoothObjective(trained, spec.method, Binding("a zzq cat", "cat"))
    before = {name: value.detach().clone() for name, value in objective.named_parameters()}
    assert spec.grid is not None
    apart = make_trained(backbone, spec.method, spec.seed)
    grid = SubjectGrid(spec, spec.grid, pictures_of(spec), apart, "a zzq cat")
    generator = torch.Generator().manual_seed(0)
    other = {name: value + torch.randn(value.shape, generator=generator) * 0.3 for name, value in before.items()}
    for state, name in ((before, "one"), (other, "two"), (before, "three")):
        grid.draw(state, tmp_path / f"{name}.png")
    one, two, three = (np.asarray(Image.open(tmp_path / f"{name}.png")) for name in ("one", "two", "three"))
    assert one.shape == (2 * 2 * 16, 2 * 3 * 16, 3)
    assert np.array_equal(one, three) and not np.array_equal(one, two)
    assert np.array_equal(one[:, :32], two[:, :32]), "the subject's pictures come first"
    assert not np.array_equal(one[:32, 32:], one[32:, 32:]), "each row has a seed of its own"
    assert all(torch.equal(value, before[name]) for name, value in objective.named_parameters())
    wrong = spec.grid.model_copy(update={"prompts": ("a cat",)})
    with pytest.raises(ConfigError, match=r"grid\.prompts"):
        SubjectGrid(spec, wrong, pictures_of(spec), apart, "a zzq cat")


def test_paths_hold_in_a_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMPRINT_ROOT", str(tmp_path))
    method = {"prior": {"cache_dir": "data/class-images"}}
    spec = with_absolute_cache(spec_of(Path("shards"), Path("imprint-tiny"), Path("runs"), method=method, grid={}))
    assert spec.data.places == (str(tmp_path / "shards"),)
    assert spec.method.prior.cache_dir == str(tmp_path / "data/class-images")
    assert spec.runs == str(tmp_path / "runs") and spec.backbone == "imprint-tiny"
