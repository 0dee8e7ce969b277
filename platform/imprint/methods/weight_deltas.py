"""Changes of a backbone's weights, as a concept keeps them: `<part>.<parameter>`, the tuned weight minus its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from imprint.backbone import Backbone
from imprint.errors import ConceptError
from imprint.methods.shells import named_weights

STORAGE = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@torch.no_grad()
def pack_deltas(backbone: Backbone, tuned: Mapping[str, Tensor], storage: str) -> dict[str, Tensor]:
    """The differences of tuned weights, by their full names, in the precision that `storage` names."""
    own = dict(named_weights(backbone))
    return {name: (value.float() - own[name].float()).to(STORAGE[storage]) for name, value in tuned.items()}


@torch.no_grad()
def add_deltas(backbone: Backbone, tensors: Mapping[str, Tensor], parts: Iterable[str]) -> dict[str, Tensor]:
    """The weights that differences make, for those tensors whose names start with one of `parts`, such as "unet".

    Formed in fp32, and in the precision and on the device of the backbone's own.

    Raises:
        ConceptError: a tensor does not fit the backbone.
    """
    own = dict(named_weights(backbone))
    parts = set(parts)
    weights = {}
    for name, delta in tensors.items():
        if name.partition(".")[0] not in parts:
            continue
        parameter = own.get(name)
        if parameter is None or parameter.shape != delta.shape:
            raise ConceptError(f"reading a concept: {name} {tuple(delta.shape)} does not fit the backbone")
        weights[name] = (parameter.float() + delta.to(parameter.device, torch.float32)).to(parameter.dtype)
    return weights
