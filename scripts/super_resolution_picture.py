"""Draw docs/methods/super_resolution.png: held-out subjects, enlarged before and after tuning, and what PSNR says.

Each subject's first four pictures are tuned on, all the others are enlarged. Needs data/faces-256
(see jobs/train_super_resolution.yaml) and held-out drawings of one style, on six backgrounds each:
    imprint run jobs/prepare_objects.yaml out_dir=data/subjects sizes=[256] "styles=[fluent 3d]" train_backgrounds=1 \\
        heldout_backgrounds=6

Usage: python scripts/super_resolution_picture.py [OUT.png] [key=value ...], where the keys are of tuning
(`super_resolution` in `imprint personalize --method dreambooth`).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from imprint.backbone.super_resolution import SuperResolution
from imprint.config.load import validate
from imprint.config.methods import SuperResolutionSampler, SuperResolutionTuneSpec
from imprint.config.overrides import apply_overrides
from imprint.config.source import Document
from imprint.evaluation.grid import labelled_grid
from imprint.methods.base import Pictures
from imprint.methods.cascade import shrink
from imprint.methods.dreambooth.super_resolution import tune_super_resolution, with_tuned_weights
from imprint.pipelines.order import plan
from imprint.pipelines.reading import ReadOptions, Row, read_slice
from imprint.pipelines.shards import Shard, counted, find_shards
from imprint.sampling.super_resolution import upscale
from imprint.training.batches import to_pixel_values

MODEL = "imprint-tiny-x4"
TUNED_ON = 4
DEFAULTS = {"model": MODEL, "crop_size": 64, "steps": 60, "learning_rate": 5e-4, "precision": "bf16"}
SAMPLER = SuperResolutionSampler(steps=12, precision="bf16")
LEVELS = {"tuned, 1e-5": 1e-5, "tuned, 1e-3": 1e-3}


class Subject(NamedTuple):
    """All pictures of one identity and what a prompt calls it."""

    phrase: str
    images: Tensor


def main() -> None:
    arguments = sys.argv[1:]
    out = Path(arguments.pop(0) if arguments and "=" not in arguments[0] else "docs/methods/super_resolution.png")
    base = Document(name="options", data=DEFAULTS, origins={})
    spec = validate(apply_overrides(base, arguments), SuperResolutionTuneSpec)
    model = SuperResolution.load(spec.model)
    found: dict[str, list[float]] = {}
    rows = []
    for subject in [*subjects("data/faces-256", 2), *subjects("data/subjects/objects-256", 1)]:
        columns = enlarged(model, subject, spec)
        real = subject.images[TUNED_ON:]
        for name, images in columns.items():
            found.setdefault(name, []).extend(psnr(images, real).tolist())
        rows.append([to_image(image) for image in (*(images[0] for images in columns.values()), real[0])])
        labelled_grid(rows, [*found, "real, 256 px"], cell=256).save(out)
    means = {name: round(sum(values) / len(values), 2) for name, values in found.items()}
    print(json.dumps({"PSNR, dB": means, "pictures": len(next(iter(found.values()))), "steps": spec.steps}))


def subjects(folder: str, count: int) -> list[Subject]:
    """The first held-out identities, of six pictures or as many vendors' drawings as there are."""
    shards = counted(find_shards([folder], "heldout"))
    counts = [shard.samples or 0 for shard in shards]
    kept: list[Subject] = []
    for _, group in groupby(_rows(shards, counts), key=lambda row: json.loads(row["json"])["identity"]):
        own = list(group)
        if len(own) > TUNED_ON:
            noun = json.loads(own[0]["json"])["class_noun"]
            kept.append(Subject(f"a sks {noun}", to_pixel_values(np.stack([row["image"] for row in own]))))
        if len(kept) == count:
            break
    return kept


def _rows(shards: list[Shard], counts: list[int]) -> Iterator[Row]:
    for part in plan(counts, seed=0, shuffle_buffer=0, start=0, stop=sum(counts)):
        chosen = {n: shards[n] for n in part.shards}
        yield from read_slice(chosen, part, ReadOptions(image_size=256), total=sum(counts))


def enlarged(model: SuperResolution, subject: Subject, spec: SuperResolutionTuneSpec) -> dict[str, Tensor]:
    """The pictures that were not tuned on, by each way to enlarge them."""
    own, others = Pictures(subject.images[:TUNED_ON]), subject.images[TUNED_ON:]
    small = shrink(others, model.factor)
    prompts = [subject.phrase] * len(others)
    bicubic = F.interpolate(small, others.shape[-2:], mode="bicubic", align_corners=False).clamp(-1, 1)
    columns = {
        "64 px": F.interpolate(small, others.shape[-2:], mode="nearest"),
        "bicubic": bicubic,
        "untuned": upscale(model, small, prompts, SAMPLER),
    }
    for name, level in LEVELS.items():
        at = spec.model_copy(update={"noise_augmentation": level})
        tuned = with_tuned_weights(model, tune_super_resolution(model, own, at, subject.phrase, low_size=64))
        sampler = SAMPLER.model_copy(update={"noise_augmentation": level})
        columns[name] = upscale(tuned, small, prompts, sampler)
    return columns


def psnr(images: Tensor, real: Tensor) -> Tensor:
    """Decibels, one a picture, of pictures in [-1, 1]."""
    return -10 * ((images - real) / 2).square().mean(dim=(1, 2, 3)).log10()


def to_image(image: Tensor) -> Image.Image:
    return Image.fromarray(((image.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy())


if __name__ == "__main__":
    main()
