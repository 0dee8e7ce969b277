"""Train a CLIP: pictures and captions of one sample close together, all others apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imprint.objective import Batch, Objective, StepOutput


class ContrastiveObjective(Objective):
    """Symmetric cross-entropy over cosine similarities (CLIP, arXiv:2103.00020, Figure 3).

    Captions that stand twice in a batch count as matches of each other: with short captions that is common, and
    pushing equal texts apart would be noise.
    """

    def __init__(self, clip: nn.Module, tokenize: Callable[[Sequence[str]], Tensor]) -> None:
        super().__init__()
        self.clip = clip
        self.tokenize = tokenize

    def forward(self, batch: Batch, generator: torch.Generator) -> StepOutput:
        tokens = self.tokenize(batch["captions"])
        images = self.clip.encode_image(batch["pixel_values"], normalize=True).float()
        texts = self.clip.encode_text(tokens, normalize=True).float()
        logits = self.clip.logit_scale.exp().clamp(max=100) * images @ texts.T
        same = (tokens[:, None] == tokens[None, :]).all(-1).float()
        target = same / same.sum(-1, keepdim=True)
        loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        found = same.gather(1, logits.detach().argmax(1, keepdim=True)).mean()
        return StepOutput(loss, {"accuracy": found})
