"""From the bytes of a sample's parts to arrays. Nothing is decoded before its pixels are counted."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypedDict

import numpy as np
import simplejpeg
from jaxtyping import Int32, UInt8
from PIL import Image

from imprint.errors import SampleError
from imprint.pipelines.arrays import Value, column_name, decode_further
from imprint.pipelines.samples import MASKS, PICTURES
from imprint.pipelines.sizes import Shape, size_conditioning

_FORMATS = ("PNG", "WEBP", "JPEG")
_BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)  # Pillow's own limit, met on opening
_ORIENTATION = 0x0112  # Exif tag
_TURNS = {3: 2, 6: 3, 8: 1}  # Exif orientation -> quarter turns to the left
_SPARE = 2  # a JPEG is decoded at half, quarter or eighth size where that leaves so many times the wanted side

Room = Callable[[int, int], np.ndarray]  # (height, width) -> where uint8 [height, width, 3] may be decoded to


class Picture(NamedTuple):
    """A decoded picture, its alpha channel where it has one, and its (height, width) before it was decoded smaller."""

    image: UInt8[np.ndarray, "h w 3"]
    alpha: UInt8[np.ndarray, "h w"] | None
    shape: Shape


class Decoded(TypedDict):
    """`mask` is None where neither a mask part nor an alpha channel is there."""

    image: UInt8[np.ndarray, "h w 3"]
    mask: UInt8[np.ndarray, "h w"] | None
    caption: str
    json: str
    size_conditioning: Int32[np.ndarray, "6"]
    further: dict[str, Value]


def decode_sample(
    parts: dict[str, bytes], *, size: int | None, max_pixels: int, further: Sequence[str] = (), room: Room | None = None
) -> Decoded:
    """Decode the parts of one sample; with `size`, resize and centre-crop picture and mask to a square.

    `further` names the extensions of parts that become columns of their own; `room` is given to `decode_picture`.

    Raises:
        SampleError: with `reason`: corrupt-picture, too-many-pixels, corrupt-mask, bad-text, bad-json, bad-array,
            bad-tensors or bad-class.
    """
    extension = next(name for name in PICTURES if name in parts)
    has_mask = any(name in parts for name in MASKS)  # of the picture's full size, so both are decoded at it
    at_least = None if has_mask else size
    image, mask, shape = decode_picture(
        parts[extension], max_pixels, at_least=at_least, room=room if size is None else None
    )
    for name in MASKS:
        if name in parts:
            mask = _decode_mask(parts[name], image.shape[:2], max_pixels)
    if size is not None:
        image = fit_square(image, size)
        mask = None if mask is None else fit_square(mask, size)
    columns: dict[str, Value] = {}
    for name in further:
        if name.rpartition(".")[2] in PICTURES:
            other = decode_picture(parts[name], max_pixels, at_least=size).image
            columns[column_name(name)] = other if size is None else fit_square(other, size)
        else:
            columns |= decode_further(name, parts[name])
    text, record = _json(parts)
    return {
        "image": image, "mask": mask, "caption": _caption(parts), "json": text,
        "size_conditioning": size_conditioning(record, shape, size), "further": columns,
    }  # fmt: skip


def decode_picture(data: bytes, max_pixels: int, *, at_least: int | None = None, room: Room | None = None) -> Picture:
    """RGB, and the alpha channel where there is one (the picture is then composited on white).

    With `at_least` a JPEG whose sides are many times that comes out at a half, a quarter or an eighth of its size
    (libjpeg's scaled inverse DCT), which costs less time and memory. `room` gives the array to decode to.

    Raises:
        SampleError: corrupt-picture or too-many-pixels.
    """
    try:
        if data[:2] == b"\xff\xd8":
            height, width, space, _ = simplejpeg.decode_jpeg_header(data)
            _check_pixels(height, width, max_pixels)
            if space != "CMYK":
                decoded = _decode_jpeg(data, height, width, at_least, room)
                image = _upright(decoded, data)
                is_turned = decoded.shape[0] != image.shape[0]
                return Picture(image, None, (width, height) if is_turned else (height, width))
        with _opened(data) as picture:
            _check_pixels(picture.height, picture.width, max_pixels)
            if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
                rgba = np.asarray(picture.convert("RGBA"))
                alpha = rgba[..., 3]
                share = alpha[..., None].astype(np.float32) / 255
                image = (rgba[..., :3] * share + 255 * (1 - share) + 0.5).astype(np.uint8)
                return Picture(image, alpha.copy(), alpha.shape)
            image = np.asarray(picture.convert("RGB"))
            return Picture(image, None, image.shape[:2])
    except _BOMBS as error:
        raise SampleError(f"decoding a picture: {error}", reason="too-many-pixels") from error
    except (ValueError, OSError, SyntaxError) as error:
        raise SampleError(f"decoding a picture: {error}", reason="corrupt-picture") from error


def _decode_jpeg(
    data: bytes, height: int, width: int, at_least: int | None, room: Room | None
) -> UInt8[np.ndarray, "h w 3"]:
    wanted = _SPARE * (at_least or 0)
    if wanted and min(height, width) >= 2 * wanted:
        return simplejpeg.decode_jpeg(data, "RGB", min_height=wanted, min_width=wanted, min_factor=2)
    if room is None:
        return simplejpeg.decode_jpeg(data, "RGB")
    return simplejpeg.decode_jpeg(data, "RGB", buffer=room(height, width))


def fit_square(array: UInt8[np.ndarray, "h w ..."], size: int) -> UInt8[np.ndarray, "size size ..."]:
    """Resize the shorter side to `size` pixels and crop the middle."""
    height, width = array.shape[:2]
    if (height, width) == (size, size):
        return array
    scale = size / min(height, width)
    resized = Image.fromarray(array).resize(
        (max(size, round(width * scale)), max(size, round(height * scale))), Image.Resampling.LANCZOS
    )
    left, top = (resized.width - size) // 2, (resized.height - size) // 2
    return np.asarray(resized.crop((left, top, left + size, top + size)))


def _opened(data: bytes) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        return Image.open(io.BytesIO(data), formats=_FORMATS)


def _check_pixels(height: int, width: int, max_pixels: int) -> None:
    if height * width > max_pixels:
        raise SampleError(
            f"decoding a picture: {width} x {height} px is more than {max_pixels} pixels", reason="too-many-pixels"
        )


def _upright(image: UInt8[np.ndarray, "h w 3"], data: bytes) -> UInt8[np.ndarray, "h2 w2 3"]:
    """Turned as its Exif orientation says: cameras store portraits lying on their side."""
    if not _has_exif(data):
        return image
    with _opened(data) as picture:
        turns = _TURNS.get(picture.getexif().get(_ORIENTATION, 1), 0)
    return np.rot90(image, turns)


def _has_exif(data: bytes) -> bool:
    """Whether a segment before the picture's data is Exif (JPEG, ITU-T T.81 annex B); searching for it takes longer."""
    place = 2
    while data[place : place + 1] == b"\xff" and data[place + 1 : place + 2] != b"\xda":
        if data[place + 4 : place + 10] == b"Exif\0\0":
            return True
        fill = data[place + 1 : place + 2] == b"\xff"  # any number of them may stand before a marker
        place += 1 if fill else 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return False


def _decode_mask(data: bytes, shape: tuple[int, int], max_pixels: int) -> UInt8[np.ndarray, "h w"]:
    try:
        with _opened(data) as picture:
            _check_pixels(picture.height, picture.width, max_pixels)
            mask = np.asarray(picture.convert("L"))
    except (ValueError, OSError, SyntaxError, *_BOMBS) as error:
        raise SampleError(f"decoding a mask: {error}", reason="corrupt-mask") from error
    if mask.shape != shape:
        raise SampleError(
            f"decoding a mask: it has {mask.shape[1]} x {mask.shape[0]} px and its picture {shape[1]} x {shape[0]}",
            reason="corrupt-mask",
        )
    return mask


def _caption(parts: dict[str, bytes]) -> str:
    try:
        return parts.get("txt", b"").decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise SampleError(f"decoding a caption: {error}", reason="bad-text") from error


def _json(parts: dict[str, bytes]) -> tuple[str, dict[str, Any]]:
    if "json" not in parts:
        return "{}", {}
    try:
        text = parts["json"].decode("utf-8")
        record = json.loads(text)
        if not isinstance(record, dict):
            raise ValueError("expected an object")
    except (ValueError, RecursionError) as error:
        raise SampleError(f"decoding the json part: {error}", reason="bad-json") from error
    return text, record
