"""The precision that a network computes in, apart from the one its weights are kept in."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch

ComputePrecision = Literal["fp32", "bf16"]


def computing(precision: ComputePrecision, device: torch.device) -> AbstractContextManager:
    """A context in which products run in `precision`; weights, sums and losses stay in fp32."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()
