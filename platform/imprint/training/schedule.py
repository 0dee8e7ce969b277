"""The learning rate as a pure function of the step."""

from __future__ import annotations

import math

from imprint.config.training import OptimizerSpec


def learning_rate(spec: OptimizerSpec, step: int, total_steps: int) -> float:
    """The rate for the step that comes after `step` finished ones: linear warm-up, then the named schedule."""
    if step < spec.warmup_steps:
        return spec.learning_rate * (step + 1) / spec.warmup_steps
    if spec.schedule == "constant":
        return spec.learning_rate
    progress = (step - spec.warmup_steps) / max(1, total_steps - spec.warmup_steps)
    progress = min(1.0, progress)
    shape = 0.5 * (1 + math.cos(math.pi * progress)) if spec.schedule == "cosine" else 1 - progress
    return spec.learning_rate * (spec.final_ratio + (1 - spec.final_ratio) * shape)
