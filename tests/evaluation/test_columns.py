"""What each column shows, on a small random backbone."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from imprint.backbone import Backbone
from imprint.config.jobs.evaluate import Evaluate, SceneSpec
from imprint.config.methods import TUNE_SPECS, E4TEncoderSpec, E4TSpec
from imprint.errors import DataError
from imprint.evaluation.columns import (
    COLUMNS,
    as_tensors,
    columns_of,
    has_encoder,
    label_of,
    to_pixels,
    to_uint8,
)
from imprint.evaluation.painter import Painter
from imprint.evaluation.subjects import Picture, Subject
from imprint.features.clip import ClipFeatures
from imprint.methods import METHODS, e4t, lora
from imprint.methods.base import Pictures
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
    return Picture(pixels, np.full((16, 16), 255, np.uint8), {}, "smiling", "cat")


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


def names(changed: Evaluate) -> list[str]:
    return [column.name for column in columns_of(changed)]


def test_every_column_is_drawn_with_the_same_seeds(parts: E4TParts) -> None:
    painter = Painter(parts.backbone, parts, spec())
    subjects = [subject(0), subject(1)]
    drawn = painter.untuned(subjects, [subjects[1].reference, subjects[0].reference])
    assert [one.number for one in drawn] == [0, 1]
    for one, who in zip(drawn, subjects, strict=True):
        assert list(one.images) == names(spec()) and one.tuning_seconds is None
        assert all(images.shape == (2, 16, 16, 3) for images in one.images.values())
        # No step of tuning is the encoder alone: a concept of it must agree to the byte.
        pictures = Pictures(*as_tensors(who.reference))
        learned = e4t.tune(parts, pictures, spec().tuning)
        prompts = ["a photo of <concept>"] * 2
        expected = e4t.sample(parts.backbone, learned, prompts, spec().sampling, seeds=painter.seeds(who))
        assert np.abs(one.images["encoder"].astype(int) - to_uint8(expected)).max() <= 1
    expected = draw_prompts(parts.backbone, ["a photo of a person"] * 2, spec().sampling, seeds=[9, 10])
    assert np.abs(drawn[1].images["class_noun"].astype(int) - to_uint8(expected)).max() <= 1
    # The encoder is told apart from the wrong reference by the reference alone.
    swapped = painter.untuned([subjects[0]], [subjects[0].reference])[0].images
    assert np.abs(swapped["wrong_reference"].astype(int) - drawn[0].images["encoder"]).max() <= 1
    assert np.abs(drawn[0].images["wrong_reference"].astype(int) - drawn[0].images["encoder"]).max() > 1


def test_the_encoder_sees_the_subject_alone_where_it_was_pretrained_so(parts: E4TParts) -> None:
    masked = dataclasses.replace(parts, spec=parts.spec.model_copy(update={"mask_reference": True}))
    who = dataclasses.replace(
        subject(0), reference=dataclasses.replace(picture(0), mask=np.eye(16, dtype=np.uint8) * 255)
    )
    whole, alone = (
        Painter(parts.backbone, each, spec()).untuned([who], [who.reference])[0].images["encoder"]
        for each in (parts, masked)
    )
    assert np.abs(whole.astype(int) - alone).max() > 1


def test_prompts_and_seeds(parts: E4TParts) -> None:
    painter = Painter(parts.backbone, parts, spec())
    by_name = {column.name: column for column in COLUMNS}
    assert painter.prompt(subject(3), by_name["class_noun"]) == "a photo of a person"
    assert painter.prompt(subject(3), by_name["encoder"]) == "a photo of <concept>"
    assert painter.prompt(subject(3), by_name["new_scene"]) == "<concept>, smiling, with glasses on blue"
    assert painter.seeds(subject(0)) == [7, 8] and painter.seeds(subject(3)) == [13, 14]


def test_without_a_domain_the_noun_is_the_samples_own(parts: E4TParts) -> None:
    painter = Painter(parts.backbone, parts.backbone, spec(encoder=None, tuning={"method": "lora"}))
    assert painter.noun(subject(0)) == "cat"
    nameless = dataclasses.replace(subject(0), reference=dataclasses.replace(picture(0), noun=""))
    with pytest.raises(DataError, match="has no class_noun in its json"):
        painter.noun(nameless)


def test_tuning_changes_what_is_drawn(parts: E4TParts) -> None:
    rates = {"encoder": 1e-2, "offsets": 1e-2, "unet": 1e-2}
    tuning = {"steps": 3, "batch_size": 2, "storage": "fp32", "learning_rates": rates}
    painter = Painter(parts.backbone, parts, spec(tuning=tuning))
    assert names(painter.spec) == [
        "class_noun", "wrong_reference", "encoder", "tuned", "new_scene", "encoder_scene", "class_noun_scene",
    ]  # fmt: skip
    (after,) = painter.tuned(subject(0), subject(1))
    assert set(after.images) == {"tuned", "new_scene"} and after.number == 0 and after.tuning_seconds is not None
    before = painter.untuned([subject(0)], [subject(1).reference])[0]
    assert np.abs(before.images["encoder"].astype(int) - after.images["tuned"]).max() > 1


def test_without_an_encoder_the_wrong_reference_is_tuned_on(parts: E4TParts) -> None:
    """What was learned of one subject is drawn with the seeds of the one whose wrong reference it is."""
    tuning = {"method": "lora", "steps": 2, "batch_size": 2, "lora": {"learning_rate": 1e-2}, "storage": "fp32"}
    changed = spec(encoder=None, tuning=tuning)
    painter = Painter(parts.backbone, parts.backbone, changed)
    subjects = [subject(0), subject(1)]
    untuned = painter.untuned(subjects, [subjects[1].reference, subjects[0].reference])
    assert [set(one.images) for one in untuned] == [{"class_noun", "class_noun_scene"}] * 2
    own, wrong = painter.tuned(subjects[0], subjects[1])
    assert (own.number, wrong.number) == (0, 1) and set(wrong.images) == {"wrong_reference"}
    learned = lora.tune(parts.backbone, Pictures(*as_tensors(subjects[0].reference), ["smiling"]), changed.tuning,
                        class_noun="cat", seed=7)  # fmt: skip
    prompts = ["a photo of <concept>"] * 2
    for seeds, found in (([7, 8], own.images["tuned"]), ([9, 10], wrong.images["wrong_reference"])):
        expected = lora.sample(parts.backbone, learned, prompts, changed.sampling, seeds=seeds)
        assert np.abs(found.astype(int) - to_uint8(expected)).max() <= 1
    complete = untuned[0].merged(own).merged(painter.tuned(subjects[1], subjects[0])[1])
    assert set(complete.images) == set(names(changed))


def test_a_baseline_is_drawn_beside_the_method(parts: E4TParts) -> None:
    baseline = {"method": "textual_inversion", "steps": 1, "batch_size": 2}
    changed = spec(baseline=baseline, sampling={"steps": 2, "fusion": None})
    drawn = Painter(parts.backbone, parts, changed).baseline(subject(0))
    assert list(drawn.images) == ["baseline", "baseline_scene"] and drawn.tuning_seconds is None
    labels = {column.name: label_of(column, changed) for column in columns_of(changed)}
    assert labels["baseline"] == "textual inversion, 1 steps" and "tuned" not in labels


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_can_be_evaluated(method: str) -> None:
    """And a method's encoder is asked for, or refused."""
    has = hasattr(METHODS[method], "load_encoder")
    changed = spec(encoder="some" if has else None, tuning={"method": method})
    assert type(changed.tuning) is TUNE_SPECS[method] and has_encoder(changed) == has
    assert ("encoder" in names(changed)) == has and ("tuned" in names(changed)) == (method != "taming")
    with pytest.raises(ValidationError, match=r"starts from what it pretrained|has none"):
        spec(encoder=None if has else "some", tuning={"method": method})


def test_bytes_and_back() -> None:
    one = picture(0)
    image, mask = as_tensors(one)
    assert float(image.min()) >= -1 and float(image.max()) <= 1 and mask.shape == (1, 1, 16, 16)
    assert np.array_equal(to_uint8(image)[0], one.image)
    assert torch.equal(to_pixels(one.image[None]), image)
