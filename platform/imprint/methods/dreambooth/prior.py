"""Class images: what the frozen model draws of the class, kept in a cache for the next subject.

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
from jaxtyping import UInt8
from torch import Tensor

from imprint.backbone import Backbone
from imprint.config.methods import PriorSpec
from imprint.errors import DataError
from imprint.folders import read_folder, write_folder
from imprint.sampling.draw import draw_prompts

log = logging.getLogger(__name__)

NAME = "class-images"
FORMAT_VERSION = 1


def class_prompt(spec: PriorSpec, class_noun: str) -> str:
    """c_pr, "a [class noun]"."""
    return spec.prompt.replace("{}", class_noun)


def class_images(backbone: Backbone, spec: PriorSpec, class_noun: str) -> UInt8[Tensor, "n 3 h w"]:
    """`spec.images` pictures of the class, from the cache as far as it has them; seeds are 0, 1, 2, ...

    The cache is a folder for each model, prompt and sampler. More pictures than it holds are added to it; a broken one
    is drawn anew.

    Raises:
        StorageError: the cache cannot be written.
    """
    prompt = class_prompt(spec, class_noun)
    folder = Path(os.path.expanduser(spec.cache_dir)).absolute() / cache_key(backbone, spec, prompt)
    images = _cached(folder)
    have = 0 if images is None else len(images)
    if have < spec.images:
        log.info("drawing %d pictures of %r to preserve the prior; they are kept in %s", spec.images - have, prompt,
                 folder)  # fmt: skip
        seeds = range(have, spec.images)
        drawn = draw_prompts(backbone, [prompt] * len(seeds), spec.sampling, seeds=seeds)
        fresh = drawn.add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8).cpu()
        images = fresh if images is None else torch.cat([images, fresh])
        record = {"prompt": prompt, "sampling": spec.sampling.model_dump(mode="json"), "backbone": backbone.path}
        write_folder(folder, NAME, {"images": images}, record, format_version=FORMAT_VERSION)
    assert images is not None
    return images[: spec.images]


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
