"""`pretrain_encoder`: an encoder learns a domain from many concepts, on Ray."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from imprint.config.jobs.cluster import ClusterJob, GridSpec
from imprint.config.methods import E4TSpec

__all__ = ["GridSpec", "PretrainEncoder"]


class PretrainEncoder(ClusterJob):
    """Pretraining of E4T, arXiv:2302.12228 section 3.3, over Ray Data, Ray Train and DeepSpeed."""

    job: Literal["pretrain_encoder"]
    method: E4TSpec = E4TSpec()
    initialize_from: str | None = Field(
        None, description="a pretrained encoder to start from: embedded name, folder or run; null: from nothing"
    )
