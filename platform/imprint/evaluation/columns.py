"""The columns of the report, and how each is drawn: what differs between two columns is one thing alone."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from imprint.backbone import PLACEHOLDER
from imprint.config.jobs.evaluate import Evaluate
from imprint.evaluation.subjects import Picture, Subject
from imprint.methods import METHODS
from imprint.methods.base import Pictures
from imprint.methods.e4t import E4TParts, concept_features, sample_features
from imprint.sampling.draw import draw_prompts

Source = Literal["class_noun", "wrong_reference", "encoder", "tuned"]


@dataclass(frozen=True)
class Column:
    """`source` is what stands in the prompt; `scene` says that a new scene is asked for."""

    name: str
    label: str
    source: Source
    scene: bool = False


COLUMNS = (
    Column("class_noun", "class noun only", "class_noun"),
    Column("wrong_reference", "wrong reference", "wrong_reference"),
    Column("encoder", "encoder alone", "encoder"),
    Column("tuned", "after {steps} steps", "tuned"),
    Column("new_scene", "in a new scene", "tuned", scene=True),
    Column("encoder_scene", "encoder alone, new scene", "encoder", scene=True),
    Column("class_noun_scene", "class noun, new scene", "class_noun", scene=True),
)


@dataclass(frozen=True)
class Drawn:
    """Pictures [k, h, w, 3] of one subject, k seeds, by column; with how long tuning took, where there was any."""

    number: int
    images: Mapping[str, UInt8[np.ndarray, "k h w 3"]]
    tuning_seconds: float | None = None

    def merged(self, other: Drawn) -> Drawn:
        """The columns of both."""
        assert self.number == other.number
        seconds = self.tuning_seconds if other.tuning_seconds is None else other.tuning_seconds
        return Drawn(self.number, {**self.images, **other.images}, seconds)


class Painter:
    """Draws all columns of subjects, with one encoder on one backbone. Seeds are the same over columns."""

    def __init__(self, parts: E4TParts, spec: Evaluate) -> None:
        self.parts = parts
        self.spec = spec
        self.method: ModuleType = METHODS[spec.tuning.method]

    def untuned(self, subjects: Sequence[Subject], wrong: Sequence[Picture]) -> list[Drawn]:
        """All columns without tuning, many subjects in a batch; `wrong` has for each a picture of somebody else."""
        features = {
            "encoder": self._features([subject.reference for subject in subjects]),
            "wrong_reference": self._features(wrong),
        }
        images: list[dict[str, UInt8[np.ndarray, "k h w 3"]]] = [{} for _ in subjects]
        for column in COLUMNS:
            if column.source == "tuned":
                continue
            prompts = [self.prompt(subject, column) for subject in subjects for _ in self._copies]
            seeds = [seed for subject in subjects for seed in self.seeds(subject)]
            if column.source == "class_noun":
                drawn = draw_prompts(self.parts.backbone, prompts, self.spec.sampling, seeds=seeds)
            else:
                drawn = sample_features(self.parts, features[column.source], prompts, self.spec.sampling, seeds=seeds)
            for own, pictures in zip(images, np.split(to_uint8(drawn), len(subjects)), strict=True):
                own[column.name] = pictures
        return [Drawn(subject.number, own) for subject, own in zip(subjects, images, strict=True)]

    def tuned(self, subject: Subject) -> Drawn:
        """Tune on the reference picture, and draw the columns that show what came of it."""
        began = time.perf_counter()
        images, masks = as_tensors(subject.reference)
        pictures = Pictures(images, masks, [subject.reference.context] if subject.reference.context else None)
        learned = self.method.tune(self.parts, pictures, self.spec.tuning, seed=self.spec.seed + subject.number)
        seconds = time.perf_counter() - began
        columns = [column for column in COLUMNS if column.source == "tuned"]
        prompts = [self.prompt(subject, column) for column in columns for _ in self._copies]
        seeds = self.seeds(subject) * len(columns)
        drawn = self.method.sample(self.parts.backbone, learned, prompts, self.spec.sampling, seeds=seeds)
        split = np.split(to_uint8(drawn), len(columns))
        return Drawn(subject.number, {c.name: own for c, own in zip(columns, split, strict=True)}, seconds)

    def prompt(self, subject: Subject, column: Column) -> str:
        """The prompt of one cell."""
        words = f"a {self.parts.spec.domain_word}" if column.source == "class_noun" else PLACEHOLDER
        template = self.spec.scenes.template if column.scene else self.spec.prompt
        return template.format(words, **subject.scene)

    def seeds(self, subject: Subject) -> list[int]:
        """One for each picture of a cell."""
        return [self.spec.seed + subject.number * self.spec.images_per_prompt + copy for copy in self._copies]

    @property
    def _copies(self) -> range:
        return range(self.spec.images_per_prompt)

    def _features(self, pictures: Sequence[Picture]) -> list[Float[Tensor, "n width"]]:
        """CLIP features of each picture, a row for each cell's copy."""
        each = [concept_features(self.parts, *as_tensors(picture)) for picture in pictures]
        return [torch.cat(layer).repeat_interleave(len(self._copies), 0) for layer in zip(*each, strict=True)]


def as_tensors(picture: Picture) -> tuple[Float[Tensor, "1 3 h w"], Float[Tensor, "1 1 h w"]]:
    """A real picture in [-1, 1] and its mask in [0, 1]."""
    image = torch.from_numpy(picture.image.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    return image, torch.from_numpy(picture.mask.copy())[None, None].float() / 255


def to_uint8(images: Float[Tensor, "n 3 h w"]) -> UInt8[np.ndarray, "n h w 3"]:
    """Pictures in [-1, 1] as bytes, channels last."""
    values = images.detach().float().cpu().clamp(-1, 1).add(1).mul(127.5).round().byte()
    return values.permute(0, 2, 3, 1).contiguous().numpy()


def to_pixels(images: UInt8[np.ndarray, "n h w 3"]) -> Float[Tensor, "n 3 h w"]:
    """Bytes as pictures in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float().div(127.5).sub(1)
