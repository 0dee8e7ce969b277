"""Low-rank changes of attention projections that differ from row to row of a batch, as a hypernetwork predicts them.

No weight is formed: the change is added to what the projection puts out. Source: LoRA, arXiv:2106.09685.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from imprint.methods.low_rank import LowRank

PART = "unet."


class BatchedLowRank(NamedTuple):
    """The factors of one projection for each row of a batch, or one row for all; the scale is part of `up`."""

    down: Float[Tensor, "b rank into"]
    up: Float[Tensor, "b out rank"]

    def change(self, inputs: Float[Tensor, "b n into"]) -> Float[Tensor, "b n out"]:
        """What the change adds to the projection of `inputs`."""
        down, up = self.down.to(inputs.dtype), self.up.to(inputs.dtype)
        return (inputs @ down.mT) @ up.mT

    def squared_norm(self) -> Float[Tensor, "b"]:
        """||B A||_F^2 = tr((B^T B)(A A^T)) of each row, without forming B A."""
        down, up = self.down.float(), self.up.float()
        with torch.autocast(down.device.type, enabled=False):
            return ((up.mT @ up) * (down @ down.mT)).sum(dim=(1, 2))


Factors = Mapping[str, BatchedLowRank]
"""By the name of the UNet's parameter, as in `Backbone.attention_projections`."""


def squared_norm(factors: Iterable[BatchedLowRank]) -> Float[Tensor, ""]:
    """||dW||^2 summed over the projections and averaged over the batch."""
    return torch.stack([pair.squared_norm() for pair in factors]).sum(0).mean()


def rows_of(factors: Factors, rows: slice) -> dict[str, BatchedLowRank]:
    """The factors of some rows of a batch."""
    return {name: BatchedLowRank(pair.down[rows], pair.up[rows]) for name, pair in factors.items()}


def as_low_rank(factors: Factors, dtype: torch.dtype) -> dict[str, LowRank]:
    """The factors of a batch of one row as those of a concept, by `<part>.<module>`."""
    return {
        PART + name.removesuffix(".weight"): LowRank(
            pair.down[0].detach().to(dtype).contiguous(), pair.up[0].detach().to(dtype).contiguous()
        )
        for name, pair in factors.items()
    }


def as_batched(factors: Mapping[str, LowRank], device: torch.device) -> dict[str, BatchedLowRank]:
    """The other way round."""
    return {
        name.removeprefix(PART) + ".weight": BatchedLowRank(
            pair.down[None].to(device, torch.float32), pair.up[None].to(device, torch.float32)
        )
        for name, pair in factors.items()
    }
