"""Pictures from strangers: what they say they are is checked before they are parsed, and only their pixels go on."""

from __future__ import annotations

import base64
import binascii
import io
import re
import warnings
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps
from safetensors.numpy import load, save

from imprint.serve.problems import Problem
from imprint.serve.settings import LimitsSpec

Pixels = UInt8[np.ndarray, "h w c"]
"""c is 3, or 4 where the picture has an alpha channel."""

_DATA_URL = re.compile(r"^data:image/(?:jpeg|png|webp);base64,", re.ASCII)
_FORMATS = ("JPEG", "PNG", "WEBP")


def picture_format(data: bytes) -> str | None:
    """The format by the first bytes; a name or a content type is only what a stranger says."""
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    return None


def take_picture(data: bytes, limits: LimitsSpec, which: str = "picture") -> Pixels:
    """The pixels of an upload, upright, scaled down to `limits.picture_side`; metadata stays behind.

    Raises:
        Problem: 413, 415 or 422.
    """
    kind = picture_format(data)
    if kind is None:
        raise Problem.of(415, "not-a-picture", f"{which}: expected JPEG, PNG or WebP, and its first bytes are neither")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's doubts about odd files; what matters raises, or is capped below
            return _decode(data, kind, limits, which)
    except Problem:
        raise
    except Image.DecompressionBombError as error:
        raise _too_many_pixels(which, limits) from error
    except Exception as error:
        raise Problem.of(
            422, "damaged-picture", f"{which}: it is cut or damaged and cannot be read as {kind}"
        ) from error


def _decode(data: bytes, kind: str, limits: LimitsSpec, which: str) -> Pixels:
    side = limits.picture_side
    with Image.open(io.BytesIO(data), formats=[kind]) as picture:
        width, height = picture.size
        if width * height > limits.picture_pixels:
            raise _too_many_pixels(which, limits)
        if min(width, height) < limits.smallest_side:
            raise Problem.of(
                422, "picture-too-small", f"{which}: {width} x {height} pixels, expected {limits.smallest_side} a side"
            )
        if getattr(picture, "is_animated", False):
            raise Problem.of(422, "animated-picture", f"{which}: it is animated; send one still picture")
        if kind == "JPEG":
            picture.draft("RGB", (side, side))  # decodes at a fraction of the size where that is enough
        picture.load()
        return _pixels(picture, side)


def _too_many_pixels(which: str, limits: LimitsSpec) -> Problem:
    most = limits.picture_pixels
    return Problem.of(413, "too-many-pixels", f"{which}: more than {most:,} pixels; scale it down", limit=most)


def _pixels(picture: Image.Image, side: int) -> Pixels:
    if picture.mode.startswith("I"):  # 16 bits a channel
        values = np.asarray(picture, dtype=np.float64)
        picture = Image.fromarray((values / 257).clip(0, 255).astype(np.uint8))
    transparent = "A" in picture.getbands() or "transparency" in picture.info
    upright = ImageOps.exif_transpose(picture).convert("RGBA" if transparent else "RGB")
    upright.thumbnail((side, side), Image.Resampling.LANCZOS)
    return np.array(upright)


def from_data_url(url: str, which: str) -> bytes:
    """The bytes of `data:image/png;base64,...`; nothing is ever fetched.

    Raises:
        Problem: 415 or 422.
    """
    match = _DATA_URL.match(url)
    if match is None:
        raise Problem.of(
            415, "not-a-data-url", f"{which}: expected data:image/png;base64,... (or jpeg, webp); URLs are not fetched"
        )
    try:
        return base64.b64decode(url[match.end() :], validate=True)
    except (binascii.Error, ValueError) as error:
        raise Problem.of(422, "bad-base64", f"{which}: what follows base64, is not base64") from error


def take_pictures(uploads: Sequence[bytes], limits: LimitsSpec) -> bytes:
    """All pictures of an upload as one blob.

    Raises:
        Problem: 413, 415 or 422.
    """
    if not uploads:
        raise Problem.of(422, "no-pictures", "images: got none, expected at least one picture of the subject")
    if len(uploads) > limits.pictures:
        raise Problem.of(422, "too-many-pictures", f"images: got {len(uploads)}, expected {limits.pictures} at most")
    return save({str(n): take_picture(data, limits, f"images[{n}]") for n, data in enumerate(uploads)})


def read_pictures(blob: bytes) -> list[Pixels]:
    """The other way round."""
    held: Mapping[str, Pixels] = load(blob)
    return [held[str(n)] for n in range(len(held))]
