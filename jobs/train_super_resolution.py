"""The job that makes the second stage of the tiny cascade, 64 px to 256 px."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.progress import track

from imprint.backbone import Backbone
from imprint.backbone.base import latent_moments
from imprint.backbone.precision import computing
from imprint.backbone.super_resolution import SuperResolution
from imprint.backbone.super_resolution_loading import build_super_resolution, save_super_resolution
from imprint.config.jobs.super_resolution import TrainSuperResolution
from imprint.config.paths import resolve_path
from imprint.errors import DataError
from imprint.jobs.local import (
    Pictures,
    draw,
    keep_record,
    load_pictures,
    require_finished,
    run_training,
    write_whole,
)
from imprint.methods.cascade import shrink
from imprint.training.batches import to_pixel_values
from imprint.training.objectives.super_resolution import PairBatch, SuperResolutionObjective

log = logging.getLogger(__name__)
_ENCODE_BATCH = 8


@dataclass(frozen=True)
class Pairs:
    """A data set in memory: latents of the large pictures, and the small ones as they are and as decoded."""

    latents: np.ndarray  # float16 [n, c, h, w]
    low: np.ndarray  # float16 [n, 2, 3, h, w]
    captions: list[str]
    keys: list[str]
    weights: np.ndarray  # [n], sums to 1
    factor: int


def run(spec: TrainSuperResolution, *, job_file: Path | None, source: str) -> None:
    """Train the UNet; writes a diffusers folder."""
    torch.set_num_threads(spec.threads)
    torch.manual_seed(spec.seed)
    place = resolve_path(spec.backbone)
    backbone = Backbone.load(place if Path(place).exists() else spec.backbone)
    model = build_super_resolution(spec.model, backbone)
    pairs = _pairs(model, backbone, load_pictures(spec.sources), spec.crop_size)
    objective = SuperResolutionObjective(
        model, caption_dropping=spec.caption_dropping, timestep_logits=spec.timestep_logits
    )
    state = run_training(spec, objective, lambda step: pair_batches(pairs, spec, step), source)
    require_finished(spec, state.step)

    def write(folder: Path) -> None:
        save_super_resolution(model, folder)
        keep_record(spec, folder)

    write_whole(Path(resolve_path(spec.output)), write)


@torch.no_grad()
def _pairs(model: SuperResolution, backbone: Backbone, pictures: Pictures, crop_size: int) -> Pairs:
    """Encode every picture once; convolutions have no need of the rest of it, so crops of latents are latents of crops.

    Raises:
        DataError: the pictures are no larger than the crops.
    """
    size = pictures.images.shape[1]
    if size < crop_size or size != model.factor * backbone.image_size:
        raise DataError(
            f"reading pictures for super-resolution: they are {size} px, expected {model.factor} times the "
            f"backbone's {backbone.image_size} px"
        )
    latents, low = [], []
    model.vae.to(memory_format=torch.channels_last)  # type: ignore[union-attr]
    with computing("auto", model.device):
        starts = range(0, len(pictures.images), _ENCODE_BATCH)
        for start in track(starts, description="encoding pictures"):
            high = to_pixel_values(pictures.images[start : start + _ENCODE_BATCH])
            mean, _ = latent_moments(model.vae, high.contiguous(memory_format=torch.channels_last))  # type: ignore[arg-type]
            small = shrink(high, model.factor)
            decoded = backbone.decode_latents(backbone.encode_images(small))
            latents.append(mean.half().numpy())
            low.append(torch.stack([small, decoded], dim=1).half().numpy())
    every = np.concatenate(latents)
    # Unit variance, as of the latents of any backbone. The autoencoder's own factor is that of small pictures.
    scale = float(model.vae.config.scaling_factor / every[:256].astype(np.float32).std())  # type: ignore[union-attr]
    every *= np.float16(scale / model.vae.config.scaling_factor)  # type: ignore[union-attr]
    model.vae.register_to_config(scaling_factor=scale)  # type: ignore[union-attr]
    log.info("encoded %d pictures", len(every))
    return Pairs(every, np.concatenate(low), pictures.captions, pictures.keys, pictures.weights, model.factor)


def pair_batches(pairs: Pairs, spec: TrainSuperResolution, step: int) -> Iterator[PairBatch]:
    """Batches without end, from `step` on: crops, or now and then whole pictures; a pure function of (seed, step)."""
    side = pairs.low.shape[-1]
    crop = spec.crop_size // pairs.factor
    while True:
        numbers = np.random.default_rng([spec.seed, step, 1])
        whole = numbers.random() < spec.whole_share
        size = side if whole else crop
        count = max(1, spec.training.batch_size * crop**2 // side**2) if whole else spec.training.batch_size
        index = draw(pairs.weights, count, spec.seed, step)
        decoded = (numbers.random(count) < spec.decoded_share).astype(int)
        corners = numbers.integers(0, side - size + 1, (count, 2))
        windows = [(slice(y, y + size), slice(x, x + size)) for y, x in corners]
        latents = [pairs.latents[i][:, y, x] for i, (y, x) in zip(index, windows, strict=True)]
        low = [pairs.low[i, which][:, y, x] for i, which, (y, x) in zip(index, decoded, windows, strict=True)]
        yield {
            "latents": torch.from_numpy(np.stack(latents)).float(),
            "low": torch.from_numpy(np.stack(low)).float(),
            "captions": [pairs.captions[i] for i in index],
            "keys": [pairs.keys[i] for i in index],
        }  # type: ignore[typeddict-item]
        step += 1
