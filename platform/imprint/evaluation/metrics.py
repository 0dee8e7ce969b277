"""The field's metrics, by their names and definitions; each gets features and knows nothing of how they were made.

    CLIP-I, DINO    mean cosine of every generated with every real picture of a subject; DreamBooth (CVPR 2023)
    CLIP-T          mean cosine of pictures with the texts that they were drawn by; DreamBooth
    KID             squared maximum mean discrepancy, cubic kernel, unbiased; arXiv:1801.01401, section 4
    DIV             mean LPIPS over pairs of pictures of one subject and one prompt; DreamBooth
    PRES            as DINO, between pictures drawn of the *class* and real pictures of the subject; DreamBooth:
                    the higher, the more of the class has become the subject
    copies          how alike a picture and the input are, and whether only a copy is so alike

Features are rows of unit length unless said otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from imprint.errors import DataError

PairDistance = Callable[[Float[Tensor, "n 3 h w"], Float[Tensor, "n 3 h w"]], Float[Tensor, "n"]]
"""How unlike the pictures of each pair are, 0 for the same; pictures in [-1, 1]."""


def image_similarity(generated: Float[Tensor, "n d"], real: Float[Tensor, "m d"]) -> Float[Tensor, "n"]:
    """CLIP-I, DINO or, with pictures of the class, PRES: each generated picture's mean cosine with all real ones."""
    return (F.normalize(generated, dim=-1) @ F.normalize(real, dim=-1).T).mean(dim=1)


def text_similarity(images: Float[Tensor, "n d"], texts: Float[Tensor, "n d"]) -> Float[Tensor, "n"]:
    """CLIP-T: the cosine of each picture with the text that it was drawn by, without the subject's name."""
    return F.cosine_similarity(images, texts, dim=-1)


class Spread(NamedTuple):
    """A mean and the standard deviation over subsets."""

    mean: float
    deviation: float


def kernel_distance(
    real: Float[Tensor, "n d"],
    generated: Float[Tensor, "m d"],
    *,
    subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 0,
) -> Spread:
    """KID, over random subsets without replacement; features as the network gives them, of any length.

    The paper's subsets of 1,000 are made as small as there are pictures. With no subset to draw, which is where both
    sides are as many as a subset, there is one value and no deviation.

    Raises:
        DataError: there are fewer than two pictures on a side, where the unbiased estimate has no value.
    """
    from torchmetrics.image.kid import poly_mmd  # seconds to import, for those who ask for it alone

    size = min(subset_size, len(real), len(generated))
    if size < 2:
        raise DataError(f"KID: got {len(real)} real and {len(generated)} generated pictures, expected two of each")
    if size == len(real) == len(generated):
        return Spread(float(poly_mmd(real.double(), generated.double())), 0.0)
    generator = torch.Generator().manual_seed(seed)
    values = []
    for _ in range(subsets):
        one = torch.randperm(len(real), generator=generator)[:size]
        two = torch.randperm(len(generated), generator=generator)[:size]
        values.append(float(poly_mmd(real[one].double(), generated[two].double())))
    found = torch.tensor(values, dtype=torch.float64)
    return Spread(float(found.mean()), float(found.std(unbiased=False)))


def diversity(images: Float[Tensor, "n 3 h w"], distance: PairDistance) -> float:
    """DIV: the mean distance over all pairs of pictures of one subject and one prompt; LPIPS by definition.

    Raises:
        DataError: there are fewer than two pictures.
    """
    if len(images) < 2:
        raise DataError(f"diversity: got {len(images)} picture, expected two or more of one prompt")
    one, two = torch.triu_indices(len(images), len(images), offset=1)
    return float(distance(images[one], images[two]).mean())


class Copies(NamedTuple):
    """Of each generated picture: how alike the nearest input is, how alike their backgrounds are, and the verdict.

    `background` is NaN where no background is left to compare.
    """

    similarity: Float[Tensor, "n"]
    background: Float[Tensor, "n"]
    copied: Bool[Tensor, "n"]


def detect_copies(
    generated: Float[Tensor, "n d"],
    inputs: Float[Tensor, "k d"],
    *,
    threshold: float,
    backgrounds: Float[Tensor, "n k"] | None = None,
    background_threshold: float = 0.9,
) -> Copies:
    """Which pictures are suspiciously like an input.

    A picture is a copy where its whole is more alike than `threshold` (`copy_threshold` finds one), or where its
    background correlates with an input's by more than `background_threshold`: a prompt for another scene that comes out
    in front of the input's own wall. `backgrounds` are `background_correlation`'s, for every pair.
    """
    similarity = (F.normalize(generated, dim=-1) @ F.normalize(inputs, dim=-1).T).amax(dim=1)
    copied = similarity > threshold
    if backgrounds is None:
        return Copies(similarity, torch.full_like(similarity, torch.nan), copied)
    nearest = backgrounds.nan_to_num(-torch.inf).amax(dim=1)
    background = torch.where(nearest.isinf(), torch.nan, nearest)
    return Copies(similarity, background, copied | (nearest > background_threshold))


def copy_threshold(features: Float[Tensor, "n d"], others: Float[Tensor, "n d"], quantile: float = 0.99) -> float:
    """What so large a share of pairs of *different* real pictures of one subject each stays below."""
    return float(F.cosine_similarity(features, others, dim=-1).quantile(quantile))


def background_correlation(
    generated: Float[Tensor, "n 3 h w"],
    generated_masks: Float[Tensor, "n 1 h w"],
    inputs: Float[Tensor, "k 3 h w"],
    input_masks: Float[Tensor, "k 1 h w"],
    *,
    least_share: float = 0.05,
    plain: float = 0.02,
) -> Float[Tensor, "n k"]:
    """Pearson's correlation of the pixels that are background (mask below a half) in both pictures, over all colours.

    NaN where that is less than `least_share` of the picture, or where a background is of one colour (a deviation below
    `plain`, of pixels in [-1, 1]), which any prompt may ask for.
    """
    ground = ((generated_masks < 0.5)[:, None] & (input_masks < 0.5)[None]).float()  # n k 1 h w
    count = ground.sum(dim=(2, 3, 4), keepdim=True) * 3
    one, two = generated[:, None], inputs[None]
    one = (one - (one * ground).sum(dim=(2, 3, 4), keepdim=True) / count.clamp(min=1)) * ground
    two = (two - (two * ground).sum(dim=(2, 3, 4), keepdim=True) / count.clamp(min=1)) * ground
    product = (one * two).sum(dim=(2, 3, 4))
    powers = [value.square().sum(dim=(2, 3, 4)) for value in (one, two)]
    count = count[:, :, 0, 0, 0]
    known = count >= 3 * least_share * ground.shape[-1] * ground.shape[-2]
    for power in powers:
        known &= power > count * plain**2
    return torch.where(known, product / (powers[0] * powers[1]).clamp(min=1e-12).sqrt(), torch.nan)
