"""The families of UNet backbones, told apart by their parts and never by their names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from imprint.errors import BackboneError


@dataclass(frozen=True)
class Family:
    """What differs between families above the UNet's own config."""

    name: str
    text_encoders: int
    penultimate_hidden: bool  # attend to the last but one layer of the text encoders
    pooled: bool  # the UNet takes the pooled text of the last encoder and SDXL's six time ids


SD1 = Family("sd1", 1, penultimate_hidden=False, pooled=False)
SD2 = Family("sd2", 1, penultimate_hidden=False, pooled=False)
SDXL = Family("sdxl", 2, penultimate_hidden=True, pooled=True)

FAMILIES: dict[str, Family] = {family.name: family for family in (SD1, SD2, SDXL)}


def identify(components: Mapping[str, Any]) -> Family:
    """Which family a pipeline's components belong to.

    Two text encoders make an SDXL; one with linear projections in the UNet's transformers is an SD2, as in the
    releases of both (SD1 uses 1x1 convolutions there).

    Raises:
        BackboneError: the parts are those of no known family.
    """
    unet = components["unet"]
    if getattr(unet.config, "addition_embed_type", None) == "text_time":
        if components.get("text_encoder_2") is None or components.get("text_encoder") is None:
            raise BackboneError("loading a backbone: an SDXL UNet needs two text encoders; the refiner has one "
                                "and is not supported")  # fmt: skip
        return SDXL
    if components.get("text_encoder") is None:
        raise BackboneError("loading a backbone: no text encoder found; expected SD1, SD2 or SDXL parts")
    return SD2 if getattr(unet.config, "use_linear_projection", False) else SD1
