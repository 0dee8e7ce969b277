"""Masks of the subject: a pure function over a batch, and a thin Ray class over it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
from jaxtyping import UInt8

from imprint.config.data import MaskerSpec

Columns = dict[str, np.ndarray]
Image = UInt8[np.ndarray, "h w 3"]
Mask = UInt8[np.ndarray, "h w"]
Masker = Callable[[Sequence[Image]], list[Mask]]  # pictures of any sizes -> 255 on the subject, 0 elsewhere


def mask_rows(
    batch: Columns,
    masker: Masker,
    *,
    keep_own: bool,
    prefix: str = "",
    ground: tuple[int, int, int] | None = None,
) -> Columns:
    """The batch with every `mask` filled in; `keep_own` leaves the samples' own masks as they are.

    With the `prefix` "object_" those of the objects' pictures. With `ground`, the column `cutout` is each picture's
    subject on that plain colour.
    """
    images, has_own = batch[prefix + "image"], batch[prefix + "has_mask"]
    masks = list(batch[prefix + "mask"])
    wanted = [i for i, has in enumerate(has_own) if not (keep_own and has)]
    if wanted:
        for i, mask in zip(wanted, masker([images[i] for i in wanted]), strict=True):
            masks[i] = mask
    rows = {**batch, prefix + "mask": _column(masks), prefix + "has_mask": np.ones(len(masks), dtype=bool)}
    if ground is not None:
        rows[prefix + "cutout"] = _column([cut_out(*pair, ground) for pair in zip(images, masks, strict=True)])
    return rows


def cut_out(image: Image, mask: Mask, ground: tuple[int, int, int]) -> Image:
    """The subject on a plain RGB ground, blended where the mask is between."""
    share = mask[..., None].astype(np.float32) / 255
    return (image * share + np.float32(ground) * (1 - share) + 0.5).astype(np.uint8)


class MaskStage:
    """The masker as an actor of Ray Data. Where samples' own masks are taken, a model is loaded when one lacks it."""

    def __init__(self, spec: MaskerSpec) -> None:
        self.spec = spec
        if spec.kind != "sample":
            _ = self.masker  # what is wrong with it is said at the start

    @cached_property
    def masker(self) -> Masker:
        return load_masker(self.spec)

    def __call__(self, batch: Columns) -> Columns:
        for prefix in ("", "object_") if "object_image" in batch else ("",):
            batch = mask_rows(
                batch,
                lambda images: self.masker(images),
                keep_own=self.spec.kind == "sample",
                prefix=prefix,
                ground=self.spec.cutout,
            )
        return batch


def mask_batch(batch: Columns, spec: MaskerSpec) -> Columns:
    """As the stage, in a task."""
    return MaskStage(spec)(batch)


def load_masker(spec: MaskerSpec) -> Masker:
    """The masker that a job file asks for; for "sample", the one for samples without a mask.

    Raises:
        BackboneError, DataError: its model cannot be loaded.
    """
    if spec.maker == "onnx":
        from imprint.pipelines.mask_onnx import OnnxMasker

        return OnnxMasker(spec)
    if spec.maker == "transformers":
        from imprint.pipelines.mask_torch import TransformersMasker

        return TransformersMasker(spec)
    if spec.maker == "attributes":
        from imprint.pipelines.mask_torch import AttributeMasker

        return AttributeMasker(spec)
    return _embedded


def _embedded(images: Sequence[Image]) -> list[Mask]:
    from imprint.pipelines.mask_embedded import embedded_mask  # SciPy takes a second to load, seldom needed

    return [embedded_mask(image) for image in images]


def _column(arrays: Sequence[np.ndarray]) -> np.ndarray:
    if all(array.shape == arrays[0].shape for array in arrays):
        return np.stack(arrays)
    ragged = np.empty(len(arrays), dtype=object)
    ragged[:] = arrays
    return ragged
