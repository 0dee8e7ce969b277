"""All of the field's metrics over the columns of an evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from imprint.config.jobs.metrics import MetricsSpec
from imprint.errors import ConfigError
from imprint.evaluation.metrics import (
    PairDistance,
    Spread,
    background_correlation,
    copy_threshold,
    detect_copies,
    diversity,
    image_similarity,
    kernel_distance,
    text_similarity,
)

if TYPE_CHECKING:
    from imprint.features.clip import ClipFeatures
    from imprint.features.image_backbone import ImageBackbone

Masker = Callable[[Float[Tensor, "n 3 h w"]], Float[Tensor, "n 1 h w"]]
"""How surely each pixel belongs to the subject, 0 to 1."""


@dataclass(frozen=True, eq=False)
class FieldNetworks:
    """What the metrics read pictures with; a metric whose network is None is left out."""

    clip: ClipFeatures | None = None
    dino: ImageBackbone | None = None
    lpips: PairDistance | None = None

    @classmethod
    def load(cls, spec: MetricsSpec, *, device: str | torch.device = "cpu") -> FieldNetworks:
        """
        Raises:
            BackboneError: a network cannot be loaded.
        """
        # Here, since most evaluations have no such section and their driver would wait seconds for the imports.
        from imprint.evaluation.perceptual import Lpips
        from imprint.features.clip import ClipFeatures
        from imprint.features.image_backbone import ImageBackbone

        return cls(
            clip=ClipFeatures.load(spec.clip, device=device) if spec.clip else None,
            dino=ImageBackbone.load(spec.dino, device=device) if spec.dino else None,
            lpips=Lpips(spec.lpips.trunk, spec.lpips.file) if spec.lpips else None,
        )

    def features(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        """Those that DINO, KID and copies go by: DINO's, or CLIP's without one.

        Raises:
            ConfigError: there is neither.
        """
        if self.dino is not None:
            return self.dino(images)
        if self.clip is not None:
            return self.clip.encode_image(images).cpu()
        raise ConfigError("metrics: neither clip nor dino is named, expected one of them at least")


@dataclass(frozen=True, eq=False)
class Real:
    """The real pictures of every subject, in [-1, 1]: the input, and others that no method saw."""

    inputs: Float[Tensor, "n 3 h w"]
    others: Sequence[Float[Tensor, "m 3 h w"]]


@dataclass(frozen=True, eq=False)
class Drawings:
    """A column: k pictures of every subject, in [-1, 1], and its prompt with the class noun for the subject."""

    images: Float[Tensor, "n k 3 h w"]
    prompts: Sequence[str]


@dataclass(frozen=True)
class FieldScores:
    """One value for each subject, by metric and column; KID is of a whole column."""

    each: dict[str, dict[str, Float[np.ndarray, "subjects"]]]
    kid: dict[str, Spread] = field(default_factory=dict)
    copy_threshold: float | None = None


def field_scores(
    networks: FieldNetworks,
    real: Real,
    columns: Mapping[str, Drawings],
    spec: MetricsSpec,
    *,
    masks: Masker | None = None,
) -> FieldScores:
    """CLIP-I, CLIP-T, DINO, DIV, copies and KID of every column, as far as there are networks for them.

    With `masks`, a copied background makes a copy too. Metrics of the subject are means over its k pictures.

    Raises:
        ConfigError: no network is named.
    """
    every = torch.cat(list(real.others))
    real_features = networks.features(every)
    sizes = [len(images) for images in real.others]
    own = real_features.split(sizes)
    inputs = networks.features(real.inputs)
    pairs = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    threshold = copy_threshold(real_features, inputs[pairs], spec.copy_quantile)
    own_clip = networks.clip.encode_image(every).cpu().split(sizes) if networks.clip is not None else None
    each: dict[str, dict[str, np.ndarray]] = {}
    kid = {}
    for name, column in columns.items():
        flat, copies = column.images.flatten(0, 1), column.images.shape[1]
        features = networks.features(flat)
        found: dict[str, list[Tensor]] = {}
        if networks.dino is not None:
            found["DINO"] = [image_similarity(f, r) for f, r in zip(features.split(copies), own, strict=True)]
        if networks.clip is not None and own_clip is not None:
            joint = networks.clip.encode_image(flat).cpu()
            texts = networks.clip.encode_text(list(column.prompts)).cpu().repeat_interleave(copies, 0)
            found["CLIP-I"] = [image_similarity(f, r) for f, r in zip(joint.split(copies), own_clip, strict=True)]
            found["CLIP-T"] = list(text_similarity(joint, texts).split(copies))
        if networks.lpips is not None and copies > 1:
            found["DIV"] = [torch.tensor([diversity(images, networks.lpips)]) for images in column.images]
        found["copies"] = [
            _copied(images, f, real.inputs[n : n + 1], inputs[n : n + 1], threshold, masks)
            for n, (images, f) in enumerate(zip(column.images, features.split(copies), strict=True))
        ]
        for metric, values in found.items():
            each.setdefault(metric, {})[name] = np.asarray([float(value.mean()) for value in values])
        if spec.kid:
            kid[name] = kernel_distance(real_features, features)
    return FieldScores(each, kid, threshold)


def _copied(
    images: Float[Tensor, "k 3 h w"],
    features: Float[Tensor, "k d"],
    input_image: Float[Tensor, "1 3 h w"],
    input_features: Float[Tensor, "1 d"],
    threshold: float,
    masks: Masker | None,
) -> Float[Tensor, "k"]:
    backgrounds = None
    if masks is not None:
        backgrounds = background_correlation(images, masks(images), input_image, masks(input_image))
    return detect_copies(features, input_features, threshold=threshold, backgrounds=backgrounds).copied.float()


@dataclass(frozen=True)
class PriorDrift:
    """How much of the class became the subject by tuning: PRES after and before, and the diversity that is left."""

    pres: float
    pres_before: float
    div: float | None
    div_before: float | None

    @property
    def drift(self) -> float:
        """What tuning added to the likeness of random members of the class with the subject; 0 without drift."""
        return self.pres - self.pres_before


def prior_drift(
    networks: FieldNetworks,
    after: Float[Tensor, "n 3 h w"],
    before: Float[Tensor, "n 3 h w"],
    real: Float[Tensor, "m 3 h w"],
) -> PriorDrift:
    """PRES and DIV of pictures drawn of the class noun, by the tuned and by the untuned model with equal seeds.

    Raises:
        ConfigError: no network is named.
        DataError: there is one picture alone, where DIV is asked for.
    """
    subject = networks.features(real)
    pres = [float(image_similarity(networks.features(images), subject).mean()) for images in (after, before)]
    div = [diversity(images, networks.lpips) if networks.lpips else None for images in (after, before)]
    return PriorDrift(pres[0], pres[1], div[0], div[1])
