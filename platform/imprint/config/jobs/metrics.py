"""Which networks the field's metrics read pictures with."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from imprint.config.base import Section


class LpipsSpec(Section):
    """LPIPS: a trunk trained on ImageNet, from torchvision's server or a file."""

    trunk: Literal["alex", "vgg", "squeeze"] = "alex"
    file: str | None = Field(None, description="safetensors file of torchvision's network; null: its server's")


class MetricsSpec(Section):
    """The field's metrics, each where its network is named. None may have taken part in training what it scores."""

    clip: str | None = Field(None, description="CLIP-I and CLIP-T: a name or folder as of method.encoder.clip")
    dino: str | None = Field(
        None, description="DINO: timm:ARCHITECTURE, timm:ARCHITECTURE:FILE.safetensors, or a transformers folder"
    )
    lpips: LpipsSpec | None = Field(None, description="LPIPS diversity, DIV")
    kid: bool = Field(True, description="KID on the features of `dino`, or of `clip` without one")
    copy_quantile: float = Field(
        0.99, gt=0, lt=1, description="a picture is a copy of the input where it is more alike than this share of "
        "pairs of real pictures of one subject"
    )  # fmt: skip
