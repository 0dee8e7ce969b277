"""From a transparent subject and a background to the members of one sample: picture, mask, caption, json."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

# Small enough to decode fast; high enough that at 64 px the picture is within about one grey level of its source.
JPEG_QUALITY = 95


def composite(subject: NDArray[np.uint8], background: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """`subject` RGBA [h, w, 4], straight alpha, over `background` RGB [h, w, 3]; the result is [h, w, 3]."""
    alpha = subject[..., 3:].astype(np.float64) / 255.0
    mixed = subject[..., :3] * alpha + background * (1.0 - alpha)
    return np.rint(mixed).astype(np.uint8)


def box_reduce(pixels: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """The mean of every block, so that [n, n] or [n, n, c] becomes `size` px square; n is a multiple of `size`."""
    factor = pixels.shape[0] // size
    if factor == 1:
        return pixels
    blocks = pixels.reshape(size, factor, size, factor, *pixels.shape[2:]).astype(np.float64)
    return np.rint(blocks.mean(axis=(1, 3))).astype(np.uint8)


def encode_sample(
    picture: NDArray[np.uint8], mask: NDArray[np.uint8], caption: str, fields: dict[str, Any]
) -> dict[str, bytes]:
    """The members of a sample by extension. `picture` is RGB [h, w, 3], `mask` [h, w] with 255 on the subject."""
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, format="PNG", compress_level=6)
    picture = np.ascontiguousarray(picture)
    return {
        "jpg": simplejpeg.encode_jpeg(picture, quality=JPEG_QUALITY, colorspace="RGB", colorsubsampling="444"),
        "mask.png": buffer.getvalue(),
        "txt": caption.encode(),
        "json": json.dumps(fields, sort_keys=True, ensure_ascii=False).encode(),
    }
