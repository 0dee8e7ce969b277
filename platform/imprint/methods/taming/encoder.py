"""The object encoder: a picture with its background masked away to its object embedding, by frozen CLIP.

Source: Taming Encoder, sections 3.1 and 3.3: o = I(x * m) with m the binary mask of the object.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from imprint.config.methods import ObjectEncoderSpec
from imprint.features.clip import ClipFeatures


def object_width(clip: ClipFeatures, spec: ObjectEncoderSpec) -> int:
    """Width of an object embedding's vectors."""
    return clip.width if spec.tokens == "patches" else clip.joint_width


@torch.no_grad()
def object_embedding(
    clip: ClipFeatures,
    spec: ObjectEncoderSpec,
    images: Float[Tensor, "b 3 h w"],
    masks: Float[Tensor, "b 1 h w"] | None,
) -> Float[Tensor, "b m e"]:
    """o of each picture in [-1, 1]: m vectors, each of zero mean and unit variance, so that phi is their middle.

    `masks` are 1 on the object; without them, or where the spec says so, CLIP sees the background too.
    """
    if spec.masked and masks is not None:
        images = without_background(images, masks)
    found = clip.tokens(images) if spec.tokens == "patches" else clip.encode_image(images)[:, None]
    return F.layer_norm(found, found.shape[-1:])


def without_background(images: Float[Tensor, "b 3 h w"], masks: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b 3 h w"]:
    """x * m, section 3.3, with a binary m: the background is 0 in [-1, 1], which is mid-gray."""
    return images * (masks > 0.5)
