"""What the loop asks of an engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from imprint.backbone.precision import resolved
from imprint.config.training import EngineSpec
from imprint.training.batches import Batch
from imprint.training.objective import StepOutput


def on_device(spec: EngineSpec, device: torch.device) -> EngineSpec:
    """The engine with the precision that it has on a device: fp32 or bf16, where the spec leaves it open."""
    return spec.model_copy(update={"precision": resolved(spec.precision, device)})


class Engine(Protocol):
    """Backward, step and state of one objective on one worker.

    States are plain named tensors, whole on every rank that asks, so that a checkpoint does not depend on the
    engine that wrote it: `parameters()` gives what trains in fp32, `optimizer_state()` gives
    `<moment>/<parameter>` tensors (`exp_avg`, `exp_avg_sq`, `step`).
    """

    rank: int
    world_size: int

    def forward(self, batch: Batch, generator: torch.Generator) -> StepOutput:
        """Forward pass of one micro-batch."""

    def backward(self, loss: Tensor, accumulation: int) -> None:
        """Accumulate the gradient of loss / accumulation."""

    def step(self, learning_rate: float) -> Tensor:
        """Average gradients over ranks, clip, update, clear; the gradient norm before clipping."""

    def parameters(self) -> dict[str, Tensor]:
        """What trains, whole, in fp32 (a collective call under ZeRO-3)."""

    def optimizer_state(self) -> dict[str, Tensor]:
        """The optimizer's moments, whole (a collective call under ZeRO)."""

    def load(self, parameters: dict[str, Tensor], optimizer_state: dict[str, Tensor]) -> None:
        """Put back what `parameters` and `optimizer_state` gave."""

    def master(self) -> dict[str, Tensor]:
        """The fp32 tensors that this rank steps on: whole parameters, or its part of them under ZeRO."""

    def whole(self, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors laid out as `master()`, whole and by parameter name (a collective call under ZeRO)."""

    def parts(self, whole: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What `whole` gave, laid out as `master()` again."""

    def mean(self, values: Tensor) -> Tensor:
        """Mean over all ranks."""
