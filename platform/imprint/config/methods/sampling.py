"""How pictures are drawn, whatever the method."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from imprint.config.base import Section
from imprint.config.methods.super_resolution import SuperResolutionSampler
from imprint.config.training import Precision


class FusionSpec(Section):
    """Fusion sampling of ProFusion, arXiv:2305.13579, Algorithm 1.

    Where the paper gives no value the default is that of the authors' published sampler.
    """

    enabled: bool = Field(
        True, description="Off: classifier-free guidance of one prompt with S* in it, the baseline of Figure 8"
    )
    steps: int = Field(1, ge=0, description="m, updates of the fusion stage at each timestep; 0 is Eq. 6 alone")
    gamma: float = Field(0.8, ge=0, le=1, description="Scale of S* in the fusion stage")
    sigma: float = Field(
        1.0, gt=0, le=1, description="sigma_t, as a share of its largest value sqrt(1 - abar_{t-1}); 1 is Eq. 7"
    )
    guidance_scale: float = Field(3.0, ge=0, description="1 + omega of Eq. 3 in the fusion stage")
    refinement: bool = Field(True, description="Off: x_{t-1} comes from the fusion stage, the paper's ablation")
    subject_scales: tuple[float, ...] = Field(
        (2.5,),
        min_length=1,
        description="1 + omega_i of Eq. 6, one for all subjects or one for each; that of the text is guidance_scale of "
        "the sampler",
    )

    @model_validator(mode="after")
    def _one_stage_at_least(self) -> Self:
        if not self.refinement and self.steps != 1:
            raise ValueError(
                f"steps={self.steps} without the refinement stage, where Algorithm 1 ends in the first of them; set "
                "steps: 1, or refinement: true"
            )
        return self


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
    precision: Precision = Field("fp32", description="What the networks compute in")
    super_resolution: SuperResolutionSampler = SuperResolutionSampler()
    fusion: FusionSpec | None = Field(None, description="Fusion sampling, for profusion alone; by default its defaults")


class AncestralSampleSpec(SampleSpec):
    """How pictures are drawn by an ancestral sampler."""

    steps: int = Field(50, ge=1)
    sampler: Literal["ddpm", "euler_ancestral"] = "ddpm"
