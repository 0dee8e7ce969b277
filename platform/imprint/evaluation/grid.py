"""A labelled grid of pictures: a header row, a row for each subject."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from imprint.errors import StorageError

PADDING = 4
_INK, _PAPER = (32, 32, 32), (255, 255, 255)


def labelled_grid(
    rows: Sequence[Sequence[Image.Image]],
    labels: Sequence[str],
    *,
    cell: int = 128,
    captions: Sequence[str] | None = None,
) -> Image.Image:
    """Pictures in cells of `cell` px under the labels of their columns; `captions` stand below their rows.

    Labels and captions are wrapped to fit. Small pictures are enlarged without smoothing them.

    Raises:
        ValueError: a row has not one picture for each label, or not every row has its caption.
    """
    if any(len(row) != len(labels) for row in rows):
        raise ValueError(f"grid: rows of {[len(row) for row in rows]} pictures under {len(labels)} labels")
    if captions is not None and len(captions) != len(rows):
        raise ValueError(f"grid: {len(captions)} captions for {len(rows)} rows")
    header_font = ImageFont.load_default(max(10, cell // 9))
    caption_font = ImageFont.load_default(max(9, cell // 11))
    width = PADDING + len(labels) * (cell + PADDING)
    wrapped = [wrap(label, header_font, cell) for label in labels]
    header = PADDING + max(text_height(lines, header_font) for lines in wrapped)
    below = [wrap(text, caption_font, width - 2 * PADDING) for text in captions] if captions else [[] for _ in rows]
    heights = [cell + PADDING + (text_height(lines, caption_font) + PADDING if lines else 0) for lines in below]
    sheet = Image.new("RGB", (width, header + PADDING + sum(heights)), _PAPER)
    pen = ImageDraw.Draw(sheet)
    for column, lines in enumerate(wrapped):
        middle = PADDING + column * (cell + PADDING) + cell / 2
        text = "\n".join(lines)
        pen.multiline_text((middle, header), text, _INK, header_font, anchor="md", align="center")
    top = header + PADDING
    for pictures, lines, height in zip(rows, below, heights, strict=True):
        for column, picture in enumerate(pictures):
            sheet.paste(_to_cell(picture, cell), (PADDING + column * (cell + PADDING), top))
        if lines:
            pen.multiline_text((PADDING, top + cell + PADDING), "\n".join(lines), _INK, caption_font)
        top += height
    return sheet


def wrap(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """The words of `text` on lines of at most `width` px; a longer word stands alone on its line."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines or [""]


def text_height(lines: Sequence[str], font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> int:
    """Pixels that these lines take."""
    pen = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    _, top, _, bottom = pen.multiline_textbbox((0, 0), "\n".join([*lines[:-1], f"{lines[-1]}Ag"]), font)
    return round(bottom - min(0, top)) + 1


def _to_cell(picture: Image.Image, cell: int) -> Image.Image:
    enlarging = picture.width < cell
    return picture.resize((cell, cell), Image.Resampling.NEAREST if enlarging else Image.Resampling.LANCZOS)


def save_png(image: Image.Image, path: Path) -> Path:
    """Write a PNG, whole or not at all.

    Raises:
        StorageError: the disk is full or may not be written.
    """
    temporary = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(temporary, format="PNG")
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise StorageError(f"writing {path}: {error}; free some space, or choose another folder") from error
    return path
