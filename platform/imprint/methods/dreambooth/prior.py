"""Class images: what the frozen model draws of the class, kept in a cache for the next subject; and batches of them.

Source: DreamBooth, arXiv:2208.12242, section 4.2: x_pr is drawn by the ancestral sampler from the pretrained model with
the prompt "a [class noun]".
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from pathlib import Path

import torch
import torch.distributed as dist
from jaxtyping import UInt8
from torch import Tensor

from imprint.backbone import Backbone
from imprint.config.methods import DreamBoothTuneSpec, PriorSpec
from imprint.errors import DataError
from imprint.folders import read_folder, write_folder
from imprint.methods.augment import random_views, spread_evenly
from imprint.methods.gather import sum_over_ranks
from imprint.methods.subject_batch import NoisyBatch, noisy_batch
from imprint.sampling.draw import draw_prompts

log = logging.getLogger(__name__)

NAME = "class-images"
FORMAT_VERSION = 1


def class_prompt(spec: PriorSpec, class_noun: str) -> str:
    """c_pr, "a [class noun]"."""
    return spec.prompt.replace("{}", class_noun)


def class_images(
    backbone: Backbone, spec: PriorSpec, class_noun: str, *, by_all_ranks: bool = False
) -> UInt8[Tensor, "n 3 h w"]:
    """`spec.images` pictures of the class, from the cache as far as it has them; seeds are 0, 1, 2, ...

    The cache is a folder for each model, prompt and sampler. More pictures than it holds are added to it; a broken one
    is drawn anew. With `by_all_ranks`, a collective call, the cache is rank 0's: what it lacks is drawn by all ranks,
    each its share, and all get all of it.

    Raises:
        StorageError: the cache cannot be written.
    """
    prompt = class_prompt(spec, class_noun)
    folder = Path(os.path.expanduser(spec.cache_dir)).absolute() / cache_key(backbone, spec, prompt)
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if by_all_ranks else (0, 1)
    _, height, width = backbone.latent_shape
    images = torch.zeros(
        spec.images, 3, height * backbone.downsampling, width * backbone.downsampling, dtype=torch.uint8
    )
    cached = _cached(folder) if rank == 0 else None
    have = 0 if cached is None else min(len(cached), spec.images)
    if cached is not None:
        images[:have] = cached[:have]
    if ranks > 1:
        have = int(sum_over_ranks(torch.tensor([have]), backbone.device))
    mine = range(have + rank, spec.images, ranks)
    if mine:
        log.info("drawing %d pictures of %r to preserve the prior; they are kept in %s", len(mine), prompt, folder)
        drawn = draw_prompts(backbone, [prompt] * len(mine), spec.sampling, seeds=mine)
        images[list(mine)] = drawn.add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8).cpu()
    if ranks > 1:
        images = sum_over_ranks(images, backbone.device)  # each picture is zero on all ranks but one
    if rank == 0 and have < spec.images:
        record = {"prompt": prompt, "sampling": spec.sampling.model_dump(mode="json"), "backbone": backbone.path}
        write_folder(folder, NAME, {"images": images}, record, format_version=FORMAT_VERSION)
    return images


def prior_batch(
    backbone: Backbone,
    spec: DreamBoothTuneSpec,
    images: UInt8[Tensor, "n 3 h w"],
    prompt: str,
    count: int,
    generator: torch.Generator,
    dtype: torch.dtype | None = None,
) -> NoisyBatch:
    """`count` class images, whole, with noise and timesteps of their own; latents in `dtype`, or the backbone's."""
    order = spread_evenly(len(images), count, generator)
    chosen = images[order.to(images.device)].to(backbone.device, torch.float32) / 127.5 - 1
    views = random_views(
        chosen,
        count,
        backbone.image_size,
        crop_scale=1.0,
        flip=spec.flip,
        generator=generator,
        order=torch.arange(count),
    )
    x0 = backbone.encode_images(views, generator)
    x0 = x0.to(dtype or x0.dtype)
    return noisy_batch(backbone, x0, generator, [prompt] * count, timestep_logits=spec.timestep_logits)


def cache_key(backbone: Backbone, spec: PriorSpec, prompt: str) -> str:
    """A hash of all that the pictures depend on: the model's weights, the prompt and the sampler's settings."""
    settings = spec.sampling.model_dump(mode="json", exclude={"batch_size", "super_resolution"})
    parts = {
        "backbone": backbone.fingerprint(), "prediction_type": backbone.prediction_type,
        "schedule": hashlib.sha256(backbone.schedule.alphas_cumprod.cpu().numpy().tobytes()).hexdigest(),
        "size": backbone.latent_shape, "prompt": prompt, "sampling": settings,
    }  # fmt: skip
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _cached(folder: Path) -> UInt8[Tensor, "n 3 h w"] | None:
    if not folder.is_dir():
        return None
    try:
        tensors, _ = read_folder(folder, NAME, DataError, format_version=FORMAT_VERSION)
    except DataError as error:
        log.warning("%s; the pictures are drawn anew", error)
        return None
    return tensors["images"]
