"""What a training job minimises: a batch in, a loss out. Methods write objectives, training runs them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NotRequired, TypedDict

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class Batch(TypedDict):
    """One micro-batch.

    `pixel_values` are in [-1, 1] and `masks` (1 on the subject) in [0, 1]; `contexts` are the phrases of a
    caption that do not belong to the subject's identity, `class_nouns` what the subjects are; `time_ids` are SDXL's
    sizes and crop of each picture. What was computed before: mean and log-variance of the scaled latents, the CLIP
    [CLS] tokens of a picture, and a caption's text embeddings.
    """

    pixel_values: Float[Tensor, "b 3 h w"]
    masks: NotRequired[Float[Tensor, "b 1 h w"]]
    captions: list[str]
    contexts: NotRequired[list[str]]
    class_nouns: NotRequired[list[str]]
    keys: list[str]
    time_ids: NotRequired[Int[Tensor, "b 6"]]
    latent_mean: NotRequired[Float[Tensor, "b c h2 w2"]]
    latent_logvar: NotRequired[Float[Tensor, "b c h2 w2"]]
    clip_layers: NotRequired[Float[Tensor, "b layers width"]]
    text_hidden: NotRequired[Float[Tensor, "b n d"]]
    text_pooled: NotRequired[Float[Tensor, "b p"]]


@dataclass(frozen=True)
class StepOutput:
    """`loss` is a scalar; `metrics` are detached scalars to be averaged and logged.

    `by_timestep`, detached: where in the schedule each picture's timestep lies, in [0, 1), and its squared error.
    """

    loss: Float[Tensor, ""]
    metrics: dict[str, Tensor] = field(default_factory=dict)
    by_timestep: tuple[Float[Tensor, "b"], Float[Tensor, "b"]] | None = None


class Objective(nn.Module):
    """Base of all objectives.

    Only what trains is registered as a submodule or parameter, so that an engine wraps, shards and saves just
    that; frozen parts are held outside (in a tuple, say). All randomness comes from `generator`.
    """

    def forward(self, batch: Batch, generator: torch.Generator) -> StepOutput:
        """The loss of one micro-batch."""
        raise TypeError(f"{type(self).__name__} does not define forward")

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups for the optimizer; `lr_scale` multiplies the scheduled learning rate of a group."""
        return [{"params": [p for p in self.parameters() if p.requires_grad], "lr_scale": 1.0}]
