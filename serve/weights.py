"""Whether a model's weights are what they were, bit for bit."""

from __future__ import annotations

import hashlib

import torch

from imprint.backbone import Backbone


def exact_digest(backbone: Backbone) -> str:
    """sha256 over every bit of every weight and buffer; unlike the fingerprint, nothing is rounded."""
    digest = hashlib.sha256()
    for part, module in enumerate(backbone.modules()):
        for name, tensor in sorted(module.state_dict().items()):
            digest.update(f"{part}/{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
            plain = tensor.detach().cpu().contiguous().reshape(-1)
            digest.update(plain.view(torch.uint8).numpy().data)
    return digest.hexdigest()
