"""Pictures out: single ones and contact sheets."""

from __future__ import annotations

import math
from pathlib import Path

from jaxtyping import Float
from PIL import Image
from torch import Tensor

from imprint.errors import StorageError


def to_pil(images: Float[Tensor, "n 3 h w"]) -> list[Image.Image]:
    """Pictures in [-1, 1] as 8-bit RGB."""
    values = images.detach().float().cpu().clamp(-1, 1).add(1).mul(127.5).round().byte()
    return [Image.fromarray(value.permute(1, 2, 0).contiguous().numpy()) for value in values]


def contact_sheet(images: Float[Tensor, "n 3 h w"], columns: int | None = None, padding: int = 2) -> Image.Image:
    """All pictures on one white sheet, row by row; about square where `columns` is not given."""
    pictures = to_pil(images)
    columns = columns or math.ceil(math.sqrt(len(pictures)))
    height, width = images.shape[-2:]
    rows = math.ceil(len(pictures) / columns)
    size = (columns * (width + padding) + padding, rows * (height + padding) + padding)
    sheet = Image.new("RGB", size, "white")
    for index, picture in enumerate(pictures):
        row, column = divmod(index, columns)
        sheet.paste(picture, (padding + column * (width + padding), padding + row * (height + padding)))
    return sheet


def write_pictures(out: Path, images: Float[Tensor, "n 3 h w"], *, columns: int | None = None) -> Path:
    """Write sample-000.png, sample-001.png, ... and sheet.png; give back the sheet's path.

    Raises:
        StorageError: the disk is full or may not be written.
    """
    sheet = out / "sheet.png"
    try:
        out.mkdir(parents=True, exist_ok=True)
        for number, picture in enumerate(to_pil(images)):
            picture.save(out / f"sample-{number:03d}.png")
        contact_sheet(images, columns).save(sheet)
    except OSError as error:
        raise StorageError(f"writing pictures to {out}: {error}; free some space, or choose another folder") from error
    return sheet
