"""Faces: who is held out, what captions say, what masks cover, and that the seed decides every byte."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from imprint.config.jobs.prepare import BackgroundMix, PrepareFaces
from imprint.errors import DataError
from imprint.pipelines.datasets import face_render, face_words
from imprint.pipelines.datasets.compositing import composite
from imprint.pipelines.datasets.draw import Draw
from imprint.pipelines.datasets.face_captions import draw_captions, phrases
from imprint.pipelines.datasets.face_identity import Identity, draw_identities
from imprint.pipelines.datasets.face_render import render_face
from imprint.pipelines.datasets.face_variant import Placing, Variant, attributes, draw_variant
from imprint.pipelines.datasets.faces import FaceItem, prepare_faces, render_item

SPEC = PrepareFaces(
    job="prepare_faces",
    name="test",
    out_dir="unused",
    sizes=(16, 32),
    workers=1,
    samples_per_shard=8,
    train_identities=5,
    train_variants=3,
    heldout_identities=2,
    heldout_variants=2,
)

REDBEARD = Identity("LIGHT", "SHORT_FLAT", "BLACK", "BEARD_MEDIUM", "RED", "DEFAULT")
PLAIN = Variant(
    expression="smiling",
    eyes="DEFAULT",
    eyebrows="DEFAULT",
    mouth="SMILE",
    glasses="NONE",
    clothing="HOODIE",
    clothing_color="blue",
    graphic="BAT",
    hat="none",
    hat_color="red",
    placing=Placing(scale=1.0, shift_x=0.0, shift_down=0.0, flip=False),
)


def read_samples(folder: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """(key, members) of every sample of a folder, shard after shard, in the manifest's order."""
    for shard in json.loads((folder / "manifest.json").read_text())["shards"]:
        samples: dict[str, dict[str, bytes]] = {}
        with tarfile.open(folder / shard["name"]) as tar:
            for member in tar:
                key, _, extension = member.name.partition(".")
                samples.setdefault(key, {})[extension] = tar.extractfile(member).read()
        assert len(samples) == shard["samples"]
        yield from samples.items()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    calls: list[tuple[int, int]] = []
    folders = prepare_faces(
        SPEC.model_copy(update={"out_dir": str(tmp_path_factory.mktemp("faces"))}),
        lambda done, total: calls.append((done, total)),
    )
    assert calls == [(4, 19), (12, 19), (19, 19)]
    return folders


def test_every_picture_asked_for_is_there_with_all_its_members(prepared: dict[int, Path]) -> None:
    for size, folder in prepared.items():
        assert folder.name == f"faces-{size}"
        samples = dict(read_samples(folder))
        expected = {f"face-{n:06d}-{v}" for n in range(5) for v in range(3)}
        expected |= {f"heldout-face-{n:06d}-{v}" for n in range(2) for v in range(2)}
        assert set(samples) == expected
        for members in samples.values():
            assert set(members) == {"jpg", "mask.png", "txt", "json"}
            assert simplejpeg.decode_jpeg(members["jpg"]).shape == (size, size, 3)


def test_the_seed_decides_every_byte(prepared: dict[int, Path], tmp_path: Path) -> None:
    first = (prepared[16] / "manifest.json").read_bytes()
    again = prepare_faces(SPEC.model_copy(update={"out_dir": str(tmp_path / "again")}))
    assert (again[16] / "manifest.json").read_bytes() == first
    for path in prepared[16].glob("*.tar"):
        assert (again[16] / path.name).read_bytes() == path.read_bytes()
    other = prepare_faces(SPEC.model_copy(update={"out_dir": str(tmp_path / "other"), "seed": 1}))
    assert (other[16] / "heldout-000000.tar").read_bytes() != (again[16] / "heldout-000000.tar").read_bytes()


def test_the_number_of_processes_does_not_change_a_byte(prepared: dict[int, Path], tmp_path: Path) -> None:
    parallel = prepare_faces(SPEC.model_copy(update={"out_dir": str(tmp_path), "workers": 2}))
    for path in prepared[32].glob("*"):
        assert (parallel[32] / path.name).read_bytes() == path.read_bytes()


def test_the_mask_is_the_alpha_of_the_drawing(prepared: dict[int, Path]) -> None:
    identity = draw_identities(SPEC.seed, 5, 2)["train"][3]
    members = dict(read_samples(prepared[32]))["face-000003-1"]
    mask = np.asarray(Image.open(io.BytesIO(members["mask.png"])))
    alpha = render_item(SPEC, FaceItem("train", 3, 1, identity), 32).subject[..., 3]
    np.testing.assert_array_equal(mask, alpha)
    small = dict(read_samples(prepared[16]))["face-000003-1"]
    blocks = alpha.astype(float).reshape(16, 2, 16, 2).mean((1, 3))
    assert np.abs(np.asarray(Image.open(io.BytesIO(small["mask.png"]))) - blocks).max() <= 0.5


def test_the_picture_is_the_drawing_over_its_background() -> None:
    identity = draw_identities(SPEC.seed, 5, 2)["train"][0]
    picture = render_item(SPEC, FaceItem("train", 0, 0, identity), 32)
    mixed = composite(picture.subject, picture.background)
    alpha = picture.subject[..., 3]
    assert (alpha == 0).any() and (alpha == 255).any()
    np.testing.assert_array_equal(mixed[alpha == 0], picture.background[alpha == 0])
    np.testing.assert_array_equal(mixed[alpha == 255], picture.subject[alpha == 255][:, :3])
    y, x = np.argwhere((alpha > 60) & (alpha < 200))[0]
    share = alpha[y, x] / 255
    by_hand = share * picture.subject[y, x, :3] + (1 - share) * picture.background[y, x]
    assert np.abs(mixed[y, x] - by_hand).max() <= 0.5


def test_no_look_is_on_both_sides_of_the_split() -> None:
    found = draw_identities(0, 3000, 500)
    assert len(set(found["train"])) == 3000 and len(set(found["heldout"])) == 500
    looks = {side: {astuple(identity)[:-1] for identity in identities} for side, identities in found.items()}
    assert not looks["train"] & looks["heldout"]
    for side, identities in found.items():
        assert {identity.split for identity in identities} == {side}
        assert {replace(identity, nose=nose).split for identity in identities for nose in face_words.NOSES} == {side}


def test_the_split_is_fixed_for_ever() -> None:
    """As `printf imprint-faces-split-1/LOOK | sha256sum` says: the first hexadecimal digit is 0 for one look in 16."""
    assert REDBEARD.split == "train"  # afbc2598...
    assert Identity("PALE", "NONE", "NONE", "NONE", "NONE", "WIDE").split == "train"  # 517ad932...
    heldout = Identity("TANNED", "BRAIDS", "AUBURN", "MOUSTACHE_MAGNUM", "AUBURN", "WIDE")
    assert heldout.split == "heldout"  # 07f41aca...


def test_more_identities_begin_with_the_same_ones_whatever_the_other_side() -> None:
    few, many = draw_identities(7, 20, 5), draw_identities(7, 200, 30)
    assert many["train"][:20] == few["train"] and many["heldout"][:5] == few["heldout"]


def test_attributes_that_cannot_be_seen_make_no_new_identity() -> None:
    for identity in draw_identities(3, 2000, 100)["train"]:
        assert (identity.hair == "NONE") == (identity.hair_color == "NONE")
        assert (identity.facial_hair == "NONE") == (identity.facial_hair_color == "NONE")


def every_picture(count: int = 400) -> Iterator[tuple[Identity, Variant, dict[str, Any], str, str]]:
    """(identity, variant, attributes, background phrase, caption) of many pictures, without drawing them."""
    for number, identity in enumerate(draw_identities(5, count, 0)["train"]):
        draw = Draw("test", number)
        variant = draw_variant(draw, hat_share=0.3)
        background = draw.choice(("on a blue background", "in front of a photo of a cat"))
        captions = draw_captions(draw, identity, variant, background)
        yield identity, variant, attributes(identity, variant), background, captions.caption


def test_a_caption_says_nothing_that_is_not_so() -> None:
    """Take every true phrase out of a caption: no word of the vocabulary may be left."""
    vocabulary = {
        word
        for table in (face_words.HAIRS, face_words.FACIAL_HAIRS, face_words.SKINS, face_words.CLOTHES, face_words.HATS)
        for phrase in table.values()
        for word in phrase.split()
    } | {*face_words.HAIR_COLORS.values(), *face_words.CLOTHING_COLORS, *face_words.EXPRESSIONS, "glasses", "cat"}
    vocabulary |= {"sunglasses", "eyepatch", "background", "nose"}
    vocabulary -= {"a", "the", "with", "on", "at", "{}", "over", "top", "it", "of"}
    full = 0
    for identity, variant, _, background, caption in every_picture():
        rest = caption
        known = phrases(identity, variant, background)
        said = [text for text in sorted(known.values(), key=len, reverse=True) if text in rest]
        for text in said:
            rest = rest.replace(text, " ")
        left = set(rest.replace(",", " ").split())
        assert not left & vocabulary, (caption, left & vocabulary)
        assert left & {"man", "person", "face"}, caption
        full += len(said) >= 4
    assert 0.3 < full / 400 < 0.9


def test_captions_agree_with_the_attributes() -> None:
    for _, _, words, _, caption in every_picture():
        if words["hat"] == "none":
            assert " hat" not in caption and "turban" not in caption
        if words["facial_hair"] == "none":
            assert "beard" not in caption and "moustache" not in caption and " man" not in f" {caption}"
        if words["glasses"] == "none":
            assert "glasses" not in caption and "eyepatch" not in caption
        for expression in face_words.EXPRESSIONS:
            if f" {expression}" in f" {caption}":
                assert words["expression"] == expression


def test_the_caption_of_the_readme_can_be_drawn() -> None:
    variant = replace(PLAIN, glasses="ROUND")
    captions = {
        draw_captions(Draw(number), REDBEARD, variant, "on a blue background").caption for number in range(3000)
    }
    assert "a smiling man with a red beard and round glasses, on a blue background" in captions


def test_the_two_halves_hold_every_phrase() -> None:
    for identity, variant, _, background, _ in every_picture(50):
        captions = draw_captions(Draw("halves"), identity, variant, background)
        for part, text in phrases(identity, variant, background).items():
            half = captions.identity if part in ("hair", "facial_hair", "skin", "nose") else captions.context
            assert text in half


def test_a_hat_hides_the_hair_in_the_caption_and_never_on_the_first_pictures(tmp_path: Path) -> None:
    spec = SPEC.model_copy(update={"out_dir": str(tmp_path), "sizes": (16,), "hat_share": 1.0})
    hats = {}
    for key, members in read_samples(prepare_faces(spec)[16]):
        fields = json.loads(members["json"])
        hats[key] = fields["attributes"]["hat"] != "none"
        assert hats[key] == (fields["attributes"]["hat_color"] != "none")
        if hats[key]:
            assert "hair" not in fields["caption_identity"].replace("hair bun", "")
    assert {key for key, hat in hats.items() if hat} == {f"face-{number:06d}-2" for number in range(5)}


def test_nothing_dark_is_worn_over_an_expression_of_the_eyes() -> None:
    dark = 0
    for _, variant, words, _, _ in every_picture():
        if variant.glasses in face_words.DARK_GLASSES:
            dark += 1
            assert not face_words.EXPRESSIONS[variant.expression].in_eyes
            assert words["eyes"] == "hidden eyes"
    assert dark > 20


def test_every_name_of_the_vocabulary_can_be_drawn_and_changes_the_picture() -> None:
    """Each member of each table gives a picture of its own; look-alikes that share their words may be alike."""
    base = render_face(REDBEARD, PLAIN, 64)
    fields: list[tuple[str, Any]] = [
        ("skin", face_words.SKINS), ("hair", face_words.HAIRS), ("hair_color", face_words.HAIR_COLORS),
        ("facial_hair", face_words.FACIAL_HAIRS), ("facial_hair_color", face_words.HAIR_COLORS),
        ("nose", face_words.NOSES),
    ]  # fmt: skip
    for field, table in fields:
        drawn = {name: render_face(replace(REDBEARD, **{field: name}), PLAIN, 64).tobytes() for name in table}
        assert len(set(drawn.values())) == len(table), field
        assert drawn[getattr(REDBEARD, field)] == base.tobytes()
    glasses = {**face_words.CLEAR_GLASSES, **face_words.DARK_GLASSES, "NONE": "none"}
    for field, table in [
        ("glasses", glasses), ("clothing", face_words.CLOTHES), ("hat", face_words.HATS), ("mouth", face_words.MOUTHS),
        ("eyes", face_words.EYES), ("eyebrows", face_words.EYEBROWS), ("clothing_color", face_words.CLOTHING_COLORS),
    ]:  # fmt: skip
        drawn = {name: render_face(REDBEARD, replace(PLAIN, **{field: name}), 64).tobytes() for name in table}
        assert len(set(drawn.values())) == len(table), field
    graphic = replace(PLAIN, clothing="GRAPHIC_SHIRT")
    drawn = {name: render_face(REDBEARD, replace(graphic, graphic=name), 64).tobytes() for name in face_words.GRAPHICS}
    assert len(set(drawn.values())) == len(face_words.GRAPHICS)


def test_placing_moves_scales_and_flips() -> None:
    base = render_face(REDBEARD, PLAIN, 64)
    flipped = render_face(REDBEARD, replace(PLAIN, placing=replace(PLAIN.placing, flip=True)), 64)
    np.testing.assert_array_equal(flipped, base[:, ::-1])
    small = render_face(REDBEARD, replace(PLAIN, placing=replace(PLAIN.placing, scale=0.8)), 64)
    ratio = (small[..., 3] > 127).sum() / (base[..., 3] > 127).sum()
    assert ratio == pytest.approx(0.8**2, abs=0.02)
    assert (base[-1, :, 3] == 255).sum() > 32, "shoulders reach the lower edge"
    assert (small[-1, :, 3] == 255).sum() > 25, "also when small"


def test_another_version_of_the_avatars_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(face_render, "_CANVAS", "another canvas")
    with pytest.raises(DataError, match=r"install python-avatars 1\.4\.1"):
        render_face(REDBEARD, PLAIN, 16)


def test_backgrounds_follow_the_mix(tmp_path: Path) -> None:
    spec = SPEC.model_copy(
        update={"out_dir": str(tmp_path), "sizes": (16,), "backgrounds": BackgroundMix(plain=0, gradient=0, photo=0)}
    )
    for _, members in read_samples(prepare_faces(spec)[16]):
        assert json.loads(members["json"])["attributes"]["background_kind"] == "texture"
