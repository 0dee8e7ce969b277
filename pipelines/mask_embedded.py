"""The embedded masker: a pure function from a picture to a mask of its subject, without weights."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, UInt8
from scipy import ndimage
from skimage.color import rgb2lab
from skimage.filters import gaussian, threshold_otsu

Mask = UInt8[np.ndarray, "h w"]

_MODES = 4  # border colours told apart: enough for stripes, dots and checks of two colours and their edges
_ROUNDS = 8
_ALIKE = 0.5  # in spreads of the border: where nothing differs by more, there is no subject


def embedded_mask(image: UInt8[np.ndarray, "h w 3"]) -> Mask:
    """The subject by classical means: what is unlike the picture's border.

    Colours of the border (left, right and upper edge) are clustered in CIELAB; a pixel's score is its distance
    to the nearest cluster, in units of that cluster's spread, times a weak prior for the middle; Otsu's threshold,
    holes filled, the largest piece kept. Right for a subject on plain ground, poor on photographs.
    """
    lab = rgb2lab(image).astype(np.float32)
    height, width = lab.shape[:2]
    rim = max(1, round(0.04 * min(height, width)))
    sides = lab[: height * 3 // 4]
    border = np.concatenate([part.reshape(-1, 3) for part in (lab[:rim], sides[:, :rim], sides[:, -rim:])])
    centres, spreads = _cluster(border)
    distance = np.linalg.norm(lab[:, :, None] - centres, axis=-1) / spreads
    score = np.minimum(distance.min(axis=-1), 10.0) * _middle(height, width)
    score = gaussian(score, sigma=max(0.5, min(height, width) / 128))
    if score.max() < _ALIKE:
        return np.zeros((height, width), np.uint8)
    return (255 * _largest(ndimage.binary_fill_holes(score > threshold_otsu(score)))).astype(np.uint8)


def _cluster(colours: Float[np.ndarray, "n 3"]) -> tuple[Float[np.ndarray, "k 3"], Float[np.ndarray, "k"]]:
    """k-means from starts along the lightness, so that it is a pure function; spreads are at least 4 in CIELAB."""
    order = np.argsort(colours[:, 0], kind="stable")
    centres = colours[order[np.linspace(0, len(colours) - 1, _MODES).round().astype(int)]]
    for _ in range(_ROUNDS):
        nearest = np.linalg.norm(colours[:, None] - centres, axis=-1).argmin(axis=1)
        for k in range(_MODES):
            if (nearest == k).any():
                centres[k] = colours[nearest == k].mean(axis=0)
    offsets = np.linalg.norm(colours - centres[nearest], axis=1)
    spreads = [np.sqrt((offsets[nearest == k] ** 2).mean()) if (nearest == k).any() else 0 for k in range(_MODES)]
    return centres, np.maximum(spreads, 4.0)


def _middle(height: int, width: int) -> Float[np.ndarray, "h w"]:
    """From 1 at the middle of the lower half to 0.6 in the upper corners: subjects stand on the lower edge."""
    y = np.abs(np.linspace(0, 1, height) - 0.6)[:, None]
    x = np.abs(np.linspace(-0.5, 0.5, width))[None]
    return 1 - 0.4 * np.clip((y**2 + x**2) / 0.61, 0, 1)


def _largest(mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    labels, count = ndimage.label(mask)
    if count < 2:
        return mask
    return labels == 1 + np.bincount(labels.ravel())[1:].argmax()
