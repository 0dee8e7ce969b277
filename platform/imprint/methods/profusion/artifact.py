"""The pretrained PromptNet: tensors `promptnet.*` in an encoder folder."""

from __future__ import annotations

from pathlib import Path

from imprint.backbone import Backbone
from imprint.config.methods import ProFusionSpec
from imprint.features.clip import ClipFeatures
from imprint.methods.pretrained import load_parts
from imprint.methods.profusion.parts import ProFusionParts


def load_encoder(path: str | Path, backbone: Backbone, *, clip: ClipFeatures | None = None) -> ProFusionParts:
    """The parts with pretrained weights, on the backbone's device and frozen; `clip` spares loading it again.

    Raises:
        CheckpointError: the folder is broken, or made for another method, backbone or CLIP.
        BackboneError: CLIP cannot be loaded.
    """
    return load_parts(path, backbone, ProFusionSpec, ProFusionParts.build, clip)
