"""Pretraining that starts from a pretrained encoder."""

from pathlib import Path

import pytest
import torch

from imprint.backbone import Backbone
from imprint.config.methods import E4TSpec
from imprint.errors import CheckpointError
from imprint.features.clip import ClipFeatures
from imprint.jobs.pretrain_encoder import start_from
from imprint.methods.e4t.artifact import save_encoder
from imprint.methods.e4t.objective import E4TObjective


def objective(pipeline: Path, clip: ClipFeatures, seed: int, **changes: object) -> E4TObjective:
    torch.manual_seed(seed)
    return E4TObjective(Backbone.load(pipeline), E4TSpec(domain_word="face", **changes), clip)


def test_weights_are_those_of_the_encoder_and_train_on(tiny_sd15: Path, tiny_clip: Path, tmp_path: Path) -> None:
    clip = ClipFeatures.load(tiny_clip)
    first, second = objective(tiny_sd15, clip, 1), objective(tiny_sd15, clip, 2)
    with torch.no_grad():
        for value in first.parameters():
            value += 0.01
    save_encoder(tmp_path / "encoder", first.state_dict(), first.spec, first.parts.backbone, clip)
    start_from(second, str(tmp_path))
    for mine, theirs in zip(second.parameters(), first.parameters(), strict=True):
        assert torch.equal(mine, theirs)
        assert mine.requires_grad


def test_an_encoder_of_another_architecture_is_refused(tiny_sd15: Path, tiny_clip: Path, tmp_path: Path) -> None:
    clip = ClipFeatures.load(tiny_clip)
    plain = objective(tiny_sd15, clip, 1, encoder={"refinement": False})
    save_encoder(tmp_path / "encoder", plain.state_dict(), plain.spec, plain.parts.backbone, clip)
    with pytest.raises(CheckpointError, match="loading"):
        start_from(objective(tiny_sd15, clip, 1), str(tmp_path))
