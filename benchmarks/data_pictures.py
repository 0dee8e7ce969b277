"""Shards of JPEGs for the data benchmark: noise with the spectrum of photographs, so that they compress alike."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image

from imprint.pipelines.writer import Sample, ShardFolder, shard_name, write_shard

QUALITY = 90
_DISTINCT_BYTES = 64 << 20  # pictures beyond so many bytes of pixels are repeated under new keys


def photo_like(size: int, seed: int) -> np.ndarray:
    """uint8 [size, size, 3]; octaves of noise whose amplitude falls with frequency, as in photographs (1/f)."""
    random = np.random.default_rng(seed)
    total = np.zeros((size, size, 3), np.float32)
    cells = 4
    while cells <= size:
        octave = random.standard_normal((cells, cells, 3), np.float32)
        octave = 0.7 * octave.mean(axis=2, keepdims=True) + 0.3 * octave
        planes = [Image.fromarray(octave[..., c]).resize((size, size), Image.Resampling.BICUBIC) for c in range(3)]
        total += np.stack([np.asarray(plane) for plane in planes], axis=2) * (8 / cells) ** 0.8
        cells *= 2
    total = (total - total.mean()) / total.std()
    return np.clip(128 + 48 * total, 0, 255).astype(np.uint8)


def write_jpegs(folder: Path, count: int, size: int, shards: int) -> dict[str, float]:
    """Write `count` JPEGs of `size` px into that many shards with a manifest; says how large they are."""
    distinct = max(1, min(count, _DISTINCT_BYTES // (3 * size * size)))
    pictures = [
        simplejpeg.encode_jpeg(photo_like(size, seed), QUALITY, colorsubsampling="420") for seed in range(distinct)
    ]
    header = {"made": "benchmarks/data.py", "count": count, "size": size, "shards": shards}
    target = ShardFolder(folder, header)
    names = []
    for shard, numbers in enumerate(np.array_split(np.arange(count), shards)):
        samples = [
            Sample(
                f"{number:06d}",
                {
                    "jpg": pictures[number % distinct],
                    "txt": f"picture {number}".encode(),
                    "json": json.dumps({"number": int(number)}).encode(),
                },
            )
            for number in numbers
        ]
        info = write_shard(folder / shard_name("train", shard), "train", samples)
        target.record(info)
        names.append(info.name)
    target.finish(names)
    total = sum(len(pictures[number % distinct]) for number in range(count))
    return {"pictures": count, "size": size, "shards": shards, "distinct": distinct, "mean_jpeg_bytes": total / count}
