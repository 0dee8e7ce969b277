"""Tuning on a few pictures of one subject: the keys that every method has."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from imprint.config.base import Section
from imprint.config.methods.prompts import DEFAULT_TEMPLATES
from imprint.config.training import Precision, TimestepLogits


class EarlyStoppingSpec(Section):
    """Ends tuning before its last step when a score no longer improves.

    The score is the method's own loss on noise and prompts, and without `crops` on crops, that are drawn once and never
    trained on, so it tells how much is left to learn of the subject. It costs forward passes, and none backward.
    """

    every: int = Field(5, ge=1, description="Steps between two looks at the score")
    batches: int = Field(2, ge=1, description="Batches that it is the mean of")
    patience: int = Field(2, ge=1, description="Looks in a row without improvement that end tuning")
    least: float = Field(0.01, ge=0, lt=1, description="Improvement that counts, as a share of the best score so far")


class FewStepSpec(Section):
    """What tuning has in common over methods; each gives `method` and the defaults of its paper."""

    steps: int = Field(ge=0, description="Tuning steps")
    batch_size: int = Field(4, ge=1, description="Different crops and noise levels in a step")
    weight_decay: float = Field(0.0, ge=0)
    mask_loss: bool = Field(False, description="Weight the diffusion loss by the mask, where one is given")
    crop_scale: float = Field(0.85, gt=0, le=1, description="Side of the smallest crop, as a share of the picture")
    crops: int | None = Field(
        None, ge=1, description="Draw and encode this many crops once, instead of new ones at each step: faster"
    )
    flip: bool = Field(True, description="Mirror half of the crops")
    templates: tuple[str, ...] = Field(DEFAULT_TEMPLATES, min_length=1, description="Prompts with <concept> in each")
    context_probability: float = Field(1.0, ge=0, le=1, description="Share of prompts that end with a given context")
    timestep_logits: TimestepLogits = None
    early_stopping: EarlyStoppingSpec | None = Field(
        None, description="End before the last step when the loss on held-out noise no longer falls; by default never"
    )
    precision: Precision = Field("fp32", description="What the networks compute in; weights stay fp32")
    storage: Literal["bf16", "fp16", "fp32"] = Field(
        "bf16", description="How what was learned is kept; fp16 rounds changes of a weight below 6e-5 coarsely"
    )


class IdentifierSpec(Section):
    """The rare words that name a subject in prompts; DreamBooth section 4.1, arXiv:2208.12242."""

    text: str | None = Field(None, min_length=1, description="The identifier itself; by default rare words are drawn")
    tokens: int = Field(1, ge=1, le=3, description="How many rare tokens are drawn; k of the paper, 1 to 3")
    rare_share: float = Field(
        0.5, gt=0, le=1, description="Tokens count as rare in this last share of the vocabulary, which is by frequency"
    )


class LoraSpec(Section):
    """Low-rank changes of the attention projections; arXiv:2106.09685."""

    rank: int = Field(4, ge=1)
    alpha: float | None = Field(None, gt=0, description="The change is alpha / rank times B A; by default the rank")
    learning_rate: float = Field(1e-4, gt=0)


class PhraseSpec(FewStepSpec):
    """Tuning that calls the subject by a phrase, "a [identifier] [class noun]"."""

    identifier: IdentifierSpec = IdentifierSpec()
    noun: str | None = Field(
        None,
        description="Stands in for the class noun in the subject's prompts: a wrong noun, or '' for none, DreamBooth's "
        "ablations",
    )
    text_encoder: bool = Field(False, description="Tune the text encoders too; DreamBooth's T5 stays frozen")
    lora: LoraSpec = LoraSpec()
    min_snr_gamma: float | None = Field(
        None, gt=0, description="Weigh the loss by min(SNR, gamma), arXiv:2303.09556; every term by its own timesteps"
    )
