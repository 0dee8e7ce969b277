"""What each column shows, on a small random backbone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from imprint.backbone import Backbone
from imprint.config.jobs.evaluate import Evaluate, SceneSpec
from imprint.config.methods import E4TEncoderSpec, E4TSpec
from imprint.evaluation.columns import COLUMNS, Painter, as_tensors, to_pixels, to_uint8
from imprint.evaluation.subjects import Picture, Subject
from imprint.features.clip import ClipFeatures
from imprint.methods.e4t import E4TParts
from imprint.sampling.draw import draw_prompts

SCENE = {"background": "blue", "glasses": "glasses", "expression": "smiling"}


def spec(**changed: object) -> Evaluate:
    values = {
        "job": "evaluate", "name": "test", "encoder": "none", "shards": ["none"], "calibration": ["none"],
        "seed": 7, "images_per_prompt": 2, "image_size": 16, "prompt": "a photo of {}",
        "scenes": SceneSpec(template="{}, {expression}, with {glasses} on {background}"),
        "tuning": {"steps": 0, "batch_size": 2, "storage": "fp32"}, "sampling": {"steps": 2, "guidance_scale": 40.0},
    }  # fmt: skip
    return Evaluate.model_validate({**values, **changed})


def picture(seed: int) -> Picture:
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    return Picture(pixels, np.full((16, 16), 255, np.uint8), {}, "smiling")


def subject(number: int) -> Subject:
    return Subject(number, str(number), picture(number), picture(100 + number), (picture(200 + number),), SCENE)


@pytest.fixture(scope="module")
def parts(tiny_sd15: Path, tiny_clip: Path) -> E4TParts:
    """Parts whose encoder and offsets do something, as after pretraining."""
    torch.manual_seed(0)
    encoder = E4TEncoderSpec(clip=str(tiny_clip), scale=5.0)
    parts = E4TParts.build(Backbone.load(tiny_sd15), E4TSpec(encoder=encoder), ClipFeatures.load(tiny_clip))
    assert parts.offsets is not None
    with torch.no_grad():
        for head in parts.encoder.heads:
            head.weight.normal_()
        for stack in parts.offsets.shapes.values():
            stack.column_bias.normal_(std=0.3)
    return parts


def test_every_column_is_drawn_with_the_same_seeds(parts: E4TParts) -> None:
    painter = Painter(parts, spec())
    subjects = [subject(0), subject(1)]
    drawn = painter.untuned(subjects, [subjects[1].reference, subjects[0].reference])
    whole = [one.merged(painter.tuned(who)) for one, who in zip(drawn, subjects, strict=True)]
    assert [one.number for one in whole] == [0, 1]
    for one in whole:
        assert set(one.images) == {column.name for column in COLUMNS} and one.tuning_seconds is not None
        assert all(images.shape == (2, 16, 16, 3) for images in one.images.values())
    # No step of tuning is the encoder alone: the two ways of drawing it must agree to the byte.
    for one in whole:
        assert np.abs(one.images["tuned"].astype(int) - one.images["encoder"]).max() <= 1
        assert np.abs(one.images["new_scene"].astype(int) - one.images["encoder_scene"]).max() <= 1
    expected = draw_prompts(parts.backbone, ["a photo of a person"] * 2, spec().sampling, seeds=[9, 10])
    assert np.abs(whole[1].images["class_noun"].astype(int) - to_uint8(expected)).max() <= 1
    # The encoder is told apart from the wrong reference by the reference alone.
    swapped = painter.untuned([subjects[0]], [subjects[0].reference])[0].images
    assert np.abs(swapped["wrong_reference"].astype(int) - whole[0].images["encoder"]).max() <= 1
    assert np.abs(whole[0].images["wrong_reference"].astype(int) - whole[0].images["encoder"]).max() > 1


def test_prompts_and_seeds(parts: E4TParts) -> None:
    painter = Painter(parts, spec())
    by_name = {column.name: column for column in COLUMNS}
    assert painter.prompt(subject(3), by_name["class_noun"]) == "a photo of a person"
    assert painter.prompt(subject(3), by_name["encoder"]) == "a photo of <concept>"
    assert painter.prompt(subject(3), by_name["new_scene"]) == "<concept>, smiling, with glasses on blue"
    assert painter.seeds(subject(0)) == [7, 8] and painter.seeds(subject(3)) == [13, 14]


def test_tuning_changes_what_is_drawn(parts: E4TParts) -> None:
    rates = {"encoder": 1e-2, "offsets": 1e-2, "unet": 1e-2}
    tuning = {"steps": 3, "batch_size": 2, "storage": "fp32", "learning_rates": rates}
    before, after = (Painter(parts, spec(**changed)).tuned(subject(0)) for changed in ({}, {"tuning": tuning}))
    assert np.abs(before.images["tuned"].astype(int) - after.images["tuned"]).max() > 1


def test_bytes_and_back() -> None:
    one = picture(0)
    image, mask = as_tensors(one)
    assert float(image.min()) >= -1 and float(image.max()) <= 1 and mask.shape == (1, 1, 16, 16)
    assert np.array_equal(to_uint8(image)[0], one.image)
    assert torch.equal(to_pixels(one.image[None]), image)
