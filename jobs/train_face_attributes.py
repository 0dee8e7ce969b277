"""`train_face_attributes`: the network that reads attributes and masks off faces, for the reports of `evaluate`."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from torch import Tensor

from imprint.config.jobs.evaluate import TrainFaceAttributes
from imprint.config.jobs.tiny import ShardSource
from imprint.config.paths import resolve_path
from imprint.errors import DataError, TrainingError
from imprint.evaluation.attribute_objective import AttributeObjective, LabelledBatch
from imprint.evaluation.attributes import (
    AttributeNet,
    AttributeReader,
    accuracy,
    classes_of,
    label_indices,
    save_reader,
)
from imprint.evaluation.face_labels import visible_labels
from imprint.jobs.local import draw, run_training
from imprint.pipelines.order import plan
from imprint.pipelines.reading import ReadOptions, read_slice
from imprint.pipelines.shards import counted, find_shards
from imprint.training.batches import to_pixel_values

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LabelledPictures:
    """Pictures in memory with their masks and true attributes."""

    images: np.ndarray  # uint8 [n, h, w, 3]
    masks: np.ndarray  # uint8 [n, h, w]
    labels: list[dict[str, str]]
    keys: list[str]
    weights: np.ndarray  # [n], sums to 1


def run(spec: TrainFaceAttributes, *, job_file: Path | None, source: str) -> None:
    """Train on the sources, measure on the held-out split of the same shards, write the reader's folder.

    Raises:
        DataError: nothing readable is there.
        TrainingError: training was stopped before its end.
    """
    torch.set_num_threads(spec.threads)
    torch.manual_seed(spec.seed)
    pictures = load_labelled(spec.sources, spec.attributes)
    heads = classes_of(pictures.labels)
    net = AttributeNet(spec.model, heads).to(memory_format=torch.channels_last)
    objective = AttributeObjective(net, mask_weight=spec.mask_weight, blur_share=spec.blur_share)
    numbers = label_indices(pictures.labels, heads)
    size = spec.training.batch_size
    state = run_training(spec, objective, lambda step: _batches(pictures, numbers, size, spec.seed, step), source)
    if state.step < spec.training.steps:
        raise TrainingError(
            f"{spec.name}: stopped at step {state.step} of {spec.training.steps}; run it again to go on"
        )
    heldout = [ShardSource(shards=item.shards, split="heldout", limit=spec.heldout_limit) for item in spec.sources]
    measured = measure(AttributeReader(net.eval(), heads, {}), load_labelled(heldout, spec.attributes))
    for name, value in measured["heldout_accuracy"].items():
        log.info("held-out accuracy of %s: %.3f", name, value)
    output = Path(resolve_path(spec.output))
    output.parent.mkdir(parents=True, exist_ok=True)
    training = {"steps": state.step, "samples": state.samples}
    save_reader(output, net, spec.model, heads, {**measured, "training": training})


def load_labelled(sources: Sequence[ShardSource], attributes: Sequence[str]) -> LabelledPictures:
    """Read whole shards with masks and json.

    Raises:
        DataError: nothing readable is there, or no sample has attributes.
    """
    images, masks, labels, keys, weights = [], [], [], [], []
    total = sum(source.weight for source in sources)
    for source in sources:
        shards = counted(find_shards(source.shards, source.split))
        count = sum(shard.samples or 0 for shard in shards)
        first, limit = len(images), min(source.limit or count, count)
        parts = plan([shard.samples or 0 for shard in shards], seed=0, shuffle_buffer=0, start=0, stop=limit)
        for part in track(parts, description="reading shards"):
            for row in read_slice({n: shards[n] for n in part.shards}, part, ReadOptions(), total=count):
                images.append(row["image"])
                masks.append(row["mask"])
                labels.append(visible_labels(json.loads(row["json"]).get("attributes", {}), attributes))
                keys.append(row["__key__"])
        weights += [source.weight / total / max(1, len(images) - first)] * (len(images) - first)
    if not any(labels):
        raise DataError(f"reading attributes: no sample has any of {list(attributes)}; expected the faces data set")
    return LabelledPictures(np.stack(images), np.stack(masks), labels, keys, np.asarray(weights))


def measure(reader: AttributeReader, pictures: LabelledPictures) -> dict[str, object]:
    """Accuracy of every head and the mask's intersection over union, on pictures that were not trained on."""
    read: dict[str, list[str]] = {}
    overlap, union = 0.0, 0.0
    for start in range(0, len(pictures.images), 100):
        images = to_pixel_values(pictures.images[start : start + 100])
        for head, values in reader.read(images).items():
            read.setdefault(head, []).extend(values)
        found = reader.masks(images)[:, 0] > 0.5
        true = torch.from_numpy(pictures.masks[start : start + 100]) > 127
        overlap, union = overlap + float((found & true).sum()), union + float((found | true).sum())
    return {
        "heldout_accuracy": {name: round(value, 4) for name, value in accuracy(read, pictures.labels).items()},
        "heldout_mask_iou": round(overlap / max(union, 1.0), 4),
        "heldout_pictures": len(pictures.images),
    }


def _batches(
    pictures: LabelledPictures, numbers: Tensor, batch_size: int, seed: int, first_step: int
) -> Iterator[LabelledBatch]:
    step = first_step
    while True:
        index = draw(pictures.weights, batch_size, seed, step)
        yield {
            "pixel_values": to_pixel_values(pictures.images[index]),
            "masks": torch.from_numpy(pictures.masks[index]).float().div_(255).unsqueeze(1),
            "labels": numbers[torch.from_numpy(index)],
            "captions": [""] * len(index),
            "keys": [pictures.keys[i] for i in index],
        }
        step += 1
