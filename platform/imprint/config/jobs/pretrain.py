"""`pretrain_encoder`: an encoder learns a domain from many concepts, on Ray."""

from __future__ import annotations

from typing import Annotated, Any, Literal

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

    @model_validator(mode="before")
    @classmethod
    def _default_method(cls, data: Any) -> Any:
        """Job files that name no method mean the first one."""
        return with_default_method(data, "method")


def with_default_method(data: Any, key: str) -> Any:
    """A job's data whose section `key` names the first method where it named none."""
    section = data.get(key) if isinstance(data, dict) else None
    if isinstance(section, dict) and "method" not in section:
        return data | {key: {"method": DEFAULT_METHOD, **section}}
    return data
