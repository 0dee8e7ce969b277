"""What E4T keeps of a concept: the tuned encoder, the concept's CLIP features, and the change of the UNet.

Tensors by name: `encoder.*`; `clip.<layer>` [1, width]; `unet.<parameter>`, the baked weight minus the backbone's, with
the offsets merged in, so that sampling computes no offset and needs no CLIP.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from imprint.backbone import Backbone
from imprint.config.methods import E4TSpec, E4TTuneSpec
from imprint.errors import ConceptError
from imprint.methods.base import Learned
from imprint.methods.e4t.parts import E4TParts
from imprint.methods.pretrained import load_state
from imprint.methods.weight_deltas import add_deltas, pack_deltas


@torch.no_grad()
def pack(
    parts: E4TParts,
    unet: Mapping[str, Tensor],
    features: Sequence[Float[Tensor, "1 width"]],
    spec: E4TTuneSpec,
    *,
    class_noun: str,
    seed: int,
) -> Learned:
    """Bake the offsets into the tuned weights and keep the differences, in the precision that the spec says."""
    base = {**parts.base_weights(), **unet}
    baked = {**unet, **(parts.offsets.bake(base) if parts.offsets is not None else {})}
    tensors = {f"encoder.{name}": value.detach().clone() for name, value in parts.encoder.state_dict().items()}
    tensors |= {f"clip.{index}": feature.float() for index, feature in enumerate(features)}
    tensors |= pack_deltas(parts.backbone, {f"unet.{name}": value for name, value in baked.items()}, spec.storage)
    settings = {"spec": parts.spec.model_dump(mode="json"), "tune": spec.model_dump(mode="json"), "seed": seed}
    return Learned("e4t", class_noun, tensors, settings)


@dataclass(frozen=True, eq=False)
class ReadyConcept:
    """A concept made ready to draw: `parts` without offsets, its CLIP features and the UNet's baked weights."""

    parts: E4TParts
    features: tuple[Float[Tensor, "1 width"], ...]
    weights: dict[str, Tensor]


@torch.no_grad()
def unpack(backbone: Backbone, learned: Learned) -> ReadyConcept:
    """Put a concept's encoder and weights together with its backbone.

    Raises:
        ConceptError: tensors are missing or do not fit the backbone.
    """
    spec = E4TSpec.model_validate(learned.settings["spec"])
    count = sum(name.startswith("clip.") for name in learned.tensors)
    features = tuple(learned.tensors[f"clip.{index}"].to(backbone.device) for index in range(count))
    if not features:
        raise ConceptError("reading a concept: it has no CLIP features; it was not made by the method e4t")
    parts = E4TParts.shaped(
        backbone, spec, count, features[0].shape[1], domain_word=learned.class_noun, with_offsets=False
    )
    load_state(parts.encoder, "encoder.", learned.tensors, "the concept")
    weights = add_deltas(backbone, learned.tensors, ["unet"])
    return ReadyConcept(parts, features, {name.removeprefix("unet."): value for name, value in weights.items()})
