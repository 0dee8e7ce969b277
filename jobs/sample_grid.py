"""The grid of held-out concepts that a run draws as it trains: the same pictures, prompts and noise each time."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from imprint.config.jobs.pretrain import GridSpec
from imprint.errors import DataError
from imprint.methods import METHODS
from imprint.methods.pretrained import load_networks, with_own_networks
from imprint.methods.pretraining import EncoderObjective
from imprint.pipelines.reading import ReadOptions, Row, rows_as_written
from imprint.pipelines.shards import counted, find_shards
from imprint.training.batches import to_pixel_values

_SCALE = 2  # small pictures are shown enlarged


def first_pictures(spec: GridSpec, image_size: int) -> np.ndarray:
    """The first picture [n, h, w, 3] of each of the first `concepts` identities.

    Raises:
        DataError: the shards hold no picture.
    """
    return np.stack([row["image"] for row in first_rows(spec, image_size)])


def first_rows(spec: GridSpec, image_size: int) -> list[Row]:
    """The rows of these pictures, with their masks and captions.

    Raises:
        DataError: the shards hold no picture.
    """
    found: dict[str, Row] = {}
    for row in rows_as_written(counted(find_shards(spec.shards, spec.split)), ReadOptions(image_size=image_size)):
        found.setdefault(str(json.loads(row["json"]).get("identity", row["__key__"])), row)
        if len(found) == spec.concepts:
            return list(found.values())
    if not found:
        raise DataError(f"reading held-out concepts: no picture in {list(spec.shards)}; check grid.shards")
    return list(found.values())


def write_grid(pictures: np.ndarray, drawn: Float[Tensor, "n 3 h w"], path: Path) -> None:
    """Write a PNG: each picture [h, w, 3], then what was drawn of it, in [-1, 1], as many to each."""
    images = ((drawn.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    columns = len(images) // len(pictures)
    rows = [
        np.concatenate([picture, *images[i * columns : (i + 1) * columns]], axis=1)
        for i, picture in enumerate(pictures)
    ]
    grid = Image.fromarray(np.concatenate(rows))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".partial.png")
    grid.resize((grid.width * _SCALE, grid.height * _SCALE), Image.Resampling.NEAREST).save(temporary)
    temporary.replace(path)


class SampleGrid:
    """Draws the grid from any state of the objective, without touching what trains."""

    def __init__(self, spec: GridSpec, objective: EncoderObjective, image_size: int) -> None:
        self.spec = spec
        self.parts = with_own_networks(objective.parts)
        self.method = METHODS[self.parts.spec.method]
        self.pictures = first_pictures(spec, image_size)
        columns = len(spec.prompts)
        self.references = to_pixel_values(self.pictures).to(self.parts.backbone.device).repeat_interleave(columns, 0)
        self.prompts = list(spec.prompts) * len(self.pictures)

    @torch.no_grad()
    def draw(self, state: Mapping[str, Tensor], path: Path) -> None:
        """Write the grid as a PNG: input, then a column for each prompt."""
        load_networks(self.parts, state, path)
        seeds = [self.spec.seed + row for row in range(len(self.pictures)) for _ in self.spec.prompts]
        drawn = self.method.preview(self.parts, self.references, self.prompts, self.spec.sampling, seeds=seeds)
        write_grid(self.pictures, drawn, path)
