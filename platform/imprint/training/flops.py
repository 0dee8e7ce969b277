"""FLOPs of an objective, counted by torch as its operations pass, on real tensors or on shapes alone.

A multiply and an add count as two. Products, convolutions and attention are counted and nothing else, forward and
backward; what activation checkpointing computes again is no part of it. MFU is these FLOPs over what the device could
have done in the same time, dense, in the precision of the products (PaLM, arXiv:2204.02311, Appendix B).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from imprint.backbone.precision import ComputePrecision, computing
from imprint.objective import Batch, Objective
from imprint.training.apply import without_checkpointing

_FEW = 2


@dataclass(frozen=True)
class StepCost:
    """What one picture costs: FLOPs forward and backward, and elements that are kept for the backward pass."""

    forward: float
    backward: float
    kept_elements: float

    @property
    def flops(self) -> float:
        return self.forward + self.backward


def count_step(objective: Objective, batch: Batch) -> StepCost:
    """Run one micro-batch forward and backward and count; gradients and buffers are as before afterwards.

    Works on the device "meta", where nothing is computed and nothing stored.
    """
    pictures = len(batch["keys"])
    buffers = {name: value.clone() for name, value in objective.named_buffers()}  # a batch norm's, which it changes
    own = {p.untyped_storage()._cdata for p in objective.parameters()}
    kept: dict[int, int] = {}

    def keep(value: Tensor) -> Tensor:
        storage = value.untyped_storage()._cdata
        if storage not in own:
            kept[storage] = max(kept.get(storage, 0), value.numel())
        return value

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value)
    with FlopCounterMode(display=False) as forward, hooks, _FusedAttention(), without_checkpointing():
        output = objective(batch, torch.Generator().manual_seed(0))
    with FlopCounterMode(display=False, custom_mapping=_BACKWARD) as backward:
        output.loss.backward()
    objective.zero_grad(set_to_none=True)
    for name, value in objective.named_buffers():
        value.copy_(buffers[name])
    return StepCost(
        forward.get_total_flops() / pictures, backward.get_total_flops() / pictures, sum(kept.values()) / pictures
    )


def count_first(
    objective: Objective, batches: Iterator[Batch], precision: ComputePrecision, device: torch.device
) -> tuple[float | None, Iterator[Batch]]:
    """FLOPs a picture of a run, from two pictures of its first batch, and the batches with that one in place."""
    first = next(batches, None)
    if first is None:
        return None, batches
    few: Any = {name: value[:_FEW] for name, value in first.items()}  # type: ignore[index]
    with computing(precision, device), torch.compiler.set_stance("force_eager"):
        cost = count_step(objective, few)
    return cost.flops, chain([first], batches)


def _attention_backward(gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """Four products, where forward has two."""
    return 2 * sdpa_flop_count(query, key, value)


_BACKWARD = {  # torch counts the scores a second time, since fused kernels compute them again
    getattr(torch.ops.aten, f"_scaled_dot_product_{kind}_backward"): _attention_backward
    for kind in ("flash_attention", "flash_attention_for_cpu", "efficient_attention", "cudnn_attention")
}


class _FusedAttention(TorchFunctionMode):
    """On shapes alone torch takes attention apart and keeps its probabilities, which no fused kernel does."""

    def __torch_function__(
        self, function: Callable, types: Sequence[type], args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if function is F.scaled_dot_product_attention and args[:3] and all(x.is_meta for x in args[:3]):
            return _Attention.apply(*args[:3])
        return function(*args, **(kwargs or {}))


class _Attention(torch.autograd.Function):
    """The products of attention: two forward, four backward (FlashAttention, arXiv:2205.14135, without its fifth, which
    is computed again); kept are its inputs and its output."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = (query @ key.transpose(-1, -2)) @ value
        ctx.save_for_backward(query, key, value, output)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value, _ = ctx.saved_tensors
        probabilities = query.new_empty(*query.shape[:-1], key.shape[-2])
        change = gradient @ value.transpose(-1, -2)
        return change @ key, change.transpose(-1, -2) @ query, probabilities.transpose(-1, -2) @ gradient
