"""Draw with a learned word: the frozen model, and new embeddings where the placeholders stand."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from imprint.backbone import Backbone
from imprint.config.methods import SampleSpec
from imprint.methods.base import Learned
from imprint.methods.prompts import require_placeholder
from imprint.methods.words import replacements
from imprint.sampling.denoiser import Conditioner, constant
from imprint.sampling.draw import draw_batches


def sample(
    backbone: Backbone,
    learned: Learned,
    prompts: Sequence[str],
    spec: SampleSpec,
    *,
    seeds: Sequence[int] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Float[Tensor, "n 3 h w"]:
    """Pictures in [-1, 1] of a concept, one a prompt; `<concept>` in a prompt is where its word goes.

    Raises:
        ConfigError: a prompt has no placeholder.
        BackboneError: the word does not fit the text encoders.
    """
    for prompt in prompts:
        require_placeholder(prompt, "prompt", learned.placeholders)
    own = replacements(backbone, learned)

    def conditioner(rows: slice) -> Conditioner:
        with torch.no_grad():
            return constant(backbone.encode_text(prompts[rows], own))

    return draw_batches(backbone, conditioner, seeds or range(len(prompts)), spec, progress=progress)
