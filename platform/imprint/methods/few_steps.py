"""Few-step tuning on the pictures of one subject: what all methods do alike around their own loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from imprint.backbone import Backbone
from imprint.backbone.precision import computing
from imprint.config.methods import FewStepSpec
from imprint.errors import ConfigError, TrainingError
from imprint.methods.augment import centre_square
from imprint.methods.base import Pictures, TuneCallback
from imprint.methods.prompts import check_templates


def check_tuning(pictures: Pictures, spec: FewStepSpec) -> None:
    """Check what can be known before anything is computed.

    Raises:
        ConfigError: a template has no placeholder, there are no pictures, or masks or contexts do not fit them.
    """
    check_templates(spec.templates)
    count = len(pictures.images)
    for name, values in (("masks", pictures.masks), ("contexts", pictures.contexts)):
        if values is not None and len(values) != count:
            raise ConfigError(f"tuning: got {len(values)} {name} for {count} pictures, expected one for each")
    if count == 0:
        raise ConfigError("tuning: got no pictures, expected at least one")


def require_class_noun(class_noun: str | None, method: str) -> str:
    """The class noun of a method that has no encoder to know its domain.

    Raises:
        ConfigError: there is none.
    """
    if not class_noun or not class_noun.strip():
        raise ConfigError(f"--class-noun: {method} needs to know what the subject is, such as dog; got none")
    return class_noun.strip()


def prepared(backbone: Backbone, pictures: Pictures) -> Pictures:
    """Squares on the device, no larger than they need be: crops come from twice the model's size at most."""
    size = min(2 * backbone.image_size, *pictures.images.shape[-2:])
    size = max(size, backbone.image_size)
    images = centre_square(pictures.images.to(backbone.device, torch.float32), size)
    masks = None if pictures.masks is None else centre_square(pictures.masks.to(images), size)
    return Pictures(images, masks, pictures.contexts)


def adamw(
    groups: Iterable[tuple[Sequence[Tensor], float]], *, weight_decay: float = 0.0
) -> torch.optim.Optimizer | None:
    """AdamW over (parameters, learning rate); a rate of 0 leaves its group as it is. None where nothing trains."""
    chosen = []
    for parameters, rate in groups:
        for parameter in parameters:
            parameter.requires_grad_(rate > 0)
        if parameters and rate > 0:
            chosen.append({"params": list(parameters), "lr": rate})
    return torch.optim.AdamW(chosen, weight_decay=weight_decay, fused=True) if chosen else None


def run_steps(
    loss: Callable[[torch.Generator], Float[Tensor, ""]],
    optimizer: torch.optim.Optimizer | None,
    spec: FewStepSpec,
    *,
    seed: int,
    device: torch.device,
    callback: TuneCallback | None = None,
) -> None:
    """`spec.steps` optimizer steps on `loss`, whose randomness at each step is a function of (seed, step).

    Raises:
        TrainingError: the loss is not finite.
    """
    for step in range(spec.steps):
        generator = torch.Generator(device).manual_seed(seed * 1_000_003 + step)
        with computing(spec.precision, device):
            value = loss(generator)
        if not math.isfinite(number := value.item()):
            raise TrainingError(
                f"tuning: the loss is {number} at step {step + 1}; lower the learning rate, or tune in fp32"
            )
        if optimizer is not None:
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            optimizer.step()
        if callback is not None:
            callback(step + 1, number)
