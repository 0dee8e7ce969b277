"""What the Taming Encoder keeps of a concept: its object embedding, and which network it is for.

Tensors by name: `object` [m, width]. Settings: `network`, the `path` and `fingerprint` of the trained network, which
stays where it is: it is the same for every subject, so a concept does not hold a copy of it.
"""

from __future__ import annotations

from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from imprint.backbone import Backbone
from imprint.config.methods import TamingTuneSpec
from imprint.errors import CheckpointError, ConceptError
from imprint.methods.base import Learned
from imprint.methods.taming.artifact import load_encoder
from imprint.methods.taming.parts import TamingParts
from imprint.methods.weight_deltas import STORAGE


def pack(
    parts: TamingParts, objects: Float[Tensor, "m e"], spec: TamingTuneSpec, *, class_noun: str, seed: int
) -> Learned:
    """The concept of an object embedding.

    Raises:
        ConceptError: the network was not saved yet, so a concept could not say where it is.
    """
    if parts.source is None:
        raise ConceptError("packing a concept: its network has no folder; save it, and load it with load_encoder")
    settings = {
        "network": parts.source._asdict(),
        "tune": spec.model_dump(mode="json"), "seed": seed,
    }  # fmt: skip
    return Learned(spec.method, class_noun, {"object": objects.detach().to(STORAGE[spec.storage]).clone()}, settings)


def unpack(backbone: Backbone, learned: Learned) -> tuple[TamingParts, Float[Tensor, "1 m e"]]:
    """A concept's network, loaded from where it lies, and its object embedding.

    Raises:
        ConceptError: the network is no longer there, or is another one; or the concept is not of this method.
    """
    if "object" not in learned.tensors:
        raise ConceptError("reading a concept: it has no object embedding; it was not made by the method taming")
    named = learned.settings["network"]
    remedy = "put that network back, or personalize anew with --encoder: it is one forward pass"
    try:
        parts = load_encoder(Path(named["path"]), backbone)
    except CheckpointError as error:
        raise ConceptError(f"reading a concept: its network cannot be loaded: {error}; {remedy}") from error
    assert parts.source is not None
    if parts.source.fingerprint != named["fingerprint"]:
        raise ConceptError(
            f"reading a concept: it was made with another network than the one that is now in {named['path']}; {remedy}"
        )
    return parts, learned.tensors["object"].to(backbone.device).float()[None]
