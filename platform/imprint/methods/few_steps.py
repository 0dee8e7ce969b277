"""Few-step tuning on the pictures of one subject: what all methods do alike around their own loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from imprint.backbone import Backbone
from imprint.backbone.precision import computing
from imprint.config.methods import EarlyStoppingSpec, FewStepSpec
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

    With `spec.early_stopping` they may be fewer.

    Raises:
        TrainingError: the loss is not finite.
    """
    stopper = None if spec.early_stopping is None else EarlyStopper(loss, spec.early_stopping, seed, device)
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
        if stopper is not None:
            with computing(spec.precision, device):
                if stopper.done(step + 1):
                    return


class EarlyStopper:
    """Looks at the loss on held-out randomness, and says when it has stopped falling."""

    def __init__(
        self,
        loss: Callable[[torch.Generator], Float[Tensor, ""]],
        spec: EarlyStoppingSpec,
        seed: int,
        device: torch.device,
    ) -> None:
        self.loss, self.spec, self.seed, self.device = loss, spec, seed, device
        self.best, self.since = math.inf, 0

    def done(self, step: int) -> bool:
        """Asked after each step."""
        if step % self.spec.every:
            return False
        score = self.score()
        if score < self.best * (1 - self.spec.least):
            self.best, self.since = score, 0
        else:
            self.since += 1
        return self.since >= self.spec.patience

    @torch.no_grad()
    def score(self) -> float:
        """The same draws at each look, of seeds that no step has: those of the steps are not negative."""
        generators = (
            torch.Generator(self.device).manual_seed(-1 - self.seed * 1_000_003 - batch)
            for batch in range(self.spec.batches)
        )
        return sum(self.loss(generator).item() for generator in generators) / self.spec.batches
