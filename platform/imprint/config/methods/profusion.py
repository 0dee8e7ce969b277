"""ProFusion (arXiv:2305.13579): PromptNet, its pretraining and its tuning. Its sampler: `FusionSpec`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from imprint.config.base import Section
from imprint.config.methods.pretraining import EncoderSpec, PretrainSpec
from imprint.config.methods.tuning import FewStepSpec


class PromptNetSpec(EncoderSpec):
    """PromptNet, appendix B."""

    vectors: int = Field(1, ge=1, le=16, description="Positions that the word S* takes in a prompt")
    initialize: bool = Field(True, description="Start from the backbone's UNet where shapes allow")


class PlacementSpec(Section):
    """Another view of a picture: resized, turned and moved about."""

    smallest: float = Field(0.6, gt=0, le=1, description="Smallest size, as a share of the picture's")
    degrees: float = Field(15.0, ge=0, le=180, description="Largest turn to either side")


class ProFusionSpec(PretrainSpec):
    """Pretraining of PromptNet by the denoising loss alone, Eq. 1; no regularization."""

    method: Literal["profusion"] = "profusion"
    domain_word: str = Field("person", min_length=1, description="What stands for the subject in the text condition C")
    encoder: PromptNetSpec = PromptNetSpec()
    other_view: PlacementSpec | None = Field(
        None, description="Show PromptNet another view of x_0 (section 2); the paper pretrains without augmentation"
    )


class InpaintingSpec(Section):
    """An inpainting pipeline that paints new backgrounds around the subject, appendix B."""

    pipeline: str = Field(min_length=1, description="Diffusers folder or hub id of an inpainting pipeline")
    prompt: str = Field(
        "a photo of a {}, highly detailed, soft natural lighting, photo realism, professional portrait, "
        "ultra-detailed, 4k resolution, wallpaper, hd wallpaper.",
        description="{} is the class noun",
    )
    negative_prompt: str = (
        "magazine, frame, tiled, repeated, multiple people, multiple faces, group of people, split frame, multiple "
        "panel, split image, watermark, border, diptych, triptych"
    )
    guidance_scale: float = Field(7.5, ge=0, description="The paper's")
    steps: int = Field(30, ge=1)


class AugmentationSpec(Section):
    """Pictures of the subject on other backgrounds, appendix B and Figure 9."""

    enabled: bool = Field(True, description="Off: the paper's ablation, the given pictures alone")
    images: int = Field(16, ge=1, description="Augmented pictures")
    placement: PlacementSpec = PlacementSpec()
    inpainting: InpaintingSpec | None = Field(None, description="By default backgrounds are composited instead")
    backgrounds: str | None = Field(
        None, description="Folder of pictures to composite on; by default smooth colours, drawn from the seed"
    )


class ProFusionTuneSpec(FewStepSpec):
    """Tuning of PromptNet and of all attention layers on one concept, section 3."""

    method: Literal["profusion"] = "profusion"
    steps: int = Field(50, ge=0, description="The paper's; 0 is PromptNet as it was pretrained")
    batch_size: int = Field(8, ge=1, description="The paper's")
    learning_rate: float = Field(1e-5, gt=0, description="Of PromptNet and attention; the paper does not say")
    attention: bool = Field(True, description="Tune the UNet's attention layers; off leaves the UNet as it is")
    augmentation: AugmentationSpec = AugmentationSpec()
