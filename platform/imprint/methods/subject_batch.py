"""Batches of one subject: different crops with noise of different strengths, and a prompt for each."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from imprint.backbone import Backbone, NoiseSchedule
from imprint.backbone.base import sample_latents
from imprint.backbone.precision import computing
from imprint.config.methods import FewStepSpec
from imprint.methods.augment import random_views, spread_evenly
from imprint.methods.base import Pictures
from imprint.methods.diffusion_loss import (
    diffusion_loss,
    errors_by_timestep,
    min_snr_weights,
    random_noise,
    stratified_timesteps,
)
from imprint.methods.prompts import training_prompts


@dataclass(frozen=True, eq=False)
class NoisyBatch:
    """x_t at its timesteps, what the network should put out there, the prompts; masks where the loss has them, and
    SDXL's sizes and crops where they are known."""

    xt: Float[Tensor, "b c h w"]
    timesteps: Int[Tensor, "b"]
    target: Float[Tensor, "b c h w"]
    prompts: Sequence[str]
    masks: Float[Tensor, "b 1 h2 w2"] | None = None
    time_ids: Int[Tensor, "b 6"] | None = None

    def loss(
        self, output: Float[Tensor, "b c h w"], schedule: NoiseSchedule, min_snr_gamma: float | None = None
    ) -> Float[Tensor, ""]:
        """The denoising loss of a raw network output, weighted by this batch's own timesteps."""
        weights = min_snr_weights(schedule, self.timesteps, min_snr_gamma)
        return diffusion_loss(output, self.target, self.masks, weights)

    def by_timestep(
        self, output: Float[Tensor, "b c h w"], schedule: NoiseSchedule
    ) -> tuple[Float[Tensor, "b"], Float[Tensor, "b"]]:
        """Where in the schedule each picture is, and its mean squared error."""
        return errors_by_timestep(output, self.target, self.timesteps, schedule.num_timesteps)


def noisy_batch(
    backbone: Backbone,
    x0: Float[Tensor, "b c h w"],
    generator: torch.Generator,
    prompts: Sequence[str] = (),
    masks: Float[Tensor, "b 1 h2 w2"] | None = None,
    timestep_logits: tuple[float, float] | None = None,
    offset_noise: float = 0.0,
) -> NoisyBatch:
    """Noise latents at stratified timesteps, uniform or logit-normal."""
    noise = random_noise(x0, generator, offset_noise)
    timesteps = stratified_timesteps(len(x0), backbone.schedule.num_timesteps, generator, timestep_logits).to(x0.device)
    xt = backbone.schedule.add_noise(x0, noise, timesteps)
    return NoisyBatch(xt, timesteps, backbone.schedule.target(x0, noise, timesteps), prompts, masks)


@dataclass(frozen=True, eq=False)
class Crops:
    """Random crops of a subject's pictures: what their latents are drawn from, their masks, and whose each is."""

    mean: Float[Tensor, "n c h w"]
    std: Float[Tensor, "n c h w"]
    masks: Float[Tensor, "n 1 h2 w2"] | None
    pictures: Int[Tensor, "n"]

    def __getitem__(self, rows: Int[Tensor, "b"]) -> Crops:
        here = rows.to(self.mean.device)
        masks = None if self.masks is None else self.masks[here]
        return Crops(self.mean[here], self.std[here], masks, self.pictures[rows.to(self.pictures.device)])


@torch.no_grad()
def encoded_crops(
    backbone: Backbone,
    spec: FewStepSpec,
    pictures: Pictures,
    order: Int[Tensor, "n"],
    generator: torch.Generator,
    dtype: torch.dtype | None = None,
) -> Crops:
    """A random crop, as the spec says, of each picture that `order` names; latents in `dtype`, or the backbone's."""
    images, masks = pictures.images, pictures.masks
    views = random_views(
        images if masks is None else torch.cat([images, masks], dim=1),
        len(order),
        backbone.image_size,
        crop_scale=spec.crop_scale,
        flip=spec.flip,
        generator=generator,
        order=order,
    )
    mean, std = backbone.latent_moments(views[:, :3])
    shown = views[:, 3:] if masks is not None and spec.mask_loss else None
    return Crops(mean.to(dtype or mean.dtype), std.to(dtype or std.dtype), shown, order)


def noisy_crops(
    backbone: Backbone, spec: FewStepSpec, crops: Crops, contexts: Sequence[str] | None, generator: torch.Generator
) -> NoisyBatch:
    """Crops with noise of all strengths and a prompt for each, which holds `<concept>`; `contexts` are by picture."""
    x0 = sample_latents(crops.mean, crops.std, generator)
    noisy = noisy_batch(backbone, x0, generator, masks=crops.masks, timestep_logits=spec.timestep_logits)
    prompts = training_prompts(
        spec.templates,
        [contexts[picture] for picture in crops.pictures.tolist()] if contexts else [""] * len(x0),
        context_probability=spec.context_probability,
        text_dropping=0.0,
        generator=generator,
    )
    return dataclasses.replace(noisy, prompts=prompts)


class SubjectBatches:
    """Batches of one subject: `spec.batch_size` crops, no two alike, with noise of all strengths.

    The crops are new ones at each step, or with `spec.crops` drawn and encoded once, and then shown in turn.
    """

    def __init__(self, backbone: Backbone, spec: FewStepSpec, pictures: Pictures, seed: int = 0) -> None:
        self.backbone = backbone
        self.spec = spec
        self.pictures = pictures
        self._kept: Crops | None = None
        if spec.crops is not None and spec.steps > 0:
            generator = torch.Generator(pictures.images.device).manual_seed(seed)
            with computing(spec.precision, backbone.device):
                self._kept = self._crops(max(spec.crops, spec.batch_size), generator)

    def draw(self, generator: torch.Generator) -> NoisyBatch:
        """A batch whose randomness comes from `generator` alone; its prompts hold `<concept>`."""
        if self._kept is None:
            crops = self._crops(self.spec.batch_size, generator)
        else:
            crops = self._kept[spread_evenly(len(self._kept.mean), self.spec.batch_size, generator)]
        return noisy_crops(self.backbone, self.spec, crops, self.pictures.contexts, generator)

    def _crops(self, count: int, generator: torch.Generator) -> Crops:
        order = spread_evenly(len(self.pictures.images), count, generator)
        return encoded_crops(self.backbone, self.spec, self.pictures, order, generator)
