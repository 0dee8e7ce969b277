"""Pictures that tests prepare: each unlike the others to a perceptual hash, drawn from its number."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image


def drawn(number: int, height: int = 48, width: int = 48) -> np.ndarray:
    """uint8 [height, width, 3]: coarse noise, smooth after enlarging."""
    coarse = np.random.default_rng(number).integers(0, 256, (6, 6, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def encoded(array: np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind, **options)
    return buffer.getvalue()


def write_folder(folder: Path, count: int, *, height: int = 48, width: int = 48, captions: bool = True) -> Path:
    """`count` pictures in two folders, with captions beside them."""
    for number in range(count):
        place = folder / ("cats" if number % 2 else "dogs") / f"{number:04d}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(encoded(drawn(number, height, width)))
        if captions:
            place.with_suffix(".txt").write_text(f"picture {number}")
    return folder


def content(folder: Path) -> dict[str, bytes]:
    """All files of a folder by their path in it."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
