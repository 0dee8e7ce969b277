"""What all ranks hold in one tensor: rows, for losses that compare a sample with those of other ranks, and sums."""

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


def sum_over_ranks(values: Tensor, device: torch.device) -> Tensor:
    """The sum of `values`, of one shape and dtype on all ranks, where it came from; `device` is this rank's.

    A collective call.
    """
    summed = values.to(device) if dist.get_backend() == "nccl" else values.clone()  # nccl takes tensors of a GPU only
    dist.all_reduce(summed)
    return summed.to(values.device)
