"""Parts of E4T on the small pipelines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from imprint.backbone import Backbone
from imprint.features.clip import ClipFeatures
from imprint.objective import Batch


@pytest.fixture
def backbone(any_pipeline: Path) -> Backbone:
    """Each family in turn."""
    return Backbone.load(any_pipeline)


@pytest.fixture
def sd15(tiny_sd15: Path) -> Backbone:
    """One family, where all behave alike."""
    return Backbone.load(tiny_sd15)


@pytest.fixture(scope="session")
def clip(tiny_clip: Path) -> ClipFeatures:
    return ClipFeatures.load(tiny_clip)


@pytest.fixture
def batch() -> Batch:
    """Four random pictures with context phrases and half-picture masks."""
    generator = torch.Generator().manual_seed(0)
    masks = torch.zeros(4, 1, 16, 16)
    masks[..., 8:] = 1
    batch: dict[str, Any] = {
        "pixel_values": torch.rand(4, 3, 16, 16, generator=generator) * 2 - 1,
        "masks": masks,
        "captions": ["a photo of a person"] * 4,
        "contexts": ["smiling, on a blue background"] * 4,
        "keys": ["a", "b", "c", "d"],
    }
    return batch  # type: ignore[return-value]
