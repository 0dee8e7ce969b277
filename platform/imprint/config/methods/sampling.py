"""How pictures are drawn, whatever the method."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from imprint.config.base import Section


class SampleSpec(Section):
    """How pictures are drawn from a concept."""

    steps: int = Field(30, ge=1)
    guidance_scale: float = Field(5.0, ge=0, description="1 runs the conditional branch alone")
    object_guidance_scale: float | None = Field(
        None, ge=0, description="taming: how closely to follow the object; by default as the text"
    )
    sampler: Literal["ddim", "ddpm", "euler_ancestral"] = "ddim"
    spacing: Literal["trailing", "leading"] = "trailing"
    eta: float = Field(0.0, ge=0, le=1, description="DDIM's share of fresh noise")
    negative_prompt: str = ""
    batch_size: int = Field(16, ge=1, description="Pictures in one forward of the UNet (twice as many with guidance)")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="What the networks compute in")


class AncestralSampleSpec(SampleSpec):
    """How pictures are drawn by an ancestral sampler."""

    steps: int = Field(50, ge=1)
    sampler: Literal["ddpm", "euler_ancestral"] = "ddpm"
