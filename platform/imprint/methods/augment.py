"""Random views of a few pictures: what makes a batch out of one picture."""

from __future__ import annotations

import math

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


def placed_views(
    images: Float[Tensor, "n c h w"],
    *,
    smallest: float,
    degrees: float,
    generator: torch.Generator,
    padding: str = "reflection",
) -> Float[Tensor, "n c h w"]:
    """Each picture resized to `smallest` to 1 of its size, turned by up to `degrees` and moved within its frame.

    What is beyond the picture is its reflection, or with `padding="zeros"` zero. Masks may ride along as channels.
    """
    draws = torch.rand(len(images), 4, generator=generator, device=generator.device).to(images.device)
    size = smallest + (1 - smallest) * draws[:, 0]
    angle = (2 * draws[:, 1] - 1) * math.radians(degrees)
    shift = (2 * draws[:, 2:] - 1) * (1 - size)[:, None]
    # theta maps the frame to the picture: turned back by `angle`, and wider than the picture by 1 / size. Turning is in
    # pixels, and the coordinates of affine_grid are not where a picture is not square.
    aspect = images.shape[-1] / images.shape[-2]
    cosine, sine = angle.cos() / size, angle.sin() / size
    rows = torch.stack([torch.stack([cosine, sine / aspect], 1), torch.stack([-sine * aspect, cosine], 1)], 1)
    offset = -(rows @ shift[:, :, None])
    theta = torch.cat([rows, offset], dim=2).to(images.dtype)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode=padding, align_corners=False)


def smooth_colours(count: int, size: int, generator: torch.Generator) -> Float[Tensor, "count 3 size size"]:
    """Backgrounds of four colours, one at each corner, that run into each other, in [-1, 1]."""
    corners = torch.rand(count, 3, 2, 2, generator=generator, device=generator.device) * 2 - 1
    return F.interpolate(corners, (size, size), mode="bilinear", align_corners=True)


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
