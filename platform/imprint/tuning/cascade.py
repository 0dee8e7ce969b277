"""The second stage of a concept: which super-resolution model enlarges its pictures, and with what prompts."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from imprint.backbone import Backbone
from imprint.backbone.super_resolution import SuperResolution
from imprint.config.methods import SampleSpec, SuperResolutionSampler
from imprint.errors import ConceptError
from imprint.methods.base import Learned
from imprint.methods.dreambooth.super_resolution import with_tuned_weights
from imprint.methods.phrases import spell
from imprint.sampling.draw import ProgressCallback
from imprint.sampling.super_resolution import upscale


def second_stage(backbone: Backbone, learned: Learned, spec: SampleSpec) -> SuperResolution | None:
    """The model that the spec names or the concept was tuned with, with the concept's own weights; None without one.

    Raises:
        BackboneError: the model cannot be loaded.
        ConceptError: it has other weights than the one that the concept was tuned on.
    """
    wanted = spec.super_resolution
    own = learned.settings.get("super_resolution")
    name = wanted.model or (own and own["model"])
    if not wanted.enabled or not name:
        return None
    model = SuperResolution.load(name, device=backbone.device)
    if own is None or not own["tuned"] or not wanted.tuned:
        return model
    if model.fingerprint() != own["fingerprint"]:
        raise ConceptError(
            f"drawing with super-resolution: the concept was tuned on {own['model']!r}, and {model.path!r} has other "
            "weights; name that one, say super_resolution.tuned=false, or personalize anew with this one"
        )
    return with_tuned_weights(model, learned.tensors)


def enlarge(
    model: SuperResolution,
    learned: Learned,
    pictures: Float[Tensor, "n 3 h w"],
    prompts: Sequence[str],
    spec: SuperResolutionSampler,
    *,
    seeds: Sequence[int] | None = None,
    progress: ProgressCallback | None = None,
) -> Float[Tensor, "n 3 h2 w2"]:
    """Pictures of a concept, enlarged with its prompts; the noise on small pictures is that of tuning by default."""
    own = learned.settings.get("super_resolution")
    if own is not None and spec.noise_augmentation is None:
        spec = spec.model_copy(update={"noise_augmentation": own["noise_augmentation"]})
    return upscale(model, pictures, spelled(learned, prompts), spec, seeds=seeds, progress=progress)


def spelled(learned: Learned, prompts: Sequence[str]) -> list[str]:
    """The prompts with the concept's phrases in them, or its class noun, which another text encoder knows as well."""
    phrases = learned.settings.get("phrases") or [f"a {learned.class_noun}"] * len(learned.placeholders)
    return spell(prompts, *phrases)
