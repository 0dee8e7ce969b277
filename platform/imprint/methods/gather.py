"""Rows of all ranks in one tensor, for losses that compare a sample with those of other ranks."""

from __future__ import annotations

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor


def gather_rows(rows: Float[Tensor, "b d"]) -> tuple[Float[Tensor, "all d"], int]:
    """The rows of all ranks by rank, and where this rank's begin; all ranks have as many.

    This rank's own rows carry their gradients; those of the others are constants, to which no gradient flows back.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return rows, 0
    gathered = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, rows.detach().contiguous())
    rank = dist.get_rank()
    gathered[rank] = rows
    return torch.cat(gathered), rank * len(rows)
