"""Blocks: pictures lie where they were decoded, sizes are set by bytes, and Ray neither joins nor cuts them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from ray.data._internal.output_buffer import BlockOutputBuffer, OutputBlockSizeOption
from ray.data.block import BlockAccessor

from imprint.pipelines.blocks import RAYS_TARGET, BlockBuilder, to_blocks

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def row(number: int, height: int, width: int, image: np.ndarray | None = None) -> Any:
    image = np.empty((height, width, 3), np.uint8) if image is None else image
    image[...] = number
    return {"__key__": f"k{number}", "image": image, "mask": np.full((height, width), number, np.uint8)}


def pictures(blocks: list[Any]) -> list[list[tuple[tuple[int, ...], int]]]:
    batches = [BlockAccessor.for_block(block).to_batch_format("numpy") for block in blocks]
    return [[(image.shape, int(image.max())) for image in batch["image"]] for batch in batches]


def test_pictures_of_one_shape_fill_blocks_without_a_copy() -> None:
    builder = BlockBuilder(10 * 4 * 64)
    blocks, rows = [], []
    for number in range(25):
        image = builder.room(8, 8)
        builder.add(row(number, 8, 8, image))
        rows.append(image)
        if builder.is_full:
            blocks.append(builder.take())
            (batch,) = (BlockAccessor.for_block(block).to_batch_format("numpy") for block in blocks[-1:])
            assert np.shares_memory(batch["image"], rows[-1])
    blocks.append(builder.take())
    assert [block.num_rows for block in blocks] == [10, 10, 5]
    assert pictures(blocks) == [[((8, 8, 3), n) for n in part] for part in (range(10), range(10, 20), range(20, 25))]
    assert builder.take() is None


def test_pictures_of_many_shapes_become_ragged_blocks_of_about_the_size() -> None:
    rows = [row(number, 8 + number % 3, 8) for number in range(30)]
    blocks = list(to_blocks(rows, BlockBuilder(4000)))
    assert [shape for block in pictures(blocks) for shape in block] == [
        (r["image"].shape, int(r["image"].max())) for r in rows
    ]
    assert all(block.nbytes < 6000 for block in blocks)
    assert len(blocks) > 2


def test_a_turned_view_of_the_room_is_laid_out_anew() -> None:
    builder = BlockBuilder(10_000)
    place = builder.room(8, 8)
    place[...] = np.arange(192, dtype=np.uint8).reshape(8, 8, 3)
    turned = np.rot90(place)
    expected = turned.copy()
    builder.add({"__key__": "k", "image": turned})  # type: ignore[typeddict-item]
    block = builder.take()
    np.testing.assert_array_equal(BlockAccessor.for_block(block).to_batch_format("numpy")["image"][0], expected)


def test_a_picture_that_failed_half_decoded_leaves_its_room_to_the_next() -> None:
    builder = BlockBuilder(10_000)
    builder.room(8, 8)[...] = 9
    builder.add(row(1, 8, 8, builder.room(8, 8)))
    assert pictures([builder.take()]) == [[((8, 8, 3), 1)]]


@pytest.mark.parametrize("size", [8, 20, 32])
def test_ray_takes_the_blocks_as_they_are(size: int) -> None:
    block_bytes = 10 * 4 * 32 * 32
    buffer = BlockOutputBuffer(OutputBlockSizeOption.of(target_max_block_size=int(RAYS_TARGET * block_bytes)))
    blocks = list(to_blocks([row(number % 256, size, size) for number in range(400)], BlockBuilder(block_bytes)))
    for block in blocks[:-1]:
        buffer.add_block(block)
        assert buffer.has_next()
        assert buffer.next().num_rows == block.num_rows
        assert not buffer.has_next()
