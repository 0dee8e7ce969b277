"""The objectives of the training jobs with batches made up on the spot, for measurements of the trainer alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from imprint.backbone import Backbone
from imprint.backbone.published import build_published
from imprint.config.methods import DreamBoothTuneSpec, E4TSpec, TamingSpec
from imprint.features.clip import ClipFeatures
from imprint.methods.dreambooth import Binding, DreamBoothObjective, make_trained
from imprint.methods.e4t.objective import E4TObjective
from imprint.methods.taming import TamingObjective
from imprint.objective import Batch, Objective
from imprint.training.objectives.denoising import DenoisingObjective

JOBS = ("train_backbone", "pretrain_encoder", "finetune_joint", "dreambooth")


def make_objective(job: str, *, small: bool) -> Objective:
    """What the job minimises, on `imprint-tiny`, or on a random backbone a few channels wide and two levels deep."""
    torch.manual_seed(0)
    backbone = _shallow(build_published("sd15", reduced=True)) if small else Backbone.load("imprint-tiny")
    if job == "train_backbone":
        for module in (backbone.unet, *backbone.text_encoders):
            module.requires_grad_(True).train()
        return DenoisingObjective(backbone)
    if job == "dreambooth":
        return _dreambooth(backbone)
    clip = ClipFeatures.load("imprint-tiny-clip")
    if job == "pretrain_encoder":
        return E4TObjective(backbone, E4TSpec(offsets={"vector_width": 8}), clip)
    return TamingObjective(backbone, TamingSpec(object_encoder={"clip": "imprint-tiny-clip"}), clip)


def _dreambooth(backbone: Backbone) -> DreamBoothObjective:
    """All weights of the UNet, the job's default, beside class images of noise."""
    spec = DreamBoothTuneSpec()
    size, generator = backbone.image_size, torch.Generator().manual_seed(0)
    images = torch.randint(256, (8, 3, size, size), generator=generator, dtype=torch.uint8)
    return DreamBoothObjective(make_trained(backbone, spec, seed=0), spec, Binding("a sks person", "person", images))


def _shallow(backbone: Backbone) -> Backbone:
    """Two levels in place of four: stage 3 gathers tensor by tensor, which takes long on a CPU where there are many."""
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(16, 32), layers_per_block=1,
        norm_num_groups=8, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), attention_head_dim=8,
        cross_attention_dim=backbone.unet.config.cross_attention_dim,
    )  # fmt: skip
    return dataclasses.replace(backbone, unet=unet).freeze()


def make_batch(job: str, step: int, first: int, size: int, *, small: bool) -> Batch:
    """Pictures `first` to `first + size` of one step's batch, a pure function of what is asked for."""
    channels, side = (4, 8) if small else (8, 16)
    pixels, others, latents = [], [], []
    for number in range(first, first + size):
        generator = torch.Generator().manual_seed(1000 * step + number)
        pixels.append(torch.rand(3, 64, 64, generator=generator) * 2 - 1)
        others.append(torch.rand(3, 64, 64, generator=generator) * 2 - 1)
        latents.append(torch.randn(channels, side, side, generator=generator))
    batch: dict[str, object] = {
        "pixel_values": torch.stack(pixels), "captions": ["a person on a blue background"] * size,
        "contexts": ["smiling"] * size, "keys": [f"{step}/{first + place}" for place in range(size)],
    }  # fmt: skip
    if job == "train_backbone":
        batch |= {"latent_mean": torch.stack(latents), "latent_std": torch.zeros(size, channels, side, side)}
    if job == "finetune_joint":
        domain: Tensor = torch.tensor([(first + place) % 4 != 3 for place in range(size)])
        batch |= {"object_values": torch.stack(others), "object_masks": torch.ones(size, 1, 64, 64)}
        batch |= {"is_domain": domain}
    return batch  # type: ignore[return-value]


def micro_batches(job: str, rank: int, passes: int, size: int, *, small: bool, step: int = 0) -> Iterator[Batch]:
    """One rank's micro-batches of `size`, `passes` of them a step, from `step` on."""
    while True:
        for number in range(passes):
            yield make_batch(job, step, (rank * passes + number) * size, size, small=small)
        step += 1
