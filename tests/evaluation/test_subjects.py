"""Whom an evaluation takes, and what it asks of them."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from imprint.config.jobs.evaluate import SceneSpec
from imprint.errors import DataError
from imprint.evaluation.subjects import Picture, choose_scene, collect_subjects, showing, somebody_else

SCENES = SceneSpec(
    backgrounds=("red", "blue", "green"), glasses=("round glasses", "sunglasses"), expressions=("sad", "smiling")
)


def picture(value: int, **attributes: str) -> Picture:
    return Picture(np.full((4, 4, 3), value, np.uint8), np.zeros((4, 4), np.uint8), attributes, "")


def test_the_first_picture_is_the_reference_the_second_the_ceiling() -> None:
    pictures = [(name, picture(10 * i + j)) for i, name in enumerate("abc") for j in range(4)]
    subjects = collect_subjects(iter(pictures), 2, SCENES, seed=0)
    assert [subject.identity for subject in subjects] == ["a", "b"]
    assert [subject.number for subject in subjects] == [0, 1]
    assert subjects[1].reference.image[0, 0, 0] == 10 and subjects[1].ceiling.image[0, 0, 0] == 11
    assert [target.image[0, 0, 0] for target in subjects[1].targets] == [12, 13]


def test_pictures_with_hats_are_left_out_and_so_are_identities_with_too_few() -> None:
    pictures = [
        *[("a", picture(i, hat="turban" if i else "none")) for i in range(4)],
        *[("b", picture(i, hat="turban" if i == 1 else "none")) for i in range(4)],
    ]
    (subject,) = collect_subjects(pictures, 1, SCENES, seed=0)
    assert subject.identity == "b" and subject.ceiling.image[0, 0, 0] == 2
    with pytest.raises(DataError, match="got 1 identities"):
        collect_subjects(pictures, 2, SCENES, seed=0)


def test_pictures_of_some_attributes_alone() -> None:
    pictures = [("a", picture(j, style="noto" if j % 2 else "flat", group="food")) for j in range(6)]
    assert [one.image[0, 0, 0] for _, one in showing(pictures, {"style": "noto", "group": "food"})] == [1, 3, 5]
    assert list(showing(pictures, {"style": "noto", "colour": "red"})) == [] and len(list(showing(pictures, {}))) == 6


def test_more_subjects_begin_with_the_same_ones() -> None:
    pictures = [(name, picture(j, glasses="sunglasses")) for name in "abcdef" for j in range(3)]
    few, many = (collect_subjects(pictures, count, SCENES, seed=3) for count in (2, 6))
    assert [subject.scene for subject in few] == [subject.scene for subject in many[:2]]


def test_a_scene_differs_from_the_reference_in_everything_and_is_spread_evenly() -> None:
    own = {"background": "red", "glasses": "sunglasses", "expression": "angry"}
    drawn = [choose_scene(own, SCENES, np.random.default_rng(seed)) for seed in range(400)]
    assert {scene["glasses"] for scene in drawn} == {"round glasses"}
    backgrounds = Counter(scene["background"] for scene in drawn)
    assert set(backgrounds) == {"blue", "green"} and 160 < backgrounds["blue"] < 240
    assert {scene["expression"] for scene in drawn} == {"sad", "smiling"}


@pytest.mark.parametrize("count", [2, 3, 6, 101])
def test_somebody_else_is_never_oneself_and_each_is_taken_once(count: int) -> None:
    others = [somebody_else(number, count) for number in range(count)]
    assert sorted(others) == list(range(count)) and all(other != number for number, other in enumerate(others))
