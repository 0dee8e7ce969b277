"""Masks of the subject: a pure function over a batch, and a thin Ray class over it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import UInt8

from imprint.config.data import MaskerSpec

Columns = dict[str, np.ndarray]
Masker = Callable[[UInt8[np.ndarray, "h w 3"]], UInt8[np.ndarray, "h w"]]


def mask_rows(batch: Columns, masker: Masker, *, keep_own: bool, prefix: str = "") -> Columns:
    """The batch with every `mask` filled in; `keep_own` leaves the samples' own masks as they are.

    With the `prefix` "object_" those of the objects' pictures.
    """
    names = tuple(prefix + name for name in ("image", "mask", "has_mask"))
    masks = [
        mask if keep_own and has else masker(image)
        for image, mask, has in zip(*(batch[name] for name in names), strict=True)
    ]
    if all(mask.shape == masks[0].shape for mask in masks):
        column = np.stack(masks)
    else:
        column = np.empty(len(masks), dtype=object)
        column[:] = masks
    return {**batch, names[1]: column, names[2]: np.ones(len(masks), dtype=bool)}


class MaskStage:
    """The masker as an actor of Ray Data."""

    def __init__(self, spec: MaskerSpec) -> None:
        self.keep_own = spec.kind == "sample"
        self.masker = load_masker(spec)

    def __call__(self, batch: Columns) -> Columns:
        masked = mask_rows(batch, self.masker, keep_own=self.keep_own)
        if "object_image" not in batch:
            return masked
        return mask_rows(masked, self.masker, keep_own=self.keep_own, prefix="object_")


def load_masker(spec: MaskerSpec) -> Masker:
    """The masker that a job file asks for; for "sample", the one for samples without a mask.

    Raises:
        DataError: its model cannot be loaded.
    """
    if spec.kind == "onnx":
        from imprint.pipelines.mask_models import OnnxMasker

        return OnnxMasker(str(spec.model), bool(spec.gpus))
    return _embedded


def _embedded(image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w"]:
    from imprint.pipelines.mask_models import embedded_mask  # SciPy takes a second to load, seldom needed

    return embedded_mask(image)
