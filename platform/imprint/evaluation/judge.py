"""What a benchmark's pictures are worth: one value a prompt, by networks that took no part in training what they score.

identity    cosine with the sitter's real pictures, of whitened features where there is a calibration
elsewhere   the same with another sitter's real pictures: what a likeness with anybody gives
recognized  whether the sitter is nearer than any other
prompt      share of what the prompt asked for that a reader finds; without a reader, CLIP-T
kept        share of the sitter's lasting attributes that a reader finds
copies      whether a picture is suspiciously like an input, background included
diversity   mean distance of pairs of copies: LPIPS, or without it one minus the cosine of features
CLIP-I, CLIP-T, DINO
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from imprint.config.jobs.metrics import MetricsSpec
from imprint.evaluation.attributes import AttributeReader
from imprint.evaluation.columns import to_pixels
from imprint.evaluation.field_scores import FieldNetworks
from imprint.evaluation.identity import HEAD, FeatureNetwork, Whitening, raw_features, similarity_to
from imprint.evaluation.metrics import (
    background_correlation,
    copy_threshold,
    detect_copies,
    diversity,
    image_similarity,
    text_similarity,
)
from imprint.evaluation.portrait import Portrait
from imprint.evaluation.scoring import DIMENSIONS, KEPT
from imprint.evaluation.sitters import Sitter
from imprint.evaluation.statistics import nearest_identity
from imprint.evaluation.subjects import Picture, somebody_else

COPY_QUANTILE = 0.99


@dataclass(frozen=True, eq=False)
class Gallery:
    """The real pictures of all sitters as the judge sees them, by the place of a sitter in the list."""

    targets: Sequence[Float[np.ndarray, "m d"]]
    copy_threshold: float | None
    """None where no sitter has two real pictures: nobody knows how alike they are, and copies are not told."""


@dataclass(frozen=True, eq=False)
class Judge:
    """The networks. A metric whose network is None is left out."""

    network: FeatureNetwork
    reader: AttributeReader | None = None
    whitening: Whitening | None = None
    field: FieldNetworks = field(default_factory=FieldNetworks)
    copy_quantile: float = COPY_QUANTILE

    @classmethod
    def calibrated(
        cls,
        network: FeatureNetwork,
        reader: AttributeReader | None,
        calibration: Sequence[tuple[str, Picture]],
        metrics: MetricsSpec | None = None,
    ) -> Judge:
        """With whitening fitted on (identity, picture) pairs of other people, where there are any.

        Raises:
            BackboneError: a network of `metrics` cannot be loaded.
        """
        loaded = FieldNetworks() if metrics is None else FieldNetworks.load(metrics)
        plain = cls(network, reader, None, loaded, COPY_QUANTILE if metrics is None else metrics.copy_quantile)
        if not calibration:
            return plain
        features = plain.subject_features(np.stack([picture.image for _, picture in calibration]))
        whitening = Whitening.fit(features, [identity for identity, _ in calibration], DIMENSIONS)
        return cls(network, reader, whitening, loaded, plain.copy_quantile)

    def subject_features(self, images: UInt8[np.ndarray, "n h w 3"]) -> Float[np.ndarray, "n width"]:
        """The subject's alone where a reader has masks of it, else the whole picture's."""
        pixels = to_pixels(images)
        if self.reader is None:
            return raw_features(self.network, pixels, None, None)
        return raw_features(self.network, pixels, self.reader.masks(pixels), HEAD)

    def embed(self, images: UInt8[np.ndarray, "n h w 3"]) -> Float[np.ndarray, "n d"]:
        """Vectors whose cosine is the identity score."""
        features = self.subject_features(images)
        return features if self.whitening is None else self.whitening(features)

    def whole(self, pixels: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        """What copies, diversity, PRES and KID go by: DINO's features, or the scorer's of the whole picture."""
        if self.field.dino is not None:
            return self.field.dino(pixels)
        return torch.from_numpy(np.asarray(raw_features(self.network, pixels, None, None)))

    def gallery(self, sitters: Sequence[Sitter]) -> Gallery:
        """All sitters' targets, and how alike two real pictures of one subject are at the most."""
        targets = [self.embed(_stack(one.targets)) for one in sitters]
        first, second = [], []
        for one in sitters:
            both = [*one.references, *(p for p in one.targets if not any(p is r for r in one.references))]
            rows = self.whole(to_pixels(_stack(both)))
            a, b = torch.triu_indices(len(rows), len(rows), offset=1)
            first.append(rows[a])
            second.append(rows[b])
        one, two = torch.cat(first), torch.cat(second)
        return Gallery(targets, copy_threshold(one, two, self.copy_quantile) if len(one) else None)

    def score(
        self, sitter: Sitter, place: int, portrait: Portrait, gallery: Gallery
    ) -> dict[str, Float[np.ndarray, "p"]]:
        """A value for each prompt, the mean over its copies; NaN where a prompt asks for nothing a reader could find.

        `place` is the sitter's in the list that the gallery is of.
        """
        prompts, copies = portrait.images.shape[:2]
        flat = portrait.images.reshape(-1, *portrait.images.shape[2:])
        pixels = to_pixels(flat)
        similar = similarity_to(self.embed(flat), gallery.targets)
        mine = np.full(len(flat), place)
        found: dict[str, np.ndarray] = {
            "identity": similar[:, place],
            "elsewhere": similar[:, somebody_else(place, len(gallery.targets))],
            "recognized": nearest_identity(similar, mine).astype(np.float64),
            **self._field(sitter, pixels, copies),
        }
        if gallery.copy_threshold is not None:
            found["copies"] = self._copies(sitter, pixels, gallery.copy_threshold)
        if self.reader is not None:
            read = self.reader.read(pixels)
            found["prompt"] = _obeyed(read, [prompt.asks for prompt in sitter.prompts], copies)
            truth = sitter.references[0].attributes
            kept = [[value == truth.get(name) for value in read[name]] for name in KEPT if name in read]
            if kept and truth:
                found["kept"] = np.mean(kept, axis=0)
        elif "CLIP-T" in found:
            found["prompt"] = found["CLIP-T"]
        means = {name: np.asarray(value, np.float64).reshape(prompts, copies).mean(1) for name, value in found.items()}
        if copies > 1:
            means["diversity"] = np.asarray([self.diversity(to_pixels(each)) for each in portrait.images])
        return means

    def both(
        self, images: UInt8[np.ndarray, "k h w 3"], places: tuple[int, int], gallery: Gallery
    ) -> Float[np.ndarray, "k"]:
        """Of pictures of two sitters: the lesser of the two likenesses, so that both have to be there.

        Each half of a picture, left and right, is compared with each sitter; the better way round counts.
        """
        width = images.shape[2] // 2
        # Squares, as everything that is embedded is: a half in the middle of plain gray.
        halves = []
        for half in (images[:, :, :width], images[:, :, -width:]):
            square = np.full_like(images, 128)
            square[:, :, width // 2 : width // 2 + width] = half
            halves.append(similarity_to(self.embed(square), [gallery.targets[place] for place in places]))
        left, right = halves
        return np.maximum(np.minimum(left[:, 0], right[:, 1]), np.minimum(left[:, 1], right[:, 0]))

    def diversity(self, pixels: Float[Tensor, "n 3 h w"]) -> float:
        """DIV: over all pairs of pictures, LPIPS, or without it one minus the cosine of whole pictures' features."""
        if self.field.lpips is not None:
            return diversity(pixels, self.field.lpips)
        rows = F.normalize(self.whole(pixels), dim=-1)
        one, two = torch.triu_indices(len(rows), len(rows), offset=1)
        return float(1 - (rows[one] * rows[two]).sum(1).mean())

    def class_left(self, sitter: Sitter, images: UInt8[np.ndarray, "c h w 3"]) -> dict[str, float]:
        """PRES and DIV of pictures of the class noun: how much of the class became the sitter, and what is left."""
        pixels = to_pixels(images)
        real = self.whole(to_pixels(_stack(sitter.references)))
        found = {"PRES": float(image_similarity(self.whole(pixels), real).mean())}
        return found if len(images) < 2 else found | {"DIV": self.diversity(pixels)}

    def _copies(self, sitter: Sitter, pixels: Float[Tensor, "n 3 h w"], threshold: float) -> np.ndarray:
        inputs = to_pixels(_stack(sitter.references))
        backgrounds = None
        if self.reader is not None:
            backgrounds = background_correlation(pixels, self.reader.masks(pixels), inputs, self.reader.masks(inputs))
        verdict = detect_copies(self.whole(pixels), self.whole(inputs), threshold=threshold, backgrounds=backgrounds)
        return verdict.copied.double().numpy()

    def _field(self, sitter: Sitter, pixels: Float[Tensor, "n 3 h w"], copies: int) -> dict[str, np.ndarray]:
        real = to_pixels(_stack(sitter.targets))
        found = {}
        if self.field.dino is not None:
            found["DINO"] = image_similarity(self.field.dino(pixels), self.field.dino(real)).double().numpy()
        if self.field.clip is not None:
            joint, own = (self.field.clip.encode_image(each).cpu() for each in (pixels, real))
            words = [prompt.about(f"a {sitter.noun}") for prompt in sitter.prompts]
            texts = self.field.clip.encode_text(words).cpu().repeat_interleave(copies, 0)
            found["CLIP-I"] = image_similarity(joint, own).double().numpy()
            found["CLIP-T"] = text_similarity(joint, texts).double().numpy()
        return found


def _stack(pictures: Sequence[Picture]) -> UInt8[np.ndarray, "n h w 3"]:
    return np.stack([picture.image for picture in pictures])


def _obeyed(
    read: Mapping[str, Sequence[str]], asked: Sequence[Mapping[str, str]], copies: int
) -> Float[np.ndarray, "n"]:
    """Of each picture the share of its prompt's wishes that were read in it; NaN where none can be read."""
    shares = []
    for number in range(len(asked) * copies):
        wishes = {name: value for name, value in asked[number // copies].items() if name in read}
        right = [read[name][number] == value for name, value in wishes.items()]
        shares.append(np.mean(right) if right else np.nan)
    return np.asarray(shares, dtype=np.float64)
