"""Exponential moving average of the trained parameters."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from imprint.config.training import EmaSpec


class Ema:
    """Shadow copies in fp32 of what this rank steps on (`Engine.master`)."""

    def __init__(self, spec: EmaSpec, parameters: Mapping[str, Tensor]) -> None:
        self.spec = spec
        self.shadow = {name: p.detach().float().clone() for name, p in parameters.items()}

    def decay(self, step: int) -> float:
        """Short runs need a short memory: the first steps must not linger."""
        return min(self.spec.decay, (1 + step) / (10 + step))

    @torch.no_grad()
    def update(self, parameters: Mapping[str, Tensor], step: int) -> None:
        """shadow <- decay * shadow + (1 - decay) * parameter, after `step` finished steps."""
        weight = 1 - self.decay(step)
        for name, shadow in self.shadow.items():
            shadow.lerp_(parameters[name].detach().to(shadow.device, torch.float32), weight)
