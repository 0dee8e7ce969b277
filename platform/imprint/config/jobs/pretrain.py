"""`pretrain_encoder`: an encoder learns a domain from many concepts, on Ray."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from imprint.config.jobs.cluster import ClusterJob, GridSpec
from imprint.config.methods import DomainAgnosticSpec, E4TSpec, ProFusionSpec

__all__ = ["GridSpec", "PretrainEncoder"]


DEFAULT_METHOD = "e4t"

MethodSpec = Annotated[E4TSpec | DomainAgnosticSpec | ProFusionSpec, Field(discriminator="method")]
"""The section of one of the methods that have an encoder; its key `method` says which."""


class PretrainEncoder(ClusterJob):
    """Pretraining of a method's encoder over Ray Data, Ray Train and DeepSpeed."""

    job: Literal["pretrain_encoder"]
    method: MethodSpec = Field(E4TSpec(), description="the method's own keys; method.method is e4t by default")
    initialize_from: str | None = Field(
        None, description="a pretrained encoder to start from: embedded name, folder or run; null: from nothing"
    )
    in_process: bool = Field(
        False,
        description="train in this process alone, without Ray: all pictures in memory with their own captions and "
        "masks, the plain engine, cluster.threads_per_worker threads, no tracking",
    )

    @model_validator(mode="before")
    @classmethod
    def _default_method(cls, data: Any) -> Any:
        """Job files that name no method mean the first one."""
        return with_default_method(data, "method")

    @model_validator(mode="after")
    def _nothing_is_made_on_the_way(self) -> Self:
        data = self.data
        made = data.captions.kind != "keep" or data.captions.fine_kind != "none" or data.masks.kind != "sample"
        if self.in_process and (made or data.precompute.source != "trainer"):
            raise ValueError(
                "in_process: true reads captions and masks as the samples have them and computes features in training; "
                "set captions: {kind: keep}, masks: {kind: sample} and precompute: {source: trainer}, or use Ray"
            )
        return self


def with_default_method(data: Any, key: str) -> Any:
    """A job's data whose section `key` names the first method where it named none."""
    section = data.get(key) if isinstance(data, dict) else None
    if isinstance(section, dict) and "method" not in section:
        return data | {key: {"method": DEFAULT_METHOD, **section}}
    return data
