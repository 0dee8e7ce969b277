"""The pretrained domain-agnostic encoder: tensors `encoder.*` and `hypernetwork.*` in an encoder folder."""

from __future__ import annotations

from pathlib import Path

from imprint.backbone import Backbone
from imprint.config.methods import DomainAgnosticSpec
from imprint.features.clip import ClipFeatures
from imprint.methods.domain_agnostic.parts import DomainAgnosticParts
from imprint.methods.pretrained import load_parts


def load_encoder(path: str | Path, backbone: Backbone, *, clip: ClipFeatures | None = None) -> DomainAgnosticParts:
    """The parts with pretrained weights, on the backbone's device and frozen; `clip` spares loading it again.

    Raises:
        CheckpointError: the folder is broken, or made for another method, backbone or CLIP.
        BackboneError: CLIP cannot be loaded.
    """
    return load_parts(path, backbone, DomainAgnosticSpec, DomainAgnosticParts.build, clip)
