"""What frozen models give for a sample, computed once: CLIP features, latent moments, text embeddings.

In a stream they are columns `features.<name>`; stored, they are the tensors of a sample's part `features.safetensors`,
which the reader turns into the same columns. Names are those of `imprint.training.batches.PRECOMPUTED`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import torch
from safetensors.numpy import save

from imprint.backbone import Backbone
from imprint.config.data import FeaturePart, StagePool
from imprint.features.clip import ClipFeatures
from imprint.methods.pretraining import mask_background
from imprint.training.batches import PRECOMPUTED, to_pixel_values

Columns = dict[str, np.ndarray]
_PREFIX = "features."
_LOWEST = -60.0  # log-variance of an autoencoder without a posterior: a deviation of 1e-13, none in float32


@torch.no_grad()
def feature_rows(
    batch: Columns,
    parts: Collection[FeaturePart],
    *,
    backbone: Backbone | None = None,
    clip: ClipFeatures | None = None,
    mask_reference: bool = False,
    dtype: type[np.floating] = np.float32,
) -> Columns:
    """The batch with the columns of `parts`; pictures are all of one size.

    With `mask_reference` CLIP sees the subject on plain gray, as E4T's trainer shows it.
    """
    pixels = to_pixel_values(np.stack(list(batch["image"])))
    found: dict[str, torch.Tensor] = {}
    if "vae" in parts:
        assert backbone is not None
        mean, std = backbone.latent_moments(pixels.to(backbone.device))
        found["latent_mean"] = mean
        found["latent_logvar"] = (2 * std.float().log()).clamp(min=_LOWEST)
    if "clip" in parts:
        assert clip is not None
        shown = pixels
        if mask_reference:
            masks = torch.from_numpy(np.stack(list(batch["mask"]))).float().div_(255).unsqueeze(1)
            shown = mask_background(pixels, masks)
        found["clip_layers"] = torch.stack(clip.layers(shown.to(clip.device)), dim=1)
    if "text" in parts:
        assert backbone is not None
        text = backbone.encode_text([str(caption) for caption in batch["caption"]])
        found["text_hidden"] = text.hidden
        if text.pooled is not None:
            found["text_pooled"] = text.pooled
    return {**batch, **{_PREFIX + name: value.float().cpu().numpy().astype(dtype) for name, value in found.items()}}


def stored(batch: Columns, row: int) -> bytes:
    """The part `features.safetensors` of one row."""
    names = [name for name in PRECOMPUTED if _PREFIX + name in batch]
    return save({name: np.ascontiguousarray(batch[_PREFIX + name][row]) for name in names})


class FeatureStage:
    """The frozen models as an actor of Ray Data."""

    def __init__(
        self, spec: StagePool, backbone: str, clip: str, mask_reference: bool, parts: Sequence[FeaturePart]
    ) -> None:
        self.parts, self.mask_reference = parts, mask_reference
        self.backbone = Backbone.load(backbone, device=spec.device) if {"vae", "text"} & set(parts) else None
        self.clip = ClipFeatures.load(clip, device=spec.device) if "clip" in parts else None

    def __call__(self, batch: Columns) -> Columns:
        return feature_rows(
            batch, self.parts, backbone=self.backbone, clip=self.clip, mask_reference=self.mask_reference
        )
