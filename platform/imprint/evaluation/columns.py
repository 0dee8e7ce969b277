"""The columns of the report, where what differs between two is one thing alone; the painter draws them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from imprint.config.jobs.evaluate import Evaluate
from imprint.config.methods import ENCODER_METHODS
from imprint.evaluation.subjects import Picture

Source = Literal["class_noun", "wrong_reference", "encoder", "tuned", "baseline"]


@dataclass(frozen=True)
class Column:
    """`source` is what stands in the prompt; `scene` says that a new scene is asked for.

    In labels `{method}` and `{steps}` are those of the tuning that made the column.
    """

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
    Column("baseline", "{method}, {steps} steps", "baseline"),
    Column("baseline_scene", "{method}, new scene", "baseline", scene=True),
)
"""Of all methods together; `columns_of` says which an evaluation has."""


def columns_of(spec: Evaluate) -> tuple[Column, ...]:
    """The columns of an evaluation: an encoder alone where the method has one, and tuning where there is any."""
    sources: set[Source] = {"class_noun", "wrong_reference"}
    if has_encoder(spec):
        sources.add("encoder")
    if spec.tuning.steps:
        sources.add("tuned")
    if spec.baseline is not None:
        sources.add("baseline")
    return tuple(column for column in COLUMNS if column.source in sources)


def label_of(column: Column, spec: Evaluate) -> str:
    """What stands above a column."""
    made_by = spec.baseline if column.source == "baseline" and spec.baseline is not None else spec.tuning
    return column.label.format(method=made_by.method.replace("_", " "), steps=made_by.steps)


def has_encoder(spec: Evaluate) -> bool:
    """Whether the method draws without tuning. Then the wrong reference is shown to the encoder; without one, to
    tuning."""
    return spec.tuning.method in ENCODER_METHODS


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
