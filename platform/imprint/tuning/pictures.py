"""Read the pictures of one subject from a file or a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor

from imprint.errors import DataError, SampleError
from imprint.methods.augment import centre_square
from imprint.methods.base import Pictures

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
MASK_SUFFIX = ".mask.png"
MAX_PIXELS = 100_000_000
"""Larger pictures are refused before they are decoded: a small file can unpack to fill the memory."""


def load_pictures(
    path: str | Path, *, image_size: int, contexts: Sequence[str] | None = None, largest: int | None = None
) -> Pictures:
    """The picture at `path`, or all in the folder, as squares of one size, `image_size` to `largest`, by default twice.

    A mask is taken from `NAME.mask.png` beside `NAME.png`, or from the alpha channel; all pictures have one, or none
    is used.

    Raises:
        DataError: there is no such file, or no picture in the folder.
        SampleError: a picture cannot be read.
    """
    read = [_read(file) for file in find_pictures(path)]
    return as_pictures(read, image_size=image_size, largest=largest, contexts=contexts)


def as_pictures(
    read: Sequence[tuple[Float[Tensor, "1 3 h w"], Float[Tensor, "1 1 h w"] | None]],
    *,
    image_size: int,
    largest: int | None = None,
    contexts: Sequence[str] | None = None,
) -> Pictures:
    """As `load_pictures`, of pictures in [-1, 1] that are read already, each with its mask where it has one."""
    size = min(largest or 2 * image_size, max(image_size, min(min(image.shape[-2:]) for image, _ in read)))
    images = torch.cat([centre_square(image, size) for image, _ in read]).clamp(-1, 1)
    masks = [mask for _, mask in read if mask is not None]
    whole = torch.cat([centre_square(mask, size) for mask in masks]) if len(masks) == len(read) else None
    return Pictures(images, whole, contexts)


def find_pictures(path: str | Path) -> list[Path]:
    """The file itself, or the pictures in a folder by name, without masks.

    Raises:
        DataError: there is none.
    """
    path = Path(path).expanduser()
    if path.is_file():
        return [path]
    if not path.exists():
        raise DataError(f"reading pictures: {path} does not exist; expected a picture or a folder of pictures")
    found = [
        file
        for file in sorted(path.iterdir())
        if file.suffix.lower() in SUFFIXES and not file.name.endswith(MASK_SUFFIX)
    ]
    if not found:
        raise DataError(f"reading pictures: {path} holds none; expected files that end in {', '.join(SUFFIXES)}")
    return found


def _read(file: Path) -> tuple[Float[Tensor, "1 3 h w"], Float[Tensor, "1 1 h w"] | None]:
    picture = _open(file)
    mask_file = file.with_name(file.stem + MASK_SUFFIX)
    mask = None
    if mask_file.is_file():
        mask = _open(mask_file).convert("L")
        if mask.size != picture.size:
            raise SampleError(f"reading {mask_file}: it is {mask.size} and its picture {picture.size}; expected equal")
    return split_alpha(picture, mask)


def split_alpha(
    picture: Image.Image, mask: Image.Image | None = None
) -> tuple[Float[Tensor, "1 3 h w"], Float[Tensor, "1 1 h w"] | None]:
    """A picture in [-1, 1], on gray where it is transparent, and its mask: the one given, or its alpha channel."""
    if mask is None and "A" in picture.getbands():
        mask = picture.getchannel("A")
        ground = Image.new("RGBA", picture.size, (128, 128, 128, 255))
        picture = Image.alpha_composite(ground, picture.convert("RGBA"))
    pixels = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)[None].float() / 127.5 - 1
    if mask is None:
        return pixels, None
    return pixels, torch.from_numpy(np.array(mask))[None, None].float() / 255


def _open(file: Path) -> Image.Image:
    try:
        with Image.open(file) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                size = f"{picture.width} x {picture.height}"
                raise SampleError(f"reading {file}: {size} pixels, expected {MAX_PIXELS:,} at most; scale it down")
            picture.load()
            # Palette pictures may be transparent too; as RGBA their transparency becomes an alpha channel.
            whole = picture.convert("RGBA") if "transparency" in picture.info else picture
            return ImageOps.exif_transpose(whole)
    except SampleError:
        raise
    except Exception as error:
        raise SampleError(
            f"reading {file}: it is no picture, or cut or damaged ({type(error).__name__}: {error}); replace it"
        ) from error
