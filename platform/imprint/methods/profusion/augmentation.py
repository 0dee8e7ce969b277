"""Augmented pictures of one subject: resized, turned, and on new backgrounds.

Source: ProFusion, arXiv:2305.13579, appendix B and Figure 14: the masked subject, after random resizing and rotation,
goes to an inpainting model. Where there is none, backgrounds are composited.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from imprint.config.methods import AugmentationSpec, InpaintingSpec
from imprint.errors import BackboneError, DataError
from imprint.methods.augment import centre_square, placed_views, smooth_colours, spread_evenly
from imprint.methods.base import Pictures

log = logging.getLogger(__name__)
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def augmented(
    pictures: Pictures,
    spec: AugmentationSpec,
    *,
    class_noun: str,
    generator: torch.Generator,
) -> Pictures:
    """The given pictures and `spec.images` more; contexts are left out, since the new ones show other places.

    Raises:
        BackboneError: the inpainting pipeline cannot be loaded.
        DataError: there are no backgrounds in the folder of backgrounds.
    """
    if not spec.enabled:
        return pictures
    images = pictures.images
    order = spread_evenly(len(images), spec.images, generator).to(images.device)
    place = {"smallest": spec.placement.smallest, "degrees": spec.placement.degrees, "generator": generator}
    if pictures.masks is None:
        log.warning("augmentation: the pictures have no masks, so they are resized and turned with their backgrounds")
        return Pictures(torch.cat([images, placed_views(images[order], **place)]))
    # Padding beyond the picture holds no subject: the mask is the last channel, and zero there.
    with_masks = torch.cat([images * pictures.masks, pictures.masks], dim=1)[order]
    views = placed_views(with_masks, **place, padding="zeros")
    subjects, masks = views[:, :3], views[:, 3:].clamp(0, 1)
    if spec.inpainting is not None:
        log.info("augmentation: new backgrounds by inpainting with %s", spec.inpainting.pipeline)
        grounds = inpainted(subjects, masks, spec.inpainting, class_noun, generator)
    elif spec.backgrounds is not None:
        log.info("augmentation: no inpainting pipeline, compositing on the pictures in %s", spec.backgrounds)
        grounds = read_backgrounds(spec.backgrounds, spec.images, images.shape[-1], generator).to(images)
    else:
        log.info("augmentation: no inpainting pipeline and no backgrounds, compositing on smooth colours")
        grounds = smooth_colours(spec.images, images.shape[-1], generator).to(images)
    # `subjects` are multiplied by their masks already.
    composed = subjects + (1 - masks) * grounds
    return Pictures(torch.cat([images, composed]), torch.cat([pictures.masks, masks]))


def read_backgrounds(
    folder: str, count: int, size: int, generator: torch.Generator
) -> Float[Tensor, "count 3 size size"]:
    """`count` of the pictures in a folder, all as often but for one, as squares in [-1, 1].

    Raises:
        DataError: there is none, or one cannot be read.
    """
    place = Path(folder).expanduser()
    files = sorted(file for file in place.glob("*") if file.suffix.lower() in SUFFIXES)
    if not files:
        raise DataError(
            f"augmentation.backgrounds: {place} holds no pictures; expected files that end in {', '.join(SUFFIXES)}"
        )
    chosen = []
    for index in spread_evenly(len(files), count, generator).tolist():
        try:
            with Image.open(files[index]) as picture:
                pixels = torch.from_numpy(np.array(picture.convert("RGB")))
        except (OSError, Image.DecompressionBombError) as error:
            raise DataError(f"augmentation.backgrounds: reading {files[index]}: {error}; take it out") from error
        chosen.append(centre_square(pixels.permute(2, 0, 1)[None].float() / 127.5 - 1, size))
    return torch.cat(chosen)


@torch.no_grad()
def inpainted(
    subjects: Float[Tensor, "n 3 h w"],
    masks: Float[Tensor, "n 1 h w"],
    spec: InpaintingSpec,
    class_noun: str,
    generator: torch.Generator,
) -> Float[Tensor, "n 3 h w"]:
    """What an inpainting pipeline paints around subjects; where they are it may change them.

    Raises:
        BackboneError: the pipeline cannot be loaded.
    """
    pipeline = _load(spec.pipeline).to(subjects.device)
    size = int(pipeline.unet.config.sample_size * pipeline.vae_scale_factor)
    painted = []
    for subject, mask in zip(subjects, masks, strict=True):
        seed = int(torch.randint(2**31, (1,), generator=generator, device=generator.device))
        painted.append(
            pipeline(
                prompt=spec.prompt.format(class_noun),
                negative_prompt=spec.negative_prompt,
                image=_resized(subject[None], size),
                mask_image=(_resized(1 - mask[None], size) > 0.5).float(),
                height=size,
                width=size,
                num_inference_steps=spec.steps,
                guidance_scale=spec.guidance_scale,
                generator=torch.Generator().manual_seed(seed),
                output_type="pt",
            ).images
            * 2
            - 1
        )
    return _resized(torch.cat(painted).to(subjects), subjects.shape[-1]).clamp(-1, 1)


def _load(path: str) -> Any:
    from diffusers import AutoPipelineForInpainting

    try:
        pipeline = AutoPipelineForInpainting.from_pretrained(path, use_safetensors=True)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BackboneError(
            f"loading the inpainting pipeline {path}: {reason}; expected a diffusers folder or hub id with "
            "safetensors, or leave augmentation.inpainting out"
        ) from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _resized(images: Float[Tensor, "n c h w"], size: int) -> Float[Tensor, "n c size size"]:
    if images.shape[-1] == size:
        return images
    return F.interpolate(images, (size, size), mode="bilinear", antialias=True, align_corners=False)
