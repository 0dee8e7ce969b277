"""Parts of E4T and of the Taming Encoder on the small pipelines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from imprint.backbone import Backbone
from imprint.config.methods import TamingSpec
from imprint.features.clip import ClipFeatures
from imprint.methods.taming import TamingObjective, TripletBatch, save_network
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


@pytest.fixture
def triplets(batch: Batch) -> TripletBatch:
    """The same pictures, two of a domain and two general, with other pictures of their objects."""
    generator = torch.Generator().manual_seed(1)
    return {
        **batch,
        "object_values": torch.rand(4, 3, 16, 16, generator=generator) * 2 - 1,
        "object_masks": batch["masks"],
        "is_domain": torch.tensor([True, False, True, False]),
    }


@pytest.fixture
def trained_network(clip: ClipFeatures, tmp_path: Path) -> Callable[..., Path]:
    """Saves a network of the Taming Encoder on a backbone, every trained weight of it moved."""

    def save(backbone: Backbone, name: str = "network", **spec: Any) -> Path:
        return _trained_network(backbone, clip, tmp_path / "run" / name, **spec)

    return save


def _trained_network(backbone: Backbone, clip: ClipFeatures, folder: Path, **spec: Any) -> Path:
    base = {"path": backbone.path, "fingerprint": backbone.fingerprint()}
    torch.manual_seed(0)
    objective = TamingObjective(
        Backbone.load(backbone.path), TamingSpec(**({"object_encoder": {"clip": clip.name}} | spec)), clip
    )
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in objective.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator) * (parameter.std() + 0.1)
    return save_network(folder, objective.state_dict(), objective.parts, base, provenance={"steps": 2})
