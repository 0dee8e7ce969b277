"""Plain LoRA, a baseline: low-rank changes of the attention projections, on the subject's pictures alone."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from imprint.config.methods.tuning import PhraseSpec


class LoraTuneSpec(PhraseSpec):
    """Tuning of LoRA (arXiv:2106.09685) on one subject, without prior preservation."""

    method: Literal["lora"] = "lora"
    steps: int = Field(400, ge=1, description="Tuning steps")
    storage: Literal["bf16", "fp16", "fp32"] = Field("fp32", description="How the factors are kept")
