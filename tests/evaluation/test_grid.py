"""Where pictures and words lie in a labelled grid."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFont

from imprint.errors import StorageError
from imprint.evaluation.grid import PADDING, labelled_grid, save_png, wrap

COLORS = [[(255, 0, 0), (0, 255, 0), (0, 0, 255)], [(255, 255, 0), (0, 255, 255), (255, 0, 255)]]


def plain(color: tuple[int, int, int], side: int = 16) -> Image.Image:
    return Image.new("RGB", (side, side), color)


def cells(captions: list[str] | None = None) -> np.ndarray:
    rows = [[plain(color) for color in row] for row in COLORS]
    return np.asarray(labelled_grid(rows, ["one", "two words here", "three"], cell=40, captions=captions))


def find(grid: np.ndarray, color: tuple[int, int, int]) -> tuple[slice, slice]:
    """The rectangle of a colour; it must be filled with it and stand on its own."""
    where = np.argwhere((grid == color).all(-1))
    (top, left), (bottom, right) = where.min(0), where.max(0) + 1
    assert (grid[top:bottom, left:right] == color).all()
    return slice(top, bottom), slice(left, right)


@pytest.mark.parametrize("captions", [None, ["a caption", "another one"]])
def test_every_picture_fills_its_cell(captions: list[str] | None) -> None:
    grid = cells(captions)
    found = [[find(grid, color) for color in row] for row in COLORS]
    for row in found:
        assert len({(rows.start, rows.stop) for rows, _ in row}) == 1
        for column, (rows, columns) in enumerate(row):
            assert (rows.stop - rows.start, columns.stop - columns.start) == (40, 40)
            assert columns.start == PADDING + column * (40 + PADDING)
    assert grid.shape[1] == PADDING + 3 * (40 + PADDING)
    assert found[1][0][0].start >= found[0][0][0].stop + PADDING


def test_labels_stand_above_their_columns_and_captions_below_their_rows() -> None:
    grid = cells(["a caption", "another one"])
    top = find(grid, COLORS[0][0])[0]
    header = (grid[: top.start] < 128).all(-1)
    for column in range(3):
        left = PADDING + column * (40 + PADDING)
        assert header[:, left : left + 40].any()
    between = grid[top.stop : find(grid, COLORS[1][0])[0].start]
    below = grid[find(grid, COLORS[1][0])[0].stop :]
    assert (between < 128).all(-1).any() and (below < 128).all(-1).any()
    assert not (cells()[top.stop :][-PADDING:] < 128).any()


def test_words_wrap_within_their_column() -> None:
    font = ImageFont.load_default(12)
    lines = wrap("one two three four five", font, 50)
    assert " ".join(lines) == "one two three four five" and len(lines) > 1
    assert all(font.getlength(line) <= 50 for line in lines)
    assert wrap("unbreakably-long-word", font, 10) == ["unbreakably-long-word"]


def test_rows_and_labels_must_fit() -> None:
    with pytest.raises(ValueError, match="under 2 labels"):
        labelled_grid([[plain((0, 0, 0))]], ["a", "b"])
    with pytest.raises(ValueError, match="captions for 1 rows"):
        labelled_grid([[plain((0, 0, 0))]], ["a"], captions=[])


def test_saving_where_nothing_may_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="writing"):
        save_png(plain((0, 0, 0)), tmp_path / "file" / "grid.png")
    assert save_png(plain((1, 2, 3)), tmp_path / "new" / "grid.png").is_file()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["grid.png"]
