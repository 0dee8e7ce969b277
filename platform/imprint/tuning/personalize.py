"""From pictures of a subject to a Concept, and from a Concept to pictures, whatever the method."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from jaxtyping import Float
from torch import Tensor

from imprint.backbone import Backbone
from imprint.config.methods import FewStepSpec, SampleSpec
from imprint.errors import ConceptError, ConfigError
from imprint.methods import METHODS
from imprint.methods.base import Pictures, TuneCallback
from imprint.sampling.draw import ProgressCallback
from imprint.tuning.cascade import enlarge, second_stage
from imprint.tuning.concept import Concept


def personalize(
    backbone: Backbone,
    pictures: Pictures,
    spec: FewStepSpec,
    *,
    encoder: str | Path | Any | None = None,
    class_noun: str | None = None,
    seed: int = 0,
    callback: TuneCallback | None = None,
) -> Concept:
    """Tune a method on pictures of one subject; the backbone is left as it was.

    `encoder` is the folder that pretraining wrote, or what the method's `load_encoder` made of it; methods without a
    pretrained encoder take none. `callback` gets the number of steps done and the loss.

    Raises:
        CheckpointError: the encoder is missing, broken, or made for another backbone.
        ConfigError: the method is unknown, an encoder is missing or one too many, or the pictures do not fit.
        TrainingError: the loss is not finite.
    """
    name: str = spec.method  # type: ignore[attr-defined]
    method = _method(name)
    check_encoder(name, given=encoder is not None)
    source = str(encoder) if isinstance(encoder, str | Path) else None
    if encoder is None:
        pretrained = backbone
    else:
        pretrained = method.load_encoder(encoder, backbone) if source is not None else encoder
    learned = method.tune(pretrained, pictures, spec, class_noun=class_noun, seed=seed, callback=callback)
    return Concept.of(learned, backbone, encoder=source, pictures=len(pictures.images))


def check_encoder(method: str, *, given: bool) -> None:
    """A method with a pretrained encoder needs it, and one without has no use for it.

    Raises:
        ConfigError: it is the other way round, or the method is unknown.
    """
    needed = hasattr(_method(method), "load_encoder")
    if needed and not given:
        raise ConfigError(
            f"--encoder: {method} starts from a pretrained encoder and got none; give the folder of one, or of the run "
            "that pretrained it (jobs/pretrain_encoder.yaml)"
        )
    if given and not needed:
        raise ConfigError(f"--encoder: {method} has no pretrained encoder and got one; leave --encoder out")


def sample_concept(
    backbone: Backbone,
    concept: Concept,
    prompts: Sequence[str],
    spec: SampleSpec,
    *,
    seeds: Sequence[int] | None = None,
    progress: ProgressCallback | None = None,
) -> Float[Tensor, "n 3 h w"]:
    """Pictures in [-1, 1], one a prompt, with the concept at `<concept>`; large ones where it has a second stage.

    Raises:
        BackboneError: the super-resolution model cannot be loaded.
        ConceptError: the concept belongs to another backbone, or was tuned on another super-resolution model.
        ConfigError: a prompt has no placeholder, the concept's method is unknown, or fusion is not for it.
    """
    concept.require(backbone)
    if spec.fusion is not None and concept.learned.method != "profusion":
        raise ConfigError(
            f"fusion: fusion sampling is made of ProFusion's conditions, and this is a concept of "
            f"{concept.learned.method}; leave the keys of fusion out"
        )
    learned = concept.learned
    second = second_stage(backbone, learned, spec)
    pictures = _method(learned.method).sample(backbone, learned, prompts, spec, seeds=seeds, progress=progress)
    if second is None:
        return pictures
    return enlarge(second, learned, pictures, prompts, spec.super_resolution, seeds=seeds, progress=progress)


def merge_concepts(concepts: Sequence[Concept], weights: Sequence[float] | None = None) -> Concept:
    """Several concepts of one method and backbone in one; prompts then say `<concept-1>`, `<concept-2>`, ...

    `weights` scale what each changes, where the method's changes can be scaled; 1 for all by default.

    Raises:
        ConceptError: the method cannot merge, or methods or backbones differ.
        ConfigError: there are fewer than two concepts, or not one weight for each, or their names collide.
    """
    if len(concepts) < 2:
        raise ConfigError(f"merging concepts: got {len(concepts)}, expected two or more")
    weights = weights or [1.0] * len(concepts)
    if len(weights) != len(concepts):
        raise ConfigError(f"--weight: got {len(weights)} for {len(concepts)} concepts, expected one for each")
    first = concepts[0]
    kinds = sorted({concept.learned.method for concept in concepts})
    if len(kinds) > 1:
        raise ConceptError(f"merging concepts: they are of the methods {', '.join(kinds)}; expected one method for all")
    if len({concept.backbone_fingerprint for concept in concepts}) > 1:
        paths = sorted({concept.backbone_path for concept in concepts})
        raise ConceptError(
            f"merging concepts: they were learned on different backbones ({', '.join(paths)}); expected one for all"
        )
    method = _method(kinds[0])
    if not hasattr(method, "merge"):
        able = [name for name, module in METHODS.items() if hasattr(module, "merge")]
        raise ConceptError(
            f"merging concepts: what {kinds[0]} learns of one subject does not add up with another's; methods that "
            f"merge: {', '.join(able)}"
        )
    learned = method.merge([concept.learned for concept in concepts], weights)
    provenance = {"merged": [dict(concept.provenance) for concept in concepts], "weights": list(weights)}
    return Concept(learned, first.backbone_path, first.backbone_fingerprint, provenance)


def _method(name: str) -> ModuleType:
    if name not in METHODS:
        raise ConfigError(f"method: got {name!r}, expected one of {', '.join(METHODS)}")
    return METHODS[name]
