"""Small shards, made in the tests that read them: pictures whose colour says their number."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from imprint.pipelines.writer import Sample, ShardFolder, ShardInfo, shard_name, write_shard

SIZE = 16


def picture(number: int, kind: str = "PNG", size: int = SIZE) -> bytes:
    """A plain picture whose red channel says its number."""
    array = np.full((size, size, 3), (number % 256, number // 256, 7), np.uint8)
    file = io.BytesIO()
    Image.fromarray(array).save(file, kind)
    return file.getvalue()


def mask(size: int = SIZE) -> bytes:
    array = np.zeros((size, size), np.uint8)
    array[: size // 2] = 255
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def sample(number: int) -> Sample:
    record = {"identity": f"id-{number // 2}", "class_noun": "person", "caption_context": f"context {number}"}
    members = {
        "png": picture(number), "mask.png": mask(), "txt": f"caption {number}".encode(),
        "json": json.dumps(record).encode(),
    }  # fmt: skip
    return Sample(f"s-{number:04d}", members)


def write_shards(folder: Path, counts: list[int], change: Callable[[int, Sample], Sample] | None = None) -> Path:
    """A folder of shards of so many samples with a manifest; `change` may alter a sample by its number."""
    shards = ShardFolder(folder, {"made": "by a test", "counts": counts})
    number, infos = 0, list[ShardInfo]()
    for index, count in enumerate(counts):
        samples = [sample(number + i) for i in range(count)]
        if change:
            samples = [change(number + i, one) for i, one in enumerate(samples)]
        info = write_shard(folder / shard_name("train", index), "train", samples)
        shards.record(info)
        infos.append(info)
        number += count
    shards.finish([info.name for info in infos])
    return folder
