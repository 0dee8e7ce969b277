"""Pretraining of an encoder on many concepts: the keys that every method has."""

from __future__ import annotations

from pydantic import Field

from imprint.config.base import Section
from imprint.config.methods.prompts import DEFAULT_TEMPLATES
from imprint.config.training import MinSnrGamma, OffsetNoise, TimestepLogits


class EncoderSpec(Section):
    """What every encoder reads of a concept."""

    clip: str = Field("imprint-tiny-clip", description="Name or folder of the open_clip model that reads the concept")


class PretrainSpec(Section):
    """What pretraining has in common over methods; each gives its own `method` and `encoder`."""

    method: str
    encoder: EncoderSpec = EncoderSpec()
    templates: tuple[str, ...] = Field(DEFAULT_TEMPLATES, min_length=1, description="Prompts with <concept> in each")
    context_probability: float = Field(
        0.5, ge=0, le=1, description="Share of prompts that end with the sample's own context phrases"
    )
    text_dropping: float = Field(0.1, ge=0, le=1, description="Share of empty prompts, for guidance")
    timestep_logits: TimestepLogits = None
    offset_noise: OffsetNoise = 0.0
    min_snr_gamma: MinSnrGamma = None
    mask_reference: bool = Field(False, description="Show the encoder the subject on plain gray, without background")
    mask_loss: bool = Field(False, description="Weight the diffusion loss by the subject's mask")
