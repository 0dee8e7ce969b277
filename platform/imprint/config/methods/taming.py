"""The Taming Encoder (arXiv:2304.02642): its network, its joint finetuning, and personalization in one pass."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from imprint.config.base import Section
from imprint.config.methods.tuning import FewStepSpec
from imprint.config.training import MinSnrGamma, OffsetNoise, TimestepLogits


class ObjectEncoderSpec(Section):
    """The frozen object encoder, section 3.1: CLIP's image tower."""

    clip: str = Field("imprint-tiny-clip", description="Name or folder of the open_clip model that reads the object")
    tokens: Literal["patches", "pooled"] = Field(
        "patches",
        description="patches: all tokens of CLIP's last layer. pooled: its joint embedding, one vector, which an "
        "attention can only add to every place alike. The paper does not say which",
    )
    masked: bool = Field(True, description="Mask the background away, section 3.3; off: CLIP sees the whole picture")


class DroppingSpec(Section):
    """What is left out of a triplet, section 3.4."""

    general: bool = Field(
        True, description="Eq. 4: pictures of the general source have the null embedding. Off: the paper's ablation"
    )
    object: float = Field(
        0.1, ge=0, le=1, description="Share of domain pictures with the null embedding, for guidance by the object"
    )
    text: float = Field(0.1, ge=0, le=1, description="Share of empty captions, for guidance by the text, Eq. 2")


class TamingSpec(Section):
    """Joint finetuning of the Taming Encoder: the network and what trains of it."""

    method: Literal["taming"] = "taming"
    domain_word: str = Field(
        "person", min_length=1, description="What <concept> reads in prompts where no class noun is given"
    )
    object_encoder: ObjectEncoderSpec = ObjectEncoderSpec()
    dropping: DroppingSpec = DroppingSpec()
    whole_network: bool = Field(
        True, description="All weights of the UNet train. Off, the paper's ablation: the new attentions alone"
    )
    attention_lr_scale: float = Field(
        1.0, gt=0, description="Learning rate of the new attentions, as a share of the UNet's; the paper has one rate"
    )
    timestep_logits: TimestepLogits = None
    offset_noise: OffsetNoise = 0.0
    min_snr_gamma: MinSnrGamma = None
    fine_captions: bool = Field(
        True, description="Section 3.3: append the fine caption's phrases that the coarse caption lacks"
    )


class TamingTuneSpec(FewStepSpec):
    """Personalization by the Taming Encoder: one forward pass of the object encoder, and no step of tuning."""

    method: Literal["taming"] = "taming"
    steps: int = Field(0, ge=0, description="Always 0: nothing is tuned on a subject")
    storage: Literal["bf16", "fp16", "fp32"] = Field("fp32", description="How the object embedding is kept")

    @model_validator(mode="after")
    def _nothing_is_tuned(self) -> Self:
        if self.steps:
            raise ValueError(f"steps={self.steps}: taming tunes nothing on a subject; leave steps out, or give 0")
        return self
