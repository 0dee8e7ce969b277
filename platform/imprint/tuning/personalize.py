"""From pictures of a subject to a Concept, and from a Concept to pictures, whatever the method."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from jaxtyping import Float
from torch import Tensor

from imprint.backbone import Backbone
from imprint.config.methods import E4TTuneSpec, SampleSpec
from imprint.errors import ConfigError
from imprint.methods import METHODS
from imprint.methods.base import Pictures
from imprint.sampling.draw import ProgressCallback
from imprint.tuning.concept import Concept


def personalize(
    backbone: Backbone,
    pictures: Pictures,
    spec: E4TTuneSpec,
    *,
    encoder: str | Path | Any,
    class_noun: str | None = None,
    seed: int = 0,
    callback: Callable[[int, float], None] | None = None,
) -> Concept:
    """Tune a method on pictures of one subject; the backbone is left as it was.

    `encoder` is the folder that pretraining wrote, or what the method's `load_encoder` made of it. `callback` gets the
    number of steps done and the loss.

    Raises:
        CheckpointError: the encoder is missing, broken, or made for another backbone.
        ConfigError: the method is unknown or the pictures do not fit.
        TrainingError: the loss is not finite.
    """
    method = _method(spec.method)
    source = str(encoder) if isinstance(encoder, str | Path) else None
    pretrained = method.load_encoder(encoder, backbone) if source is not None else encoder
    learned = method.tune(pretrained, pictures, spec, class_noun=class_noun, seed=seed, callback=callback)
    return Concept.of(learned, backbone, encoder=source, pictures=len(pictures.images))


def sample_concept(
    backbone: Backbone,
    concept: Concept,
    prompts: Sequence[str],
    spec: SampleSpec,
    *,
    seeds: Sequence[int] | None = None,
    progress: ProgressCallback | None = None,
) -> Float[Tensor, "n 3 h w"]:
    """Pictures in [-1, 1], one a prompt, with the concept at `<concept>`.

    Raises:
        ConceptError: the concept belongs to another backbone.
        ConfigError: a prompt has no placeholder, or the concept's method is unknown.
    """
    concept.require(backbone)
    return _method(concept.learned.method).sample(
        backbone, concept.learned, prompts, spec, seeds=seeds, progress=progress
    )


def _method(name: str) -> ModuleType:
    if name not in METHODS:
        raise ConfigError(f"method: got {name!r}, expected one of {', '.join(METHODS)}")
    return METHODS[name]
