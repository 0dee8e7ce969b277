"""Bytes that one rank holds for parameters, gradients and the optimizer, under each engine.

P parameters train, n ranks. AdamW has two moments in fp32. Source: ZeRO, arXiv:1910.02054, section 3 and Figure 1, with
what DeepSpeed 0.19 and this project's engines hold beside that (tests/training/test_engine_matrix.py measures it).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from imprint.config.training import EngineSpec

FP32, BF16 = 4, 2


@dataclass(frozen=True)
class StateBytes:
    """On the device: parameters, gradients, the optimizer (master weights and moments); and what was moved off it."""

    parameters: float
    gradients: float
    optimizer: float
    host: float = 0.0

    @property
    def all(self) -> float:
        """Wherever it is."""
        return self.device + self.host

    @property
    def device(self) -> float:
        return self.parameters + self.gradients + self.optimizer


def state_bytes(trained: int, engine: EngineSpec, workers: int) -> StateBytes:
    """What one of `workers` ranks holds of `trained` parameters between backward and step."""
    if engine.name == "torch" or (engine.zero_stage == 0 and engine.precision == "fp32"):
        if engine.weights == "bf16":  # fp32 copies to step on, with fp32 gradients
            return StateBytes(BF16 * trained, FP32 * trained, 3 * FP32 * trained)
        return StateBytes(FP32 * trained, FP32 * trained, 2 * FP32 * trained)
    width = BF16 if engine.precision == "bf16" else FP32
    share = trained / workers
    # DeepSpeed steps on an fp32 copy of its own part, also where the parameters are fp32 themselves.
    optimizer = 3 * FP32 * (trained if engine.zero_stage == 0 else share)
    parameters = width * (share if engine.zero_stage == 3 else trained)
    gradients = width * (share if engine.zero_stage >= 2 else trained)
    host = 0.0
    if engine.offload != "none":
        host, optimizer = optimizer, 0.0
    if engine.offload == "all":
        host, parameters = host + parameters, 0.0
    return StateBytes(parameters, gradients, optimizer, host)


def checkpoint_bytes(trained: int, *, ema: bool) -> int:
    """Parameters, two moments and the average, all in fp32."""
    return (4 if ema else 3) * FP32 * trained


def live_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the distinct storages behind tensors."""
    storages = {}
    for tensor in tensors:
        if tensor.device.type != "meta":
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def module_bytes(modules: Iterable[torch.nn.Module]) -> int:
    """Bytes of the parameters and buffers of modules."""
    return sum(t.numel() * t.element_size() for m in modules for t in (*m.parameters(), *m.buffers()))
