"""A fresh batch of one subject: different crops with noise of different strengths, and a prompt for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from imprint.backbone import Backbone, NoiseSchedule
from imprint.config.methods import FewStepSpec
from imprint.methods.augment import random_views, spread_evenly
from imprint.methods.diffusion_loss import diffusion_loss, min_snr_weights, random_noise, stratified_timesteps
from imprint.methods.prompts import training_prompts


@dataclass(frozen=True, eq=False)
class NoisyBatch:
    """x_t at its timesteps, what the network should put out there, the prompts, and masks where the loss has them."""

    xt: Float[Tensor, "b c h w"]
    timesteps: Int[Tensor, "b"]
    target: Float[Tensor, "b c h w"]
    prompts: Sequence[str]
    masks: Float[Tensor, "b 1 h2 w2"] | None = None

    def loss(
        self, output: Float[Tensor, "b c h w"], schedule: NoiseSchedule, min_snr_gamma: float | None = None
    ) -> Float[Tensor, ""]:
        """The denoising loss of a raw network output, weighted by this batch's own timesteps."""
        weights = min_snr_weights(schedule, self.timesteps, min_snr_gamma)
        return diffusion_loss(output, self.target, self.masks, weights)


def noisy_batch(
    backbone: Backbone,
    views: Float[Tensor, "b 3 h w"],
    generator: torch.Generator,
    prompts: Sequence[str] = (),
    masks: Float[Tensor, "b 1 h w"] | None = None,
    timestep_logits: tuple[float, float] | None = None,
    x0: Float[Tensor, "b c h w"] | None = None,
) -> NoisyBatch:
    """Noise pictures in [-1, 1], or their latents where given, at stratified timesteps, uniform or logit-normal."""
    x0 = backbone.encode_images(views, generator) if x0 is None else x0
    noise = random_noise(x0, generator)
    timesteps = stratified_timesteps(len(x0), backbone.schedule.num_timesteps, generator, timestep_logits).to(x0.device)
    xt = backbone.schedule.add_noise(x0, noise, timesteps)
    return NoisyBatch(xt, timesteps, backbone.schedule.target(x0, noise, timesteps), prompts, masks)


def subject_batch(
    backbone: Backbone,
    spec: FewStepSpec,
    images: Float[Tensor, "n 3 s s"],
    masks: Float[Tensor, "n 1 s s"] | None,
    contexts: Sequence[str] | None,
    generator: torch.Generator,
) -> NoisyBatch:
    """`spec.batch_size` crops, no two alike, with noise of all strengths; prompts hold `<concept>`."""
    count = spec.batch_size
    with_masks = images if masks is None else torch.cat([images, masks], dim=1)
    order = spread_evenly(len(images), count, generator)
    views = random_views(
        with_masks,
        count,
        backbone.image_size,
        crop_scale=spec.crop_scale,
        flip=spec.flip,
        generator=generator,
        order=order,
    )
    noisy = noisy_batch(backbone, views[:, :3], generator, timestep_logits=spec.timestep_logits)
    prompts = training_prompts(
        spec.templates,
        [contexts[picture] for picture in order.tolist()] if contexts else [""] * count,
        context_probability=spec.context_probability,
        text_dropping=0.0,
        generator=generator,
    )
    loss_masks = views[:, 3:] if masks is not None and spec.mask_loss else None
    return NoisyBatch(noisy.xt, noisy.timesteps, noisy.target, prompts, loss_masks)
