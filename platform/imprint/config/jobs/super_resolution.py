"""The job that trains a small super-resolution model: `train_super_resolution`."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from imprint.config.base import Section
from imprint.config.jobs.tiny import LocalTraining
from imprint.config.training import TimestepLogits


class SuperResolutionModel(Section):
    """Shape of the UNet, whose last level attends to the text, and how much noise its small pictures may have."""

    block_out_channels: tuple[int, ...] = Field((64, 96, 96), min_length=2)
    layers_per_block: int = Field(1, gt=0)
    heads: int = Field(4, gt=0)
    norm_groups: int = Field(16, gt=0)
    max_noise_level: int = Field(
        100, gt=0, le=1000, description="noise levels on the small picture, of DDPM's 1,000: 100 is a variance of 0.1"
    )


class TrainSuperResolution(LocalTraining):
    """The second stage of a small cascade: latents of large pictures, given small ones with noise."""

    job: Literal["train_super_resolution"]
    backbone: str = Field(
        "imprint-tiny", description="the first stage (embedded name, diffusers folder), whose autoencoder and text "
        "encoder are taken over"
    )  # fmt: skip
    model: SuperResolutionModel = SuperResolutionModel()
    crop_size: int = Field(64, gt=0, description="side in pixels of the large picture's crops that a step trains on")
    whole_share: float = Field(
        0.1, ge=0, le=1, description="share of steps on whole pictures, as many as have a batch's pixels"
    )
    decoded_share: float = Field(
        0.5, ge=0, le=1, description="share of small pictures that went through the backbone's autoencoder, as what it "
        "draws does"
    )  # fmt: skip
    caption_dropping: float = Field(0.1, ge=0, le=1, description="share of empty captions, for guidance")
    timestep_logits: TimestepLogits = None

    @model_validator(mode="after")
    def _crops_of_whole_latents(self) -> Self:
        step = 2 ** len(self.model.block_out_channels)
        if self.crop_size % (2 * step):
            raise ValueError(f"crop_size={self.crop_size} must be a multiple of {2 * step} for this model")
        return self
