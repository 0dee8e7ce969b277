"""DreamBooth (arXiv:2208.12242): tuning on one subject with prior preservation."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from imprint.config.base import Section
from imprint.config.methods.sampling import AncestralSampleSpec
from imprint.config.methods.super_resolution import SuperResolutionTuneSpec
from imprint.config.methods.tuning import PhraseSpec


class PriorSpec(Section):
    """Prior preservation, section 4.2: the frozen model's own pictures of the class."""

    enabled: bool = Field(True, description="Off: the paper's ablation without prior preservation")
    weight: float = Field(1.0, ge=0, description="lambda of Eq. 2")
    images: int = Field(200, ge=1, description="Class images; the paper's 200 for each picture of the subject")
    prompt: str = Field("a {}", description="What the class images show; {} is the class noun")
    sampling: AncestralSampleSpec = AncestralSampleSpec()
    cache_dir: str = Field(
        "~/.cache/imprint/class-images", min_length=1, description="Where they are kept, by model, prompt and sampler"
    )

    @model_validator(mode="after")
    def _prompt_has_a_place_for_the_noun(self) -> Self:
        if "{}" not in self.prompt:
            raise ValueError(f"prompt={self.prompt!r} does not say where the class noun goes: write {{}} in it")
        return self


class DreamBoothLearningRates(Section):
    """Learning rates of full tuning; 0 leaves a part as it is. LoRA has its own, `lora.learning_rate`."""

    unet: float = Field(1e-5, ge=0, description="The paper's 1e-5")
    text_encoder: float = Field(5e-6, ge=0, description="Used where text_encoder is on")


class DreamBoothTuneSpec(PhraseSpec):
    """Tuning of DreamBooth, section 4, and of a super-resolution model, section 4.3, where one is named."""

    method: Literal["dreambooth"] = "dreambooth"
    steps: int = Field(200, ge=1, description="The paper's 200 epochs, for four pictures and a batch of four")
    train: Literal["full", "lora"] = Field("full", description="All weights, as in the paper, or LoRA, which is cheap")
    learning_rates: DreamBoothLearningRates = DreamBoothLearningRates()
    prior: PriorSpec = PriorSpec()
    templates: tuple[str, ...] = Field(
        ("<concept>",), min_length=1, description="Prompts; <concept> reads 'a [identifier] [class noun]'"
    )
    super_resolution: SuperResolutionTuneSpec | None = Field(
        None, description="The second stage of a cascade, tuned on the same pictures; by default none"
    )
