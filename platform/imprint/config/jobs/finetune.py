"""`finetune_joint`: the whole network of the Taming Encoder learns a domain beside general pictures, on Ray."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from imprint.config.base import Section
from imprint.config.jobs.cluster import ClusterJob
from imprint.config.methods import TamingSpec


class JointTripletSpec(Section):
    """How triplets of picture, object and caption are made of the sources' samples."""

    domain_sources: tuple[int, ...] = Field(
        (0,), description="which of data.sources are the domain, counted from 0; the others are general"
    )
    cross_reference: float = Field(
        0.5, ge=0, le=1, description="omega of Eq. 3, domain only; the paper says no number. 0: the paper's ablation"
    )
    identity_key: str = Field("identity", min_length=1, description="what names the identity in a sample's json")


class FinetuneJoint(ClusterJob):
    """Regularized joint training of the Taming Encoder, section 3.4, over Ray Data, Ray Train and DeepSpeed."""

    job: Literal["finetune_joint"]
    method: TamingSpec = TamingSpec()
    triplets: JointTripletSpec = JointTripletSpec()

    @model_validator(mode="after")
    def _domain_is_among_the_sources(self) -> Self:
        count = len(self.data.sources) or 1
        wrong = [number for number in self.triplets.domain_sources if not 0 <= number < count]
        if wrong:
            raise ValueError(
                f"triplets.domain_sources={list(self.triplets.domain_sources)}: there is no source {wrong[0]}; "
                f"data.sources are numbered 0 to {count - 1}"
            )
        return self
