"""Captioners: what is kept, replaced and appended, templates, and zero-shot phrases against a computation by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from imprint.config.data import CaptionerSpec
from imprint.errors import BackboneError
from imprint.features.clip import ClipFeatures
from imprint.pipelines.attribute_phrases import attribute_phrases
from imprint.pipelines.caption_models import PHRASES, ClipCaptioner, zero_shot_phrases
from imprint.pipelines.captions import CaptionStage, Columns, Written, caption_rows, fill_template, load_captioner
from imprint.training.batches import to_pixel_values

IDENTITY = CaptionerSpec().identity


def batch(captions: list[str]) -> Columns:
    generator = np.random.default_rng(0)
    documents = [json.dumps({"class_noun": "person", "caption_context": f"own {i}"}) for i in range(len(captions))]
    return {
        "__key__": np.array([f"key-{i}" for i in range(len(captions))]),
        "image": generator.integers(0, 255, (len(captions), 16, 16, 3), np.uint8),
        "caption": np.array(captions),
        "json": np.array(documents),
    }


def by_number(rows: Columns) -> list[Written]:
    own = [json.loads(document)["caption_context"][-1] for document in rows["json"]]
    return [Written(f"new {i}", f"who {i}", f"context {i}") for i in own]


def test_keep_takes_the_samples_own_words() -> None:
    found = CaptionStage(CaptionerSpec(kind="keep"))(batch(["a", "", "c"]))
    assert found["caption"].tolist() == ["a", "", "c"]
    assert found["context"].tolist() == ["own 0", "own 1", "own 2"]


def test_a_sample_without_json_has_no_context() -> None:
    rows = {**batch(["a"]), "json": np.array(["{}"])}
    assert caption_rows(rows, None)["context"].tolist() == [""]


@pytest.mark.parametrize(
    ("existing", "captions", "contexts"),
    [
        ("keep", ["a.", "new 1, who 1, context 1", "c"], ["own 0", "context 1", "own 2"]),
        ("replace", [f"new {i}, who {i}, context {i}" for i in range(3)], [f"context {i}" for i in range(3)]),
        (
            "append",
            ["a, new 0, who 0, context 0", "new 1, who 1, context 1", "c, new 2, who 2, context 2"],
            [f"own {i}" for i in range(3)],
        ),
    ],
)
def test_existing_captions(existing: str, captions: list[str], contexts: list[str]) -> None:
    found = caption_rows(batch(["a.", "", "c"]), by_number, existing=existing)  # type: ignore[arg-type]
    assert found["caption"].tolist() == captions
    assert found["context"].tolist() == contexts


def test_a_captioner_sees_only_the_samples_that_want_one() -> None:
    seen: list[int] = []

    def captioner(rows: Columns) -> list[Written]:
        seen.append(len(rows["image"]))
        return by_number(rows)

    caption_rows(batch(["a", "", "c"]), captioner)
    caption_rows(batch(["a", "b", "c"]), captioner)
    assert seen == [1]


def test_the_coarse_caption_may_be_the_samples_own_and_get_fine_phrases() -> None:
    rows = {**batch(["a man on a beach"]), "json": np.array(["{}"])}
    found = caption_rows(rows, lambda _: [Written(identity="with red hair", context="smiling")], existing="append")
    assert found["caption"].tolist() == ["a man on a beach, with red hair, smiling"]
    assert found["context"].tolist() == ["smiling"]


@pytest.mark.parametrize(
    ("template", "written", "expected"),
    [
        ("{coarse}, {fine}", Written("a dog", "brown", "on grass"), "a dog, brown, on grass"),
        ("{coarse}, {fine}", Written("a dog"), "a dog"),
        ("{coarse}, {fine}", Written(context="on grass"), "on grass"),
        ("a photo of {coarse}, {fine}", Written("a dog"), "a photo of a dog"),
        ("{fine}: {coarse}", Written("a dog", context="on grass"), "on grass: a dog"),
    ],
)
def test_templates(template: str, written: Written, expected: str) -> None:
    assert fill_template(template, written) == expected


def test_the_key_chooses_a_template_and_every_one_is_used() -> None:
    rows = batch([""] * 40)
    templates = ("one {coarse}", "two {coarse}", "three {coarse}")
    captions = caption_rows(rows, lambda r: [Written("x")] * len(r["image"]), templates=templates)["caption"].tolist()
    assert {text.split()[0] for text in captions} == {"one", "two", "three"}
    back = {name: values[::-1] for name, values in rows.items()}
    again = caption_rows(back, lambda r: [Written("x")] * len(r["image"]), templates=templates)["caption"].tolist()
    assert again == captions[::-1]


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"kind": "keep", "existing": "replace"}, "nothing would be written"),
        ({"kind": "keep", "fine": "clip"}, "set existing=append"),
        ({"templates": ["a photo"]}, "expected {coarse} and {fine}"),
        ({"templates": ["{noun}, {coarse}"]}, "expected {coarse} and {fine}"),
        ({"actors": 2, "max_actors": 1}, "max_actors=1 is less than actors=2"),
    ],
)
def test_a_section_that_makes_no_sense_is_refused(section: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        CaptionerSpec.model_validate(section)


def test_zero_shot_takes_a_phrase_with_more_than_half_of_the_softmax() -> None:
    texts = torch.eye(3)
    sure = torch.tensor([0.0, 1.0, 0.0])
    unsure = torch.tensor([1.0, 1.0, 1.0]) / 3**0.5
    # two phrases 0.001 apart: a logit gap of 0.1, a share of 1 / (1 + exp(-0.1)) = 0.525 of the two
    near = torch.tensor([0.7001, 0.6991, 0.0])
    found = zero_shot_phrases(torch.stack([sure, unsure, near]), ["x", "y", "z"], texts)
    assert found == ["y", None, "x"]
    assert zero_shot_phrases(near[None], ["x", "y", "z"], texts, confidence=0.53) == [None]


def test_clip_writes_a_noun_and_at_most_one_phrase_of_each_group(tiny_clip: Path) -> None:
    for written in ClipCaptioner(ClipFeatures.load(tiny_clip))(batch(["", ""])):
        assert written.coarse == "a person"
        for text, is_identity in ((written.identity, True), (written.context, False)):
            phrases = [phrase for phrase in text.split(", ") if phrase]
            groups = [name for phrase in phrases for name, members in PHRASES.items() if phrase in members]
            assert len(groups) == len(phrases) == len(set(groups))
            assert all((group in IDENTITY) == is_identity for group in groups)


def test_clip_recognises_the_texts_it_is_shown(tiny_clip: Path) -> None:
    """With pictures' embeddings put in place of texts, the right phrase of each group is found."""
    clip = ClipFeatures.load(tiny_clip)
    spec = CaptionerSpec(kind="clip", phrases={"mood": ("smiling", "sad")}, identity=("mood",))
    captioner = ClipCaptioner(clip, spec)
    rows = batch(["", ""])
    embedded = clip.encode_image(to_pixel_values(rows["image"]))
    captioner.groups = {"mood": (("smiling", "sad"), torch.stack([embedded[1], embedded[0]]))}
    captioner.nouns = (("owl", "dog"), embedded)
    rows["json"] = np.array(["{}", "{}"])
    sure = 1 / (1 + np.exp(-100 * float(1 - embedded[0] @ embedded[1]))) > 0.5
    assert sure
    assert captioner(rows) == [Written("an owl", "sad", ""), Written("a dog", "smiling", "")]


def test_pictures_of_several_sizes_are_embedded_in_their_order(tiny_clip: Path) -> None:
    clip = ClipFeatures.load(tiny_clip)
    generator = np.random.default_rng(1)
    images = [generator.integers(0, 255, (h, w, 3), np.uint8) for h, w in ((16, 16), (24, 20), (16, 16), (32, 16))]
    found = ClipCaptioner(clip, CaptionerSpec(kind="clip", batch_size=1)).embed(images)
    each = torch.cat([clip.encode_image(to_pixel_values(image[None])) for image in images])
    torch.testing.assert_close(found, each)


def test_the_embedded_clip_says_the_background_of_a_plain_picture() -> None:
    rows = batch([""])
    rows["image"] = np.full((1, 64, 64, 3), (30, 60, 220), np.uint8)
    captioner = load_captioner(CaptionerSpec(kind="clip"))
    assert captioner is not None
    assert captioner(rows) == [Written("a person", "", "on a blue background")]


def test_attributes_become_phrases() -> None:
    values = {
        "background": "blue", "glasses": "round glasses", "expression": "smiling", "hair": "big hair",
        "hair_color": "auburn", "facial_hair": "none", "facial_hair_color": "none", "skin": "tan skin",
        "clothing_color": "green", "hat": "none",
    }  # fmt: skip
    assert attribute_phrases(values, IDENTITY) == Written(
        identity="with big auburn hair, with tan skin",
        context="on a blue background, with round glasses, smiling, wearing green clothes",
    )


def test_attributes_that_are_unsure_absent_or_hidden_are_not_said() -> None:
    values = {"background": "not plain", "glasses": None, "hair": "bob", "hair_color": "red", "hat": "turban"}
    assert attribute_phrases(values, IDENTITY) == Written(context="wearing a turban")
    assert attribute_phrases({"hair": "bob", "hair_color": None}, IDENTITY).identity == "with a bob"
    assert attribute_phrases({"breed": "poodle"}, {"breed"}) == Written(identity="poodle")


def test_the_attribute_reader_writes_fine_phrases_of_any_size() -> None:
    spec = CaptionerSpec(kind="keep", fine="attributes", existing="append", confidence=0.0)
    captioner = load_captioner(spec)
    assert captioner is not None
    images = np.empty(2, dtype=object)
    images[:] = [np.full((64, 64, 3), 200, np.uint8), np.full((96, 80, 3), 60, np.uint8)]
    rows = {**batch(["a man", ""]), "image": images}
    found = CaptionStage(spec)(rows)
    written = captioner(rows)
    assert found["caption"].tolist() == [f"a man, {written[0].fine}", written[1].fine]
    assert all("with" in one.identity for one in written)
    silent = load_captioner(spec.model_copy(update={"confidence": 0.999999}))
    assert silent is not None
    assert len(silent(rows)[0].fine) < len(written[0].fine)


def test_coarse_and_fine_of_two_models(tiny_clip: Path) -> None:
    spec = CaptionerSpec(kind="clip", model=str(tiny_clip), fine="attributes", existing="replace", confidence=0.0)
    captioner = load_captioner(spec)
    assert captioner is not None
    (written,) = captioner(batch([""]))
    assert written.coarse == "a person"
    assert "skin" in written.identity


def test_a_clip_that_is_not_there_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match="loading CLIP"):
        load_captioner(CaptionerSpec(kind="clip", model=str(tmp_path)))
