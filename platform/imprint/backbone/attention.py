"""The attention projections of a UNet: what weight offsets, LoRA and hypernetworks modulate."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from torch import nn

_PROJECTION = re.compile(r"\.attn(?P<which>[12])\.to_(?P<role>q|k|v|out\.0)\.weight$")


@dataclass(frozen=True)
class AttentionProjection:
    """One projection matrix: `name` is the UNet's parameter, `shape` is (out, in)."""

    name: str
    kind: Literal["self", "cross"]
    role: Literal["q", "k", "v", "out"]
    shape: tuple[int, int]


def attention_projections(unet: nn.Module) -> list[AttentionProjection]:
    """Every q, k, v and out projection in the order of the UNet's parameters.

    `attn1` attends to the picture itself and `attn2` to the text, unless the UNet's config says that `attn1`
    is a cross-attention as well (`only_cross_attention`).
    """
    only_cross = getattr(getattr(unet, "config", None), "only_cross_attention", False)
    found = []
    for name, parameter in unet.named_parameters():
        match = _PROJECTION.search(name)
        if match is None or parameter.ndim != 2:
            continue
        cross = match["which"] == "2" or only_cross is True
        role = "out" if match["role"].startswith("out") else match["role"]
        found.append(
            AttentionProjection(name, "cross" if cross else "self", role, (parameter.shape[0], parameter.shape[1]))
        )
    return found
