"""What ProFusion keeps of a concept: the tuned PromptNet, the subject's reference, and the change of the attention.

Tensors by name, subjects counted from 0: `promptnet.<subject>.*`; `reference.<subject>.latents` [1, c, h, w] and
`.embedding` [1, 1, width]; `unet.<parameter>`, the tuned weight minus the backbone's. Settings: `nouns`, for each
subject what the text condition C says in its place.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from imprint.backbone import Backbone
from imprint.config.methods import ProFusionSpec, ProFusionTuneSpec
from imprint.errors import ConceptError, ConfigError
from imprint.methods.base import Learned
from imprint.methods.pretrained import load_state
from imprint.methods.profusion.parts import ProFusionParts, Reference
from imprint.methods.shells import shell
from imprint.methods.weight_deltas import add_deltas


@torch.no_grad()
def pack(
    parts: ProFusionParts,
    changes: Mapping[str, Tensor],
    reference: Reference,
    spec: ProFusionTuneSpec,
    *,
    class_noun: str,
    seed: int,
) -> Learned:
    """A concept of one subject. PromptNet is kept in fp16, or in fp32 where `storage` says so."""
    dtype = torch.float32 if spec.storage == "fp32" else torch.float16
    tensors = {f"promptnet.0.{name}": v.detach().to(dtype) for name, v in parts.promptnet.state_dict().items()}
    tensors |= {f"reference.0.{name}": getattr(reference, name).float() for name in reference._fields}
    settings: dict[str, Any] = {
        "subjects": 1,
        "nouns": [class_noun],
        "spec": parts.spec.model_dump(mode="json"),
        "tune": spec.model_dump(mode="json"),
        "seed": seed,
    }
    return Learned(spec.method, class_noun, tensors | dict(changes), settings)


@dataclass(frozen=True, eq=False)
class ReadyConcept:
    """A concept made ready to draw: the tuned backbone, and for each subject its PromptNet and its reference."""

    backbone: Backbone
    subjects: Sequence[tuple[ProFusionParts, Reference]]


@torch.no_grad()
def unpack(backbone: Backbone, learned: Learned) -> ReadyConcept:
    """Put a concept's networks and weights together with its backbone.

    Raises:
        ConceptError: tensors are missing or do not fit the backbone.
    """
    spec = ProFusionSpec.model_validate(learned.settings["spec"])
    subjects = []
    for number in range(len(learned.placeholders)):
        try:
            halves = [learned.tensors[f"reference.{number}.{name}"] for name in Reference._fields]
        except KeyError as error:
            raise ConceptError(f"reading a concept: it has no {error.args[0]}; it was not made by profusion") from None
        reference = Reference(*(half.to(backbone.device) for half in halves))
        parts = ProFusionParts.shaped(backbone, spec, reference.embedding.shape[-1])
        load_state(parts.promptnet, f"promptnet.{number}.", learned.tensors, "the concept")
        subjects.append((parts, reference))
    return ReadyConcept(shell(backbone, add_deltas(backbone, learned.tensors, ["unet"])), subjects)


def merge(learned: Sequence[Learned], weights: Sequence[float]) -> Learned:
    """Several concepts in one: each subject keeps its PromptNet and its reference.

    Raises:
        ConfigError: a weight is not 1; how much a subject counts is said in sampling, by fusion.subject_scales.
        ConceptError: a concept has an attention of its own: all conditions of Eq. 6 are of one UNet.
    """
    if any(weight != 1 for weight in weights):
        raise ConfigError(
            "merging concepts of profusion: subjects are weighed in sampling, by fusion.subject_scales; leave --weight "
            "out"
        )
    if any(name.startswith("unet.") for one in learned for name in one.tensors):
        raise ConceptError(
            "merging concepts of profusion: one has attention layers of its own, and the conditions of Eq. 6 need one "
            "UNet; tune it again with attention=false, which tunes PromptNet alone"
        )
    if len({str(one.settings["spec"]) for one in learned}) > 1:
        raise ConceptError(
            "merging concepts of profusion: their PromptNets are of different kinds; expected one encoder"
        )
    tensors: dict[str, Tensor] = {}
    subjects = 0
    for one in learned:
        for name, value in one.tensors.items():
            kind, number, rest = name.split(".", 2)
            tensors[f"{kind}.{subjects + int(number)}.{rest}"] = value
        subjects += len(one.placeholders)
    settings = {
        "subjects": subjects,
        "nouns": [noun for one in learned for noun in one.settings["nouns"]],
        "spec": learned[0].settings["spec"],
        "merged": [dict(one.settings) for one in learned],
    }
    nouns = " and ".join(one.class_noun for one in learned)
    return dataclasses.replace(learned[0], class_noun=nouns, tensors=tensors, settings=settings)
