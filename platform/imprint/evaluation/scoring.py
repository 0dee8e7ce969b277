"""Score what was drawn: whom it shows, and whether it did as the prompt said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8

from imprint.evaluation.attributes import AttributeReader
from imprint.evaluation.columns import COLUMNS, Drawn, to_pixels
from imprint.evaluation.identity import HEAD, FeatureNetwork, Whitening, raw_features, similarity_to
from imprint.evaluation.statistics import area_under_curve, nearest_identity
from imprint.evaluation.subjects import ASKED, Picture, Subject, somebody_else

FLOOR, CEILING = "another_person", "real"
"""Rows of real pictures: of somebody else, and one more of the subject."""

KEPT = ("skin", "hair", "hair_color", "facial_hair", "facial_hair_color")
"""Attributes that make an identity, as far as a reader can see them."""

DIMENSIONS = 128
"""Of the whitened features; the study in `imprint.evaluation.identity` has 64 and 32 as well."""


@dataclass(frozen=True)
class Scores:
    """One value for each subject, by row of the report.

    `identity` is a cosine; `recognized` the share of pictures nearer to the subject than to any other subject; `kept`
    the share of identity attributes that are read as they truly are. `obeyed` is by column and by attribute asked for,
    `chance` what a picture drawn for another subject would have got by luck, and `readable` the share that is read
    right of the subjects' real pictures that show one of the values asked for.
    """

    identity: dict[str, Float[np.ndarray, "subjects"]]
    recognized: dict[str, Float[np.ndarray, "subjects"]]
    kept: dict[str, Float[np.ndarray, "subjects"]]
    obeyed: dict[str, dict[str, Float[np.ndarray, "subjects"]]]
    chance: dict[str, float]
    readable: dict[str, float]
    scorer: dict[str, float]


class Scorer:
    """The identity network, calibrated on real pictures of other people, and the attribute reader, if there is one."""

    def __init__(
        self, network: FeatureNetwork, reader: AttributeReader | None, calibration: Sequence[tuple[str, Picture]]
    ) -> None:
        self.network = network
        self.reader = reader
        features = self._features(np.stack([picture.image for _, picture in calibration]))
        self.whitening = Whitening.fit(features, [identity for identity, _ in calibration], DIMENSIONS)

    def embed(self, images: UInt8[np.ndarray, "n h w 3"]) -> Float[np.ndarray, "n d"]:
        """Unit vectors whose dot product is the identity score."""
        return self.whitening(self._features(images))

    def _features(self, images: UInt8[np.ndarray, "n h w 3"]) -> Float[np.ndarray, "n width"]:
        pixels = to_pixels(images)
        if self.reader is None:
            return raw_features(self.network, pixels, None, None)
        return raw_features(self.network, pixels, self.reader.masks(pixels), HEAD)

    def score(self, subjects: Sequence[Subject], drawn: Sequence[Drawn]) -> Scores:
        """Score all columns and the two rows of real pictures. `drawn` is in the order of `subjects`."""
        rows = rows_of(subjects, drawn)
        targets = [self.embed(np.stack([p.image for p in subject.targets])) for subject in subjects]
        own = np.arange(len(subjects))
        identity, recognized = {}, {}
        for name, images in rows.items():
            copies = images.shape[1]
            similar = similarity_to(self.embed(images.reshape(-1, *images.shape[2:])), targets)
            mine = np.repeat(own, copies)
            identity[name] = similar[np.arange(len(mine)), mine].reshape(-1, copies).mean(axis=1)
            recognized[name] = nearest_identity(similar, mine).reshape(-1, copies).mean(axis=1)
        kept, obeyed, chance = self._read(subjects, rows) if self.reader is not None else ({}, {}, {})
        readable = self._readable(subjects) if self.reader is not None else {}
        return Scores(identity, recognized, kept, obeyed, chance, readable, self._scorer(subjects, targets))

    def _scorer(self, subjects: Sequence[Subject], targets: Sequence[Float[np.ndarray, "m d"]]) -> dict[str, float]:
        """How well the score tells real pictures of one identity from those of two."""
        probes = self.embed(np.stack([subject.ceiling.image for subject in subjects]))
        similar = similarity_to(probes, targets)
        same, other = np.diag(similar), similar[~np.eye(len(similar), dtype=bool)]
        return {
            "area_under_curve": area_under_curve(same, other),
            "nearest_identity": float(nearest_identity(similar, np.arange(len(subjects))).mean()),
            "same_mean": float(same.mean()),
            "different_mean": float(other.mean()),
        }

    def _read(
        self, subjects: Sequence[Subject], rows: Mapping[str, UInt8[np.ndarray, "n k h w 3"]]
    ) -> tuple[dict[str, np.ndarray], dict[str, dict[str, np.ndarray]], dict[str, float]]:
        assert self.reader is not None
        kept, obeyed = {}, {}
        asked = [subject.scene for subject in subjects]
        truth = [subject.reference.attributes for subject in subjects]
        scenes = {column.name for column in COLUMNS if column.scene}
        matches: dict[str, list[np.ndarray]] = {name: [] for name in ASKED}
        for name, images in rows.items():
            copies = images.shape[1]
            read = self.reader.read(to_pixels(images.reshape(-1, *images.shape[2:])))
            kept[name] = np.mean([_agreement(read[a], truth, a, copies) for a in KEPT if a in read], axis=0)
            if name in scenes:
                obeyed[name] = {a: _agreement(read[a], asked, a, copies) for a in ASKED}
                for attribute in ASKED:
                    matches[attribute].append(_by_luck(read[attribute], asked, attribute, copies))
        return kept, obeyed, {name: float(np.mean(values)) for name, values in matches.items() if values}

    def _readable(self, subjects: Sequence[Subject]) -> dict[str, float]:
        assert self.reader is not None
        real = [picture for one in subjects for picture in (one.reference, one.ceiling, *one.targets)]
        read = self.reader.read(to_pixels(np.stack([picture.image for picture in real])))
        shares = {}
        for attribute in ASKED:
            asked = {subject.scene[attribute] for subject in subjects}
            truth = [picture.attributes.get(attribute) for picture in real]
            right = [value == true for value, true in zip(read[attribute], truth, strict=True) if true in asked]
            if right:
                shares[attribute] = sum(right) / len(right)
        return shares


def rows_of(subjects: Sequence[Subject], drawn: Sequence[Drawn]) -> dict[str, UInt8[np.ndarray, "n k h w 3"]]:
    """Every row of the report as pictures; the real ones have one copy, at the size of those drawn."""
    assert [subject.number for subject in subjects] == [one.number for one in drawn]
    real = np.stack([subject.ceiling.image for subject in subjects])[:, None]
    others = real[[somebody_else(number, len(subjects)) for number in range(len(subjects))]]
    found = [column.name for column in COLUMNS if column.name in drawn[0].images]
    columns = {name: np.stack([one.images[name] for one in drawn]) for name in found}
    return {FLOOR: others, **columns, CEILING: real}


def _agreement(
    read: Sequence[str], truth: Sequence[Mapping[str, str]], attribute: str, copies: int
) -> Float[np.ndarray, "subjects"]:
    right = [value == truth[i // copies].get(attribute) for i, value in enumerate(read)]
    return np.asarray(right, dtype=np.float64).reshape(-1, copies).mean(axis=1)


def _by_luck(read: Sequence[str], asked: Sequence[Mapping[str, str]], attribute: str, copies: int) -> np.ndarray:
    """The share of other subjects' pictures that show what this subject was asked to."""
    matrix = np.asarray([[value == one[attribute] for value in read] for one in asked])
    mine = np.repeat(np.eye(len(asked), dtype=bool), copies, axis=1)
    return matrix[~mine]
