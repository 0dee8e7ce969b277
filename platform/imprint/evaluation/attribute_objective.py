"""Train the attribute reader: cross-entropy of every head, binary cross-entropy of the mask."""

from __future__ import annotations

from typing import NotRequired

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from imprint.evaluation.attributes import AttributeNet, fit
from imprint.objective import Batch, Objective, StepOutput


class LabelledBatch(Batch):
    """A batch with the class numbers of every head, -1 where unknown."""

    labels: NotRequired[Int[Tensor, "b heads"]]


class AttributeObjective(Objective):
    """Mean cross-entropy over heads, plus `mask_weight` times the mask's."""

    def __init__(self, net: AttributeNet, *, mask_weight: float, blur_share: float) -> None:
        super().__init__()
        self.net = net
        self.mask_weight = mask_weight
        self.blur_share = blur_share

    def forward(self, batch: LabelledBatch, generator: torch.Generator) -> StepOutput:
        images = blur(fit(batch["pixel_values"]), self.blur_share, generator)
        logits, mask = self.net(images.contiguous(memory_format=torch.channels_last))
        losses, right = [], []
        for (_, values), labels in zip(logits.items(), batch["labels"].unbind(1), strict=True):
            known = labels >= 0
            losses.append(F.cross_entropy(values.float()[known], labels[known], reduction="sum") / known.sum().clamp(1))
            right.append((values.argmax(1) == labels)[known].float().mean().nan_to_num(1.0))
        classes = torch.stack(losses).mean()
        masks = F.binary_cross_entropy_with_logits(mask.float(), fit(batch["masks"]))
        metrics = {"loss_classes": classes, "loss_mask": masks, "accuracy": torch.stack(right).mean()}
        return StepOutput(classes + self.mask_weight * masks, {name: value.detach() for name, value in metrics.items()})


def blur(images: Float[Tensor, "b 3 h w"], share: float, generator: torch.Generator) -> Float[Tensor, "b 3 h w"]:
    """Mix `share` of the pictures with their 3 x 3 mean, by a random part: generated pictures are softer than real."""
    draws = torch.rand(len(images), 2, generator=generator, device=generator.device).to(images.device)
    part = torch.where(draws[:, 0] < share, draws[:, 1], 0.0).view(-1, 1, 1, 1)
    return torch.lerp(images, F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1), part)
