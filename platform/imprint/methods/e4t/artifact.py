"""The pretrained encoder of E4T: tensors `encoder.*` and `offsets.*` in an encoder folder."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from imprint.backbone import Backbone
from imprint.config.methods import E4TSpec
from imprint.features.clip import ClipFeatures
from imprint.methods.e4t.parts import E4TParts
from imprint.methods.pretrained import find_encoder, load_parts, load_state, save_encoder

__all__ = ["find_encoder", "load_encoder", "load_state", "save_encoder"]


def load_encoder(
    path: str | Path, backbone: Backbone, *, clip: ClipFeatures | None = None, domain_word: str | None = None
) -> E4TParts:
    """The parts of E4T with pretrained weights, on the backbone's device and frozen.

    `clip` spares loading it again; `domain_word` stands in for the one of pretraining.

    Raises:
        CheckpointError: the folder is broken, or made for another method, backbone or CLIP.
        BackboneError: CLIP cannot be loaded.
    """
    return load_parts(path, backbone, E4TSpec, partial(E4TParts.build, domain_word=domain_word), clip)
