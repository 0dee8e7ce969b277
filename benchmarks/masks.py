"""How well each masker finds the subject: mean IoU against exact masks of held-out pictures, and its time.

    python benchmarks/masks.py [--pictures 400] [--onnx NAME=FILE[:CONVENTION] ...] [--onnx-pictures 100]

The pictures are the same for every masker: the first of the held-out ones in a shuffled order of a fixed seed. A mask
is 1 above a half. Prints a Markdown table and writes it beside the versions to `masks-benchmark.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8

from imprint.config.data import MaskerSpec
from imprint.pipelines.masks import load_masker
from imprint.pipelines.mixing import Mix, plan_mix
from imprint.pipelines.reading import ReadOptions, read_rows
from imprint.pipelines.shards import counted, find_shards

Pictures = tuple[list[UInt8[np.ndarray, "h w 3"]], list[UInt8[np.ndarray, "h w"]]]
_SEED = 1
_BUFFER = 4000


def iou(found: UInt8[np.ndarray, "h w"], true: UInt8[np.ndarray, "h w"]) -> float:
    """Intersection over union of two masks, each 1 above a half; 1 where both are empty."""
    a, b = found > 127, true > 127
    union = int((a | b).sum())
    return float((a & b).sum() / union) if union else 1.0


def heldout(folder: str, count: int) -> Pictures:
    """Pictures and their exact masks."""
    shards = counted(find_shards([folder], "heldout"))
    counts, options = [shard.samples or 0 for shard in shards], ReadOptions(seed=_SEED, shuffle_buffer=_BUFFER)
    parts = plan_mix(
        counts,
        [0] * len(shards),
        Mix((1.0,)),
        seed=_SEED,
        shuffle_buffer=_BUFFER,
        start=0,
        stop=min(count, sum(counts)),
    )
    rows = [
        row
        for part in parts
        for row in read_rows({n: shards[n] for n in part.shards}, part, options, total=sum(counts))
    ]
    return [row["image"] for row in rows], [row["mask"] for row in rows]


def measure(spec: MaskerSpec, pictures: Pictures) -> dict[str, float]:
    """Mean and tenth percentile of the IoU, and milliseconds a picture after a first one."""
    images, true = pictures
    masker = load_masker(spec)
    masker(images[:1])
    began = time.perf_counter()
    found = masker(images)
    seconds = time.perf_counter() - began
    scores = [iou(*pair) for pair in zip(found, true, strict=True)]
    return {
        "pictures": len(images), "iou": float(np.mean(scores)), "iou_p10": float(np.quantile(scores, 0.1)),
        "ms": 1000 * seconds / len(images),
    }  # fmt: skip


def maskers(onnx: Sequence[str]) -> dict[str, MaskerSpec]:
    """Those of this installation, and the ONNX files named on the command line."""
    found = {"embedded": MaskerSpec(kind="embedded"), "attributes": MaskerSpec(kind="attributes", batch_size=64)}
    for entry in onnx:
        name, _, rest = entry.partition("=")
        file, _, convention = rest.partition(":")
        found[name] = MaskerSpec.model_validate({"kind": "onnx", "model": file, "convention": convention or "auto"})
    return found


def main() -> None:
    """Measure every masker on both data sets and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="data", help="folder with faces-64 and objects-64")
    parser.add_argument("--pictures", type=int, default=400)
    parser.add_argument("--onnx", action="append", default=[], metavar="NAME=FILE[:CONVENTION]")
    parser.add_argument("--onnx-pictures", type=int, default=100)
    parser.add_argument("--out", default="masks-benchmark.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    sets = {name: heldout(str(Path(arguments.data) / name), arguments.pictures) for name in ("faces-64", "objects-64")}
    results: dict[str, dict[str, dict[str, float]]] = {}
    print("| Masker | Pictures | IoU, faces | lowest tenth | IoU, objects | lowest tenth | ms a picture |")
    print("|---|---|---|---|---|---|---|")
    for name, spec in maskers(arguments.onnx).items():
        limit = arguments.onnx_pictures if spec.kind == "onnx" else arguments.pictures
        found = results[name] = {
            data: measure(spec, (images[:limit], masks[:limit])) for data, (images, masks) in sets.items()
        }
        faces, objects = found["faces-64"], found["objects-64"]
        print(
            f"| {name} | {faces['pictures']} + {objects['pictures']} | {faces['iou']:.3f} | {faces['iou_p10']:.3f} | "
            f"{objects['iou']:.3f} | {objects['iou_p10']:.3f} | {(faces['ms'] + objects['ms']) / 2:.1f} |",
            flush=True,
        )
    versions = {name: version(name) for name in ("imprint", "numpy", "onnxruntime", "scikit-image", "scipy", "torch")}
    record = {"results": results, "versions": versions, "python": platform.python_version(), "cpus": os.cpu_count()}
    Path(arguments.out).write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
