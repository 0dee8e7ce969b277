"""From rows of numpy arrays to a batch of tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from imprint.methods.taming import TripletBatch
from imprint.objective import Batch

PRECOMPUTED = ("latent_mean", "latent_logvar", "clip_layers", "text_hidden", "text_pooled")
"""Tensors of a batch that may come with the samples, in columns `features.<name>`."""


def to_pixel_values(images: np.ndarray) -> Float[Tensor, "b 3 h w"]:
    """uint8 pictures [b, h, w, 3] as floats in [-1, 1], channels first."""
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def collate(rows: Sequence[Mapping[str, Any]]) -> Batch:
    """A batch of rows as the reader gives them: `image` [h, w, 3], `mask` [h, w], `caption`, `json`, `__key__`.

    `size_conditioning` [6] and what was computed before are taken where every row has them.
    """
    batch: Batch = {
        "pixel_values": to_pixel_values(np.stack([row["image"] for row in rows])),
        "captions": [str(row["caption"]) for row in rows],
        "keys": [str(row["__key__"]) for row in rows],
    }
    if all(row.get("mask") is not None for row in rows):
        masks = np.stack([row["mask"] for row in rows])
        batch["masks"] = torch.from_numpy(masks).float().div_(255).unsqueeze(1)
    if all("context" in row or row.get("json") for row in rows):
        batch["contexts"] = [_context(row) for row in rows]
    nouns = [_said(row, "class_noun") for row in rows]
    if all(nouns):
        batch["class_nouns"] = nouns
    if all("size_conditioning" in row for row in rows):
        batch["time_ids"] = torch.from_numpy(np.stack([row["size_conditioning"] for row in rows]).astype(np.int64))
    for name in PRECOMPUTED:
        if all(f"features.{name}" in row for row in rows):
            values = np.stack([row[f"features.{name}"] for row in rows])
            batch[name] = torch.from_numpy(values.astype(np.float32))  # type: ignore[literal-required]
    return batch


def _context(row: Mapping[str, Any]) -> str:
    if "context" in row:
        return str(row["context"])
    return _said(row, "caption_context")


def _said(row: Mapping[str, Any], field: str) -> str:
    """What a sample's json says of itself; "" where it has none, or not this."""
    return str(json.loads(row.get("json") or "{}").get(field) or "")


def collate_triplets(rows: Sequence[Mapping[str, Any]]) -> TripletBatch:
    """Triplets of rows that came with `object_image`, `object_mask` and `is_domain`."""
    masks = np.stack([row["object_mask"] for row in rows])
    objects: Any = {
        "object_values": to_pixel_values(np.stack([row["object_image"] for row in rows])),
        "object_masks": torch.from_numpy(masks).float().div_(255).unsqueeze(1),
        "is_domain": torch.tensor([bool(row["is_domain"]) for row in rows]),
    }
    return {**collate(rows), **objects}
