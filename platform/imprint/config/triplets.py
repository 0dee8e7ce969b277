"""Triplets for encoders that learn from (picture, object picture, caption): the Taming Encoder, arXiv:2304.02642."""

from __future__ import annotations

from pydantic import Field

from imprint.config.base import Section


class TripletSpec(Section):
    """Where the object picture of a sample comes from (section 3.4 of the paper)."""

    omega: float = Field(
        0.5, ge=0, le=1, description="how often it is another picture of the same identity (Eq. 3); 0: never"
    )
    domains: tuple[str, ...] | None = Field(
        None,
        description="values of the json's `domain` that are domain-specific; null: every sample with an identity. "
        "Other samples get no object (Eq. 4)",
    )
    ground: tuple[int, int, int] = Field((0, 0, 0), description="RGB where the mask is off; black: x times m")
