"""CLIPs of open_clip's architectures with random weights, or none at all on the device "meta": for plans, timings."""

from __future__ import annotations

import copy

import open_clip
import torch

from imprint.features.clip import ClipFeatures


def is_architecture(name: str) -> bool:
    """Whether open_clip knows an architecture of this name, such as ViT-H-14."""
    return name in open_clip.list_models()


def clip_of_shape(name: str, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> ClipFeatures:
    """A frozen CLIP of the architecture without its trained weights."""
    config = copy.deepcopy(open_clip.get_model_config(name))
    with torch.device(device):
        model = open_clip.CLIP(**config).to(dtype).eval().requires_grad_(False)
    mean, std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
    return ClipFeatures(name, model, open_clip.get_tokenizer(name), tuple(mean), tuple(std))
