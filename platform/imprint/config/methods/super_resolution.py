"""Super-resolution: tuning the second stage of a cascade on a subject, and drawing with it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from imprint.config.base import Section
from imprint.config.training import Precision

NOISE_AUGMENTATION = 1e-5
"""DreamBooth's, section 4.3; the model that it starts from was trained with 1e-3."""


class SuperResolutionSampler(Section):
    """How small pictures are drawn large, where the concept was tuned with a super-resolution model or one is named."""

    enabled: bool = Field(True, description="Off: pictures of the backbone's own size")
    model: str | None = Field(
        None, description="Embedded name, diffusers folder or hub id; by default the one that the concept was tuned on"
    )
    tuned: bool = Field(True, description="Off: without what was tuned on the subject, the paper's ablation")
    noise_augmentation: float | None = Field(
        None, ge=0, lt=1, description="Variance of the noise on the small picture; by default as in tuning, else 1e-5"
    )
    steps: int = Field(20, ge=1)
    guidance_scale: float = Field(1.0, ge=0, description="1 runs the conditional branch alone")
    batch_size: int = Field(4, ge=1, description="Pictures in one forward")
    precision: Precision = "fp32"


class SuperResolutionTuneSpec(Section):
    """Tuning of the super-resolution model on pairs of the subject's own pictures; DreamBooth section 4.3."""

    model: str = Field(min_length=1, description="Embedded name (imprint-tiny-x4), diffusers folder or hub id")
    enabled: bool = Field(
        True, description="Off: the model draws as it came, the paper's ablation without super-resolution tuning"
    )
    noise_augmentation: float = Field(
        NOISE_AUGMENTATION, ge=0, lt=1, description="Variance of the noise on the small pictures, which have 1; the "
        "paper's 1e-5, or 1e-3 for its ablation"
    )  # fmt: skip
    steps: int = Field(200, ge=1)
    batch_size: int = Field(8, ge=1)
    crop_size: int | None = Field(
        None, ge=8, description="Side of the crops in pixels of the large picture; by default what the model was "
        "trained on, or the picture if that is smaller"
    )  # fmt: skip
    learning_rate: float = Field(1e-5, gt=0)
    storage: Literal["bf16", "fp16", "fp32"] = Field("bf16", description="How the changes of the weights are kept")
    precision: Precision = Field("fp32", description="What the networks compute in; weights stay fp32")
