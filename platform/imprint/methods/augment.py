"""Random views of a few pictures: what makes a batch out of one picture."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


def random_views(
    images: Float[Tensor, "n c h w"],
    count: int,
    size: int,
    *,
    crop_scale: float,
    flip: bool,
    generator: torch.Generator,
    order: Int[Tensor, "count"] | None = None,
) -> Float[Tensor, "count c size size"]:
    """`count` square crops, each `crop_scale` to 1 of the side and anywhere; `order` says of which pictures.

    By default they are spread evenly. Every crop is drawn on its own, and with `flip` half of them are mirrored. Masks
    may ride along as channels.
    """
    height, width = images.shape[-2:]
    draws = torch.rand(count, 4, generator=generator, device=generator.device).to(images.device)
    side = crop_scale + (1 - crop_scale) * draws[:, 0]
    # In the coordinates of affine_grid the picture spans -1 .. 1; a square crop of the shorter side fits within.
    half_x, half_y = side * min(height, width) / width, side * min(height, width) / height
    centre_x, centre_y = (2 * draws[:, 1] - 1) * (1 - half_x), (2 * draws[:, 2] - 1) * (1 - half_y)
    mirror = torch.where(draws[:, 3] < 0.5, -1.0, 1.0) if flip else torch.ones_like(side)
    zero = torch.zeros_like(side)
    theta = torch.stack([half_x * mirror, zero, centre_x, zero, half_y, centre_y], dim=1).view(count, 2, 3)
    order = spread_evenly(len(images), count, generator) if order is None else order
    chosen = images[order.to(images.device)]
    grid = F.affine_grid(theta, [count, images.shape[1], size, size], align_corners=False)
    return F.grid_sample(chosen, grid, mode="bilinear", padding_mode="border", align_corners=False)


def spread_evenly(pictures: int, count: int, generator: torch.Generator) -> Int[Tensor, "count"]:
    """Which picture each of `count` views shows: all as often, but for one, in random order."""
    order = torch.randperm(pictures, generator=generator, device=generator.device)
    return order.repeat(-(-count // pictures))[:count]


def centre_square(images: Float[Tensor, "n c h w"], size: int) -> Float[Tensor, "n c size size"]:
    """The middle of each picture, resized with antialiasing."""
    height, width = images.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    images = images[..., top : top + side, left : left + side]
    if side == size:
        return images
    return F.interpolate(images, (size, size), mode="bilinear", antialias=True, align_corners=False)
