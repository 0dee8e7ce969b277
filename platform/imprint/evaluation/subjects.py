"""Whom an evaluation personalizes, and the new scene that is asked of each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import UInt8

from imprint.config.jobs.evaluate import SceneSpec
from imprint.errors import DataError

ASKED = ("background", "glasses", "expression")
"""What a new scene asks for, by the names of the attributes."""


@dataclass(frozen=True)
class Picture:
    """A real picture and all that is known of it."""

    image: UInt8[np.ndarray, "h w 3"]
    mask: UInt8[np.ndarray, "h w"]
    attributes: Mapping[str, str]
    context: str
    noun: str = ""


@dataclass(frozen=True)
class Subject:
    """An identity: the picture it is learned from, one that shows how alike real pictures are, and all others.

    `scene` is what is asked for beyond identity; it differs in everything from the reference.
    """

    number: int
    identity: str
    reference: Picture
    ceiling: Picture
    targets: tuple[Picture, ...]
    scene: Mapping[str, str]


def collect_subjects(
    pictures: Iterable[tuple[str, Picture]], count: int, scenes: SceneSpec, seed: int
) -> list[Subject]:
    """The first `count` identities of (identity, picture) pairs, pictures of one identity side by side.

    An identity's first picture is its reference, the second the ceiling, the others are what all columns are compared
    with. Pictures whose hair is under a hat do not show who it is, and are left out.

    Raises:
        DataError: there are fewer identities with three pictures or more.
    """
    subjects: list[Subject] = []
    current, found = None, []
    for identity, picture in [*_bareheaded(pictures), (None, None)]:
        if identity != current:
            if current is not None and len(found) >= 3:
                scene = choose_scene(found[0].attributes, scenes, np.random.default_rng([seed, len(subjects)]))
                subjects.append(Subject(len(subjects), current, found[0], found[1], tuple(found[2:]), scene))
            if len(subjects) == count:
                return subjects
            current, found = identity, []
        if picture is not None:
            found.append(picture)
    raise DataError(
        f"collecting subjects: got {len(subjects)} identities with three pictures or more, expected {count}; lower "
        "`subjects`, or prepare more held-out identities"
    )


def showing(pictures: Iterable[tuple[str, Picture]], attributes: Mapping[str, str]) -> Iterator[tuple[str, Picture]]:
    """Those (identity, picture) pairs whose picture has all of these attributes."""
    for identity, picture in pictures:
        if all(picture.attributes.get(name) == value for name, value in attributes.items()):
            yield identity, picture


def _bareheaded(pictures: Iterable[tuple[str, Picture]]) -> Iterable[tuple[str, Picture]]:
    return ((identity, picture) for identity, picture in pictures if picture.attributes.get("hat", "none") == "none")


def choose_scene(attributes: Mapping[str, str], scenes: SceneSpec, generator: np.random.Generator) -> dict[str, str]:
    """One of each list, none of them what the reference picture shows already."""
    lists: dict[str, Sequence[str]] = {
        "background": scenes.backgrounds, "glasses": scenes.glasses, "expression": scenes.expressions,
    }  # fmt: skip
    chosen = {}
    for name in ASKED:
        others = [value for value in lists[name] if value != attributes.get(name)]
        chosen[name] = others[int(generator.integers(len(others)))]
    return chosen


def somebody_else(number: int, count: int) -> int:
    """The subject whose picture stands in as the wrong reference: the one half the list away."""
    return (number + count // 2) % count


def parse_attributes(record: Mapping[str, Any]) -> dict[str, str]:
    """The attributes in a sample's json, as text."""
    return {str(name): str(value) for name, value in record.get("attributes", {}).items()}
