"""DreamBooth on one subject as an objective: Eq. 2 of a batch of its pictures beside as many class images.

Source: DreamBooth, arXiv:2208.12242, sections 4.1 and 4.2. Legend: c, the prompt with the subject's phrase; c_pr, that
of the class; lambda, the weight of the prior.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from imprint.backbone import Backbone
from imprint.config.methods import DreamBoothTuneSpec
from imprint.methods.base import Pictures
from imprint.methods.dreambooth.loss import dreambooth_loss
from imprint.methods.dreambooth.prior import class_prompt, prior_batch
from imprint.methods.few_steps import prepared
from imprint.methods.phrases import spell
from imprint.methods.subject_batch import NoisyBatch, encoded_crops, noisy_crops
from imprint.methods.trained import Trained, train_low_rank, train_weights
from imprint.objective import Batch, Objective, StepOutput


@dataclass(frozen=True, eq=False)
class Binding:
    """What is bound: the subject's phrase to its class; and the class images, None without prior preservation."""

    phrase: str
    class_noun: str
    class_images: UInt8[Tensor, "n 3 h w"] | None = None


class DreamBoothObjective(Objective):
    """Eq. 2 on the pictures of one subject; Eq. 1 without class images.

    Every picture of a batch is shown as one random crop, with noise, a timestep and a prompt of its own. What trains is
    that of a shell (`make_trained`), the UNet, text encoders or adapters; captions of the batch are not used.
    """

    def __init__(self, trained: Trained, spec: DreamBoothTuneSpec, binding: Binding) -> None:
        super().__init__()
        self.spec, self.binding = spec, binding
        trained.register(self)
        # In a tuple, so that what is frozen is not registered and no engine shards, trains or saves it.
        self._held = (trained,)

    @property
    def backbone(self) -> Backbone:
        """The shell in which training happens."""
        return self._held[0].backbone

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The UNet and the text encoders at the ratio of `spec.learning_rates`; adapters alone in one group."""
        return self._held[0].parameter_groups()

    def forward(self, batch: Batch, generator: torch.Generator) -> StepOutput:
        """The loss of one micro-batch; metrics are the two terms of Eq. 2, the prior's without lambda."""
        model, dtype = self.backbone, torch.float32  # noise and target too, also where an engine keeps the UNet in bf16
        pictures = Pictures(batch["pixel_values"], batch.get("masks"), batch.get("contexts"))
        pictures = prepared(model, pictures)
        crops = encoded_crops(model, self.spec, pictures, torch.arange(len(pictures.images)), generator, dtype)
        subject = noisy_crops(model, self.spec, crops, pictures.contexts, generator)
        return dreambooth_step(model, self.spec, self.binding, subject, generator, dtype)


def make_trained(backbone: Backbone, spec: DreamBoothTuneSpec, seed: int) -> Trained:
    """The shell to train in: copies of the weights in fp32, or adapters; the same for the same seed."""
    if spec.train == "lora":
        return train_low_rank(backbone, spec.lora, text_encoders=spec.text_encoder, seed=seed)
    rates = spec.learning_rates
    return train_weights(backbone, unet=rates.unet, text_encoders=rates.text_encoder if spec.text_encoder else 0.0)


def dreambooth_step(
    model: Backbone,
    spec: DreamBoothTuneSpec,
    binding: Binding,
    subject: NoisyBatch,
    generator: torch.Generator,
    dtype: torch.dtype | None = None,
) -> StepOutput:
    """Eq. 2 of a batch of the subject, whose prompts hold `<concept>`, and of as many class images.

    Metrics are both terms without lambda; errors by timestep are the subject's.
    """
    xt, timesteps, prompts = subject.xt, subject.timesteps, spell(subject.prompts, binding.phrase)
    prior, count = None, len(subject.xt)
    if binding.class_images is not None:
        prompt = class_prompt(spec.prior, binding.class_noun)
        prior = prior_batch(model, spec, binding.class_images, prompt, count, generator, dtype)
        xt, timesteps = torch.cat([xt, prior.xt]), torch.cat([timesteps, prior.timesteps])
        prompts = [*prompts, *prior.prompts]
    output = model.denoise(xt, timesteps, model.encode_text(prompts))
    schedule, gamma = model.schedule, spec.min_snr_gamma
    loss = dreambooth_loss(output, subject, prior, schedule, prior_weight=spec.prior.weight, min_snr_gamma=gamma)
    with torch.no_grad():
        metrics = {"loss_subject": subject.loss(output[:count], schedule, gamma)}
        if prior is not None:
            metrics["loss_prior"] = prior.loss(output[count:], schedule, gamma)
    return StepOutput(loss, metrics, subject.by_timestep(output[:count], schedule))
