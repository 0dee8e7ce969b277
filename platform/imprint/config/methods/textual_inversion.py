"""Textual inversion (arXiv:2208.01618), a baseline: a new word, and nothing else, is learned."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from imprint.config.methods.tuning import FewStepSpec


class TextualInversionTuneSpec(FewStepSpec):
    """Tuning of textual inversion on one subject; every network stays frozen."""

    method: Literal["textual_inversion"] = "textual_inversion"
    steps: int = Field(1000, ge=0, description="The paper's 5,000; 0 is the initial word")
    learning_rate: float = Field(5e-3, gt=0, description="The paper's")
    vectors: int = Field(1, ge=1, le=16, description="Positions that the new word takes in a prompt; the paper's 1")
    initializer: str | None = Field(
        None, min_length=1, description="The word that it starts from; by default the class noun"
    )
    storage: Literal["bf16", "fp16", "fp32"] = Field("fp32", description="How the word is kept")
