"""Rows to Arrow blocks of a set size in bytes, pictures decoded to where they stay."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8
from ray.data.block import Block, BlockAccessor

from imprint.pipelines.reading import Row

# Ray joins blocks up to its own target size and cuts those of 1.5 times that; ours lie between, so it does neither.
RAYS_TARGET = 0.7
FULL = 0.8  # of `block_bytes`: where pictures differ in size, a block ends here at the earliest


class BlockBuilder:
    """Collects rows for one block after another.

    Pictures of one shape lie in one array that becomes the block's column as it is; `room` gives the decoder the next
    place in it, so a picture is never copied here. `pixel_bytes` is what a pixel takes in a row: 3, and 1 for a mask.
    """

    def __init__(self, block_bytes: int, pixel_bytes: int = 4) -> None:
        self.block_bytes, self.pixel_bytes = block_bytes, pixel_bytes
        self._clear()

    def _clear(self) -> None:
        self._rows: list[dict[str, Any]] = []
        self._pictures: UInt8[np.ndarray, "n h w 3"] | None = None
        self._loose: list[UInt8[np.ndarray, "h w 3"]] = []  # filled once there are several shapes
        self._bytes = 0

    def room(self, height: int, width: int) -> UInt8[np.ndarray, "h w 3"]:
        """Where a picture of this size may be decoded to before its row is added."""
        if not self._rows and (self._pictures is None or self._pictures.shape[1:3] != (height, width)):
            rows = max(1, self.block_bytes // (self.pixel_bytes * height * width))
            self._pictures = np.empty((rows, height, width, 3), np.uint8)
        place = self._place((height, width, 3))
        return np.empty((height, width, 3), np.uint8) if place is None else place

    def add(self, row: Row) -> None:
        """Take a row; its picture is copied only where it does not lie in `room` already."""
        image = row["image"]
        if not self._rows and (self._pictures is None or self._pictures.shape[1:] != image.shape):
            self.room(*image.shape[:2])
        place = self._place(image.shape)
        if place is None:
            if not self._loose:
                assert self._pictures is not None
                self._loose = list(self._pictures[: len(self._rows)])
            self._loose.append(image)
        elif not _same_place(image, place):
            place[...] = image.copy() if np.may_share_memory(image, place) else image
        others = {name: value for name, value in row.items() if name != "image"}
        self._rows.append(others)
        self._bytes += sum(_bytes(value) for value in row.values())

    @property
    def is_full(self) -> bool:
        """Whether the block should be taken now."""
        if self._bytes >= (FULL if self._loose else 1.0) * self.block_bytes:
            return True
        return not self._loose and self._pictures is not None and len(self._rows) == len(self._pictures)

    def take(self) -> Block | None:
        """The block of all rows since the last one; None without any."""
        if not self._rows:
            return None
        rows, loose, pictures = self._rows, self._loose, self._pictures
        assert pictures is not None
        columns = {name: column([row[name] for row in rows]) for name in rows[0]}
        columns["image"] = column(loose) if loose else pictures[: len(rows)]
        self._clear()
        return BlockAccessor.batch_to_block(columns)

    def _place(self, shape: Sequence[int]) -> UInt8[np.ndarray, "h w 3"] | None:
        """The next place in the shared array, None where it does not fit."""
        pictures, row = self._pictures, len(self._rows)
        if self._loose or pictures is None or row >= len(pictures) or pictures.shape[1:] != tuple(shape):
            return None
        return pictures[row]


def to_blocks(rows: Iterable[Row], builder: BlockBuilder) -> Iterator[Block]:
    """The rows as blocks; `rows` may decode to `builder.room`."""
    for row in rows:
        builder.add(row)
        if builder.is_full and (block := builder.take()) is not None:
            yield block
    if (block := builder.take()) is not None:
        yield block


def column(values: Sequence[Any]) -> np.ndarray:
    """One column: arrays of one shape side by side, others as ragged tensors."""
    first = values[0]
    if not isinstance(first, np.ndarray):
        return np.array(values)
    if all(value.shape == first.shape for value in values):
        return np.stack(values)
    ragged = np.empty(len(values), dtype=object)
    ragged[:] = values
    return ragged


def _bytes(value: Any) -> int:
    """What a value takes in a block: its content, and eight bytes for its offset or for a number."""
    if isinstance(value, np.ndarray):
        return 8 + value.nbytes
    return 8 + (len(value) if isinstance(value, str) else 0)


def _same_place(one: np.ndarray, other: np.ndarray) -> bool:
    return (
        one.__array_interface__["data"][0] == other.__array_interface__["data"][0]
        and one.shape == other.shape
        and one.strides == other.strides
    )
