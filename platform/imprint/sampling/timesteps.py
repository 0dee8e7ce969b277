"""Which of the training timesteps a sampler visits."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from jaxtyping import Int
from torch import Tensor

from imprint.errors import ConfigError

Spacing = Literal["trailing", "leading"]
SPACINGS: tuple[Spacing, ...] = get_args(Spacing)


def spaced_timesteps(
    num_timesteps: int, steps: int, spacing: Spacing = "trailing", offset: int = 1
) -> Int[Tensor, "steps"]:
    """`steps` timesteps out of 0 .. num_timesteps - 1, from the noisiest to the cleanest.

    "trailing" ends the first step at the last timestep, so that sampling starts where the noise is purest; "leading"
    is what Stable Diffusion 1 and 2 were released with (there with `offset` 1, ignored by "trailing").
    Source: "Common diffusion noise schedules are flawed", Table 2, arXiv:2305.08891.

    Raises:
        ConfigError: more steps than timesteps, or none.
    """
    if not 1 <= steps <= num_timesteps:
        raise ConfigError(f"sampling: got {steps} steps, expected 1 to {num_timesteps}, the timesteps of the backbone")
    if spacing == "trailing":
        ratio = num_timesteps / steps
        positions = torch.arange(num_timesteps, 0, -ratio, dtype=torch.float64)[:steps]
        return (positions.round() - 1).long()
    if spacing == "leading":
        ratio = num_timesteps // steps
        return (torch.arange(steps).flip(0) * ratio + offset).clamp(max=num_timesteps - 1)
    raise ConfigError(f"sampling: got the timestep spacing {spacing!r}, expected one of {', '.join(SPACINGS)}")
