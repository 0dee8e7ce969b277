"""Pretraining in one process: every method to its end, and on from where it stopped bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_shards import write_shards

from imprint.backbone import Backbone
from imprint.config.data import DataSpec
from imprint.config.jobs.pretrain import PretrainEncoder
from imprint.jobs.cluster_jobs import pretrain_encoder as run
from imprint.jobs.pretrain_here import read_rows
from imprint.methods import METHODS

SPEC: dict[str, dict[str, Any]] = {
    "e4t": {"domain_word": "face", "offsets": {"vector_width": 4}},
    "domain_agnostic": {"hypernetwork": {"width": 4}, "noun_pull": 0.1, "mask_reference": True},
    "profusion": {"domain_word": "face"},
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("here") / "shards", [7, 5])


def job(method: str, name: str, root: Path, shards: Path, backbone: Path, clip: Path, steps: int) -> PretrainEncoder:
    return PretrainEncoder.model_validate({
        "job": "pretrain_encoder", "name": name, "in_process": True, "runs": str(root), "backbone": str(backbone),
        "method": {"method": method, "encoder": {"clip": str(clip)}, **SPEC[method]},
        "data": {"shards": [str(shards)], "image_size": 16},
        "training": {"steps": steps, "batch_size": 2, "log_every": 1, "ema": {"decay": 0.9}},
        "checkpoint": {"every": 2, "asynchronous": False}, "tracking": {"enabled": False},
    })  # fmt: skip


@pytest.mark.parametrize("method", sorted(SPEC))
def test_it_leaves_an_encoder_and_a_log(
    method: str, tmp_path: Path, shards: Path, tiny_sd15: Path, tiny_clip: Path
) -> None:
    run(job(method, "one", tmp_path, shards, tiny_sd15, tiny_clip, 3), job_file=None, source="job: ...\n")
    parts = METHODS[method].load_encoder(tmp_path / "one", Backbone.load(tiny_sd15))
    assert parts.spec.method == method
    assert len((tmp_path / "one" / "log.jsonl").read_text().splitlines()) == 3
    assert (tmp_path / "one" / "job.yaml").read_text() == "job: ...\n"


def test_a_run_that_stopped_ends_like_one_that_did_not(
    tmp_path: Path, shards: Path, tiny_sd15: Path, tiny_clip: Path
) -> None:
    folders = tmp_path, shards, tiny_sd15, tiny_clip
    run(job("domain_agnostic", "quiet", *folders, 6), job_file=None, source="")
    run(job("domain_agnostic", "stopped", *folders, 4), job_file=None, source="")
    run(job("domain_agnostic", "stopped", *folders, 6), job_file=None, source="")
    one, other = (load_file(tmp_path / name / "encoder" / "encoder.safetensors") for name in ("quiet", "stopped"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_sources_are_drawn_by_weight(tmp_path: Path, shards: Path) -> None:
    other = write_shards(tmp_path / "other", [3])
    sources = [{"shards": [str(shards)], "weight": 3}, {"shards": [str(other)], "weight": 1}]
    rows, chances = read_rows(DataSpec.model_validate({"sources": sources, "image_size": 16}))
    assert len(rows) == 15
    assert chances.sum() == pytest.approx(1)
    np.testing.assert_allclose(chances, [0.75 / 12] * 12 + [0.25 / 3] * 3)


def test_what_the_stream_would_make_is_refused(tmp_path: Path, shards: Path, tiny_sd15: Path, tiny_clip: Path) -> None:
    spec = job("e4t", "one", tmp_path, shards, tiny_sd15, tiny_clip, 1).model_dump(mode="json")
    spec["data"]["captions"] |= {"kind": "clip", "fine": None}
    with pytest.raises(ValueError, match="in_process: true reads captions and masks as the samples have them"):
        PretrainEncoder.model_validate(spec)
